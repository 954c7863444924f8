"""Style and layout shared by all figures. No pyplot, so no global state and no display needed."""

import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

DPI = 200
# Okabe and Ito 2008, "Color universal design": distinguishable under common forms of colour blindness. Yellow is left
# out because it vanishes on white. Cells beyond the seventh repeat the colours with another line and marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")
GRID, FAINT = "0.9", "0.75"
"""Greys of grid lines, and of anything drawn for comparison only."""
SMALL = 7
"""Smallest legible font size in print, points; for labels and numbers next to marks."""
LINE = 1.1
"""Line spacing of names and numbers, relative to the text height."""
WIDTH = 7.2
"""Text width of a two-column page, inches."""
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "hylo",
}
_NAME_WIDTH, _CAPTION_WIDTH = 28, 115  # characters
_LEGEND_SIZE, _LEGEND_HANDLE = 8, 0.55  # points; inches next to each name


def framed(title: str, lines: list[str], height: float, draw: Callable[[Figure], None]) -> Figure:
    """A figure as wide as the page: title above, caption below, laid out together with what `draw` adds."""
    text = textwrap.fill("; ".join(lines), _CAPTION_WIDTH) if lines else ""
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height + 0.16 * text.count("\n")), dpi=DPI)
        figure.set_layout_engine("constrained", w_pad=0.08)
        draw(figure)
        figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left", weight="bold", fontsize=10)
        figure.supxlabel(text, x=0.01, ha="left", fontsize=SMALL, color="0.35")
        for axes in figure.get_axes():
            for axis in (axes.xaxis, axes.yaxis):
                axis.get_major_ticks(1)  # created here, or drawing would create them outside this style
        _settle(figure)
    return figure


def _settle(figure: Figure) -> None:
    """Lay the figure out once and freeze the result.

    The solver's result differs in the last bits between processes, and every draw would run it again.
    """
    engine: Any = figure.get_layout_engine()
    for axes in figure.get_axes():
        axes.apply_aspect()
    engine.execute(figure)
    figure.set_layout_engine(None)  # "none" would keep a placeholder, for which saving draws everything twice
    for part in figure.subfigs:
        box: Any = part.bbox_relative
        box.p0, box.p1 = box.p0.round(6), box.p1.round(6)
    for axes in figure.get_axes():
        left, bottom, width, height = (round(float(side), 6) for side in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def fold(name: str, width: int = _NAME_WIDTH) -> str:
    """Fold a long name onto several lines, breaking after separators where possible."""
    lines = [""]
    for piece in re.findall(r"[^ _+-]+[ _+-]*|[ _+-]+", name):
        for part in textwrap.wrap(piece, width, drop_whitespace=False, break_on_hyphens=False):
            if lines[-1] and len((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def text_size(text: str, points: float = SMALL) -> tuple[float, float]:
    """Width and height in inches of text on one or more lines."""
    font, lines = FontProperties(size=points), text.split("\n")
    width = max(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines)
    return float(width) / 72, 1.17 * LINE * points * len(lines) / 72


def cell_style(place: int) -> dict[str, Any]:
    """Colour, line and marker of a study's cell by its place; 28 distinct combinations."""
    repeat = place // len(COLOURS) % len(LINES)
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[repeat], "marker": MARKERS[repeat]}


def legend_columns(names: Sequence[str], width: float = WIDTH - 0.2) -> tuple[int, float]:
    """Number of legend columns that fit a width in inches, and the legend's height in inches."""
    if not names:
        return 1, 0.05
    sizes = np.array([text_size(fold(name), _LEGEND_SIZE) for name in names])
    columns = max(1, min(len(names), int(width / (sizes[:, 0].max() + _LEGEND_HANDLE))))
    heights = [sum(part + 0.06) for part in np.array_split(sizes[:, 1], columns)]
    return columns, max(heights) + 0.05


def legend(axes: Any, handles: Sequence[Any], names: Sequence[str]) -> Any:
    """Draw a legend in otherwise empty axes, in as many columns as fit; None without names."""
    axes.set_axis_off()
    if not names:
        return None
    return axes.legend(
        handles,
        [fold(name) for name in names],
        loc="upper left",
        ncols=legend_columns(names)[0],
        borderaxespad=0,
        fontsize=_LEGEND_SIZE,
        columnspacing=1.0,
        handletextpad=0.5,
    )
