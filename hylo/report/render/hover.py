"""Values that a reader sees by pointing at a mark of a figure, where the figure is shown as SVG."""

import io
import re
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

_TEXTS = "_hylo_hover_texts"


def hover(artist: Any, text: str) -> None:
    """Show `text` where a reader points at the artist. It must be in its figure already; give each mark its own."""
    texts: dict[str, str] = artist.get_figure(root=True).__dict__.setdefault(_TEXTS, {})
    name = f"hover-{len(texts)}"
    artist.set_gid(name)
    texts[name] = text


def svg(figure: Figure) -> str:
    """The figure as SVG text, byte-identical for the same figure, with a title element for each text of `hover`."""
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "hylo", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    texts: dict[str, str] = figure.__dict__.get(_TEXTS, {})
    # One pass, however many marks there are.
    return re.sub(
        r'<g id="(hover-\d+)">', lambda found: f"{found[0]}<title>{escape(texts[found[1]])}</title>", stream.getvalue()
    )
