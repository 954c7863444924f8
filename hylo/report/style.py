"""What all figures share. No pyplot, so nothing global is touched and no display is needed."""

import textwrap
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

DPI = 200
# Okabe and Ito 2008, "Color universal design": told apart with every common colour blindness. Yellow is left out, it
# vanishes on white. Cells beyond the seventh repeat the colours with another line and marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES, MARKERS = ("-", "--", ":"), ("o", "s", "^")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "hylo",
}
_WIDTH = 7.2  # inches: the text width of a two-column page
_NAME_WIDTH, _CAPTION_WIDTH = 28, 115  # characters


def framed(title: str, lines: list[str], height: float, draw: Callable[[Figure], None]) -> Figure:
    """A figure of the page's width: title above, caption below, both laid out with what `draw` adds."""
    text = textwrap.fill("; ".join(lines), _CAPTION_WIDTH) if lines else ""
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height + 0.16 * text.count("\n")), dpi=DPI)
        figure.set_layout_engine("constrained", w_pad=0.08)
        draw(figure)
        figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left", weight="bold", fontsize=10)
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color="0.35")
    return figure


def fold(name: str, width: int = _NAME_WIDTH) -> str:
    """A long name on several lines, broken after separators where it has them."""
    words = name.replace("_", "_ ").replace("-", "- ").replace("+", "+ ")
    lines = textwrap.wrap(words, width, break_on_hyphens=False)
    return "\n".join(line.replace("_ ", "_").replace("- ", "-").replace("+ ", "+") for line in lines)
