"""Tooltips for the marks of a figure saved as SVG."""

import io
import re
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

_TEXTS = "_hylo_hover_texts"


def hover(artist: Any, text: str) -> None:
    """Give the artist a tooltip. It must already be in its figure, and each mark needs its own call."""
    texts: dict[str, str] = artist.get_figure(root=True).__dict__.setdefault(_TEXTS, {})
    name = f"hover-{len(texts)}"
    artist.set_gid(name)
    texts[name] = text


def svg(figure: Figure) -> str:
    """The figure as SVG, byte-identical for the same figure, with a title element per `hover` tooltip."""
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "hylo", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    texts: dict[str, str] = figure.__dict__.get(_TEXTS, {})
    # One pass, regardless of the number of marks.
    return re.sub(
        r'<g id="(hover-\d+)">', lambda found: f"{found[0]}<title>{escape(texts[found[1]])}</title>", stream.getvalue()
    )
