"""Small multiples: one panel per cell, for studies with too many cells to distinguish lines in one panel."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure, SubFigure

from hylo.report.figures.style import GRID, LINE, SMALL, fold, text_size

TOGETHER = 6
"""Most cells whose lines and intervals are distinguishable in one panel."""
_COLUMNS, _NAME_WIDTH = 5, 22  # panels per row; characters per title line


class Grid(NamedTuple):
    """Panels in rows, each below its title."""

    titles: list[str]
    columns: int
    height: float
    """Total height in inches."""

    def first(self, place: int) -> bool:
        """Whether a panel is the first in its row."""
        return place % self.columns == 0

    def lowest(self, place: int) -> bool:
        """Whether there is no panel below."""
        return place + self.columns >= len(self.titles)


def grid(names: Sequence[str], *, columns: int = _COLUMNS, panel: float = 0.8, width: int = _NAME_WIDTH) -> Grid:
    """A grid with one panel per name; `panel` is its height in inches, names are folded at `width` characters."""
    titles = [fold(name, width) for name in names]
    columns = min(columns, max(1, len(titles)))
    lines = [titles[start : start + columns] for start in range(0, len(titles), columns)]
    height = sum(panel + 0.12 + max(text_size(title, SMALL)[1] for title in line) for line in lines)
    return Grid(titles, columns, height + 0.35)


def panels(figure: Figure | SubFigure, shape: Grid) -> list[Any]:
    """Create the axes, in the order of the names."""
    rows = -(-len(shape.titles) // shape.columns)
    axes = figure.subplots(rows, shape.columns, squeeze=False).ravel()
    for unused in axes[len(shape.titles) :]:
        unused.remove()
    for place, title in enumerate(shape.titles):
        axes[place].set_title(title, fontsize=SMALL, fontweight="normal", linespacing=LINE, pad=3)
        axes[place].grid(color=GRID, linewidth=0.5)
        axes[place].tick_params(labelsize=SMALL - 0.5, length=2, pad=2)
    return list(axes[: len(shape.titles)])


def same_scale(axes: Sequence[Any]) -> None:
    """Give all panels the same y limits, wide enough for each of them."""
    limits = [panel.get_ylim() for panel in axes]
    for panel in axes:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def label_outer(axes: Sequence[Any], shape: Grid, across: str, upright: str, *, own: Collection[int] = ()) -> None:
    """Label the outer axes only; inner panels have no tick labels, except those with an axis of their `own`."""
    for place, panel in enumerate(axes):
        if shape.lowest(place):
            panel.set_xlabel(across, fontsize=SMALL)
        else:
            panel.tick_params(labelbottom=False)
        if shape.first(place) and place not in own:
            panel.set_ylabel(upright, fontsize=SMALL)
        elif place not in own and place - 1 not in own:
            panel.tick_params(labelleft=False)
