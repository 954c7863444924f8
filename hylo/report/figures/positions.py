"""Perplexity by position in the window, and the improvement over the base model, where differences are visible."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from hylo.analysis.pairs import complete_runs
from hylo.analysis.positions import COLUMNS, ppl_by_bin
from hylo.report.figures.base import study_figure
from hylo.report.figures.marks import checked, curve, perplexity_axis, with_seeds
from hylo.report.figures.multiples import TOGETHER, grid, label_outer, panels, same_scale
from hylo.report.figures.style import FAINT, GRID, SMALL, cell_style, framed, legend, legend_columns
from hylo.report.tables.caption import caption
from hylo.report.tables.numbers import interval
from hylo.runs.record import StudyRecord

BINS = 10
_IMPROVEMENT = "improvement_pct"
_UNITS = {"ppl": "PPL {}", _IMPROVEMENT: "improvement {} %"}


@study_figure("ppl_by_position", order=60)
def position_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure:
    """Perplexity by position in the window, in ten bins, and the improvement over the base model."""
    edges, unit = _bin_edges(study)
    title, lines = f"{study.name}: perplexity by position", caption(study, summary)
    return ppl_by_position_figure(title, lines, ppl_by_bin(study), edges=edges, unit=unit, base=study.base)


def ppl_by_position_figure(
    title: str, lines: Sequence[str], bins: pd.DataFrame, *, edges: np.ndarray, unit: str, base: str
) -> Figure:
    """Perplexity and improvement side by side, one line per cell; many cells get one panel each, of the improvement.

    Args:
        title, lines: title, and caption lines beyond the description of what is drawn.
        bins: columns as in `hylo.analysis.positions.ppl_by_bin`; intervals are drawn as bands.
        edges: [bins + 1], bin edges in `unit`. The middle third of their span is shaded.
        unit: of positions, for example tokens.
        base: name of the base cell, which has a perplexity but no improvement.

    Raises:
        ValueError: a column is missing.
    """
    by_cell = checked(bins, COLUMNS, "ppl_by_position_figure", may_be_empty=True).groupby("cell", sort=False)
    cells = {str(cell): part for cell, part in by_cell}
    drawing = _Drawing(cells, edges, unit, base)
    improvement = "100 (1 - PPL / PPL of the base model), paired by window and seed"
    bands = "bands: intervals; shaded: the middle third"
    if len(cells) <= TOGETHER + 1:
        said = [f"Left: exp of the mean over seeds of log PPL; right: {improvement}", bands]
        height, draw = 3.5 + drawing.legend_height, drawing.together
    else:
        said = [f"One panel per cell, other cells in grey: {improvement}; for the base model, its PPL", bands]
        height, draw = grid(list(cells)).height + 0.7, drawing.apart
    return framed(title, [*said, *with_seeds(lines, bins, base=base)], height, draw)


class _Drawing:
    """Draws the same cells either together or in one panel each."""

    def __init__(self, cells: dict[str, pd.DataFrame], edges: np.ndarray, unit: str, base: str):
        self.cells, self.edges, self.unit, self.base = cells, edges, unit, base
        self.legend_height = legend_columns(list(cells))[1]

    def together(self, figure: Figure) -> None:
        space = figure.add_gridspec(2, 2, height_ratios=[2.6, self.legend_height])
        left, right = figure.add_subplot(space[0, 0]), figure.add_subplot(space[0, 1])
        lines = []
        for place, (cell, part) in enumerate(self.cells.items()):
            lines.append(self._line(left, cell, part, "ppl", **cell_style(place)))
            if cell != self.base:
                self._line(right, cell, part, _IMPROVEMENT, **cell_style(place))
        perplexity_axis(left)
        right.axhline(0, color="black", linewidth=0.8, zorder=1)
        right.set_ylabel("improvement over the base model (%)")
        for axes in (left, right):
            self._position_axis(axes)
            axes.set_xlabel(f"position in the window ({self.unit}), ten bins")
        legend(figure.add_subplot(space[1, :]), lines, list(self.cells))

    def apart(self, figure: Figure) -> None:
        shape = grid(list(self.cells))
        axes = panels(figure, shape)
        others = self._in_one_line([part for cell, part in self.cells.items() if cell != self.base])
        for panel, (cell, part) in zip(axes, self.cells.items(), strict=True):
            if cell == self.base:
                self._line(panel, cell, part, "ppl", **cell_style(6))
                perplexity_axis(panel)
                panel.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
                panel.set_ylabel("perplexity (log)", fontsize=SMALL)
            else:
                panel.axhline(0, color="black", linewidth=0.5, zorder=1)
                panel.plot(*others, color=FAINT, linewidth=0.4, zorder=1)
                self._line(panel, cell, part, _IMPROVEMENT, **cell_style(0))
            self._position_axis(panel)
            panel.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
        own = [place for place, cell in enumerate(self.cells) if cell == self.base]
        same_scale([panel for place, panel in enumerate(axes) if place not in own])
        label_outer(axes, shape, f"position ({self.unit})", "improvement (%)", own=own)

    def _in_one_line(self, parts: Sequence[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
        """The improvements of many cells as one line with gaps: every panel has it, and drawing it is far cheaper."""
        ends = [(np.append(self._centres(part), np.nan), np.append(part[_IMPROVEMENT], np.nan)) for part in parts]
        return np.concatenate([x for x, _ in ends]), np.concatenate([y for _, y in ends])

    def _line(self, axes: Any, cell: str, part: pd.DataFrame, measure: str, **style: Any) -> Any:
        name = measure.removesuffix("_pct")
        texts = []
        for row in part.to_dict("records"):
            start, end = self.edges[row["bin"]], self.edges[row["bin"] + 1]
            value = _UNITS[measure].format(interval(row[measure], row[f"{name}_low"], row[f"{name}_high"]))
            texts.append(f"{cell}, position {start:,.0f} to {end:,.0f} ({self.unit}): {value}")
        return curve(axes, self._centres(part), part, measure, texts, cell, **style)

    def _centres(self, part: pd.DataFrame) -> np.ndarray:
        return ((self.edges[1:] + self.edges[:-1]) / 2)[part["bin"].to_numpy(dtype=int)]

    def _position_axis(self, axes: Any) -> None:
        third = (self.edges[-1] - self.edges[0]) / 3
        axes.axvspan(self.edges[0] + third, self.edges[-1] - third, color="0.95", linewidth=0, zorder=0)
        axes.set_xlim(self.edges[0], self.edges[-1])
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(axis="y", color=GRID, linewidth=0.6)


def _bin_edges(study: StudyRecord) -> tuple[np.ndarray, str]:
    """Edges of the ten bins and their unit: tokens, or percent if windows differ in length.

    The first token of a window, position 0, is context only and not predicted.
    """
    windows = [run.windows["length"] for cell in study.cells for run in complete_runs(study, cell)]
    lengths = set(pd.concat(windows)) if windows else set()
    if len(lengths) == 1:
        return np.linspace(1, lengths.pop(), BINS + 1), "tokens"
    return np.linspace(0, 100, BINS + 1), "% of its length"
