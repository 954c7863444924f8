"""Accuracy and log-probability of a fact by its depth in a text: the lost-in-the-middle curve."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from hylo.analysis.retrieval import retrieval_table
from hylo.evaluation.probes.score import GRIDS
from hylo.report.figures.base import study_figure
from hylo.report.figures.marks import checked, curve, with_seeds
from hylo.report.figures.multiples import TOGETHER, grid, label_outer, panels, same_scale
from hylo.report.figures.style import GRID, cell_style, framed, legend, legend_columns
from hylo.report.tables.caption import caption
from hylo.report.tables.numbers import interval
from hylo.runs.record import StudyRecord

COLUMNS = [
    "cell", "length", "unit", "depth", "place", "accuracy", "accuracy_low", "accuracy_high", "logprob", "logprob_low",
    "logprob_high", "seeds",
]  # fmt: skip
_DEPTH = "depth (% of the text)"


class _Measure(NamedTuple):
    name: str
    label: str
    short: str
    """Label where space is tight."""
    unit: str


_MEASURES = (
    _Measure("accuracy", "accuracy (%)", "accuracy (%)", "%"),
    _Measure("logprob", "log-probability (nats)", "log-prob. (nats)", "nats"),
)


@study_figure("retrieval", order=80)
def retrieval_of_study(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """`retrieval_figure` of the probed cells; None if none was probed."""
    table = retrieval_table(study)
    if table.empty:
        return None
    return retrieval_figure(f"{study.name}: retrieval by depth", caption(study, summary), table)


def retrieval_figure(title: str, lines: Sequence[str], table: pd.DataFrame) -> Figure:
    """Accuracy above log-probability by depth, one panel per length; many cells get one panel each.

    Args:
        title, lines: title, and caption lines beyond the description of what is drawn.
        table: cell, length and its unit, depth (0 is the first asked for), place (of the fact asked for, from 0, in
            the unit of the length), accuracy (0 to 1), logprob (of the answer, nats), both with _low and _high, seeds.

    Raises:
        ValueError: a column is missing, or the table is empty.
    """
    whole = as_percent(checked(table, COLUMNS, "retrieval_figure"))
    cells = list(dict.fromkeys(table["cell"]))
    said = ["Accuracy: exact match; log-probability: of the answer; bands: intervals", *with_seeds(lines, table)]
    if len(cells) <= TOGETHER:
        legend_height = legend_columns(cells)[1]
        return framed(title, said, 4.6 + legend_height, lambda figure: _together(figure, whole, cells, legend_height))
    said[0] = f"One panel per cell, one line per length. {said[0]}"
    lengths = names_of_lengths(table)
    legend_height = legend_columns([*lengths.values()])[1]
    height = 2 * grid(cells).height + legend_height + 1.3
    return framed(title, said, height, lambda figure: _apart(figure, whole, cells, lengths, legend_height))


def as_percent(table: Any) -> Any:
    """The table with accuracies in percent and `position`, the place in percent of the text; by length and depth."""
    accuracies = {name: 100 * table[name].astype(float) for name in ("accuracy", "accuracy_low", "accuracy_high")}
    position = 100 * table["place"] / np.maximum(table["length"] - 1, 1)
    return table.assign(**accuracies, position=position).sort_values(["length", "depth"], kind="stable")


def names_of_lengths(table: Any) -> dict[int, str]:
    """The lengths in a table in ascending order, each as it is shown: `60 facts`, `2,048 tokens`."""
    rows = table.drop_duplicates("length").sort_values("length").to_dict("records")
    return {row["length"]: name_of_length(row) for row in rows}


def name_of_length(row: Any) -> str:
    """The length in a row of a table, as it is shown."""
    return f"{row['length']:,} {row['unit']}"


def where(row: Any) -> str:
    """The depth in a row of a table in words: `fact 3 of 60`."""
    (grid,) = (each for each in GRIDS.values() if each.length == row["unit"])
    return grid.where(row["place"], row["length"])


def _together(figure: Figure, table: Any, cells: list[str], legend_height: float) -> None:
    lengths = names_of_lengths(table)
    space = figure.add_gridspec(3, max(1, len(lengths)), height_ratios=[1.9, 1.6, legend_height])
    lines: dict[str, Any] = {}
    for row, measure in enumerate(_MEASURES):
        axes: list[Any] = []
        for column, (length, name) in enumerate(lengths.items()):
            panel = figure.add_subplot(space[row, column], sharey=axes[0] if axes else None)
            axes.append(panel)
            for place, cell in enumerate(cells):
                part = table[(table["cell"] == cell) & (table["length"] == length)]
                if len(part):
                    lines[cell] = _line(panel, measure, part, cell_style(place))
            _depth_axis(panel, measure)
            panel.tick_params(labelleft=column == 0, labelbottom=row == 1)
            if row == 0:
                panel.set_title(name, fontsize=9)
            else:
                panel.set_xlabel(_DEPTH)
        if axes:
            axes[0].set_ylabel(measure.label)
    legend(figure.add_subplot(space[2, :]), list(lines.values()), list(lines))


def _apart(figure: Figure, table: Any, cells: list[str], lengths: dict[int, str], legend_height: float) -> None:
    shape = grid(cells)
    blocks: Any = figure.subfigures(3, 1, height_ratios=[shape.height + 0.3] * 2 + [legend_height])
    for part, measure in zip(blocks[:2], _MEASURES, strict=True):
        part.suptitle(measure.label, x=0.01, ha="left", fontsize=9)
        axes = panels(part, shape)
        for panel, cell in zip(axes, cells, strict=True):
            for place, length in enumerate(lengths):
                rows = table[(table["cell"] == cell) & (table["length"] == length)]
                if len(rows):
                    _line(panel, measure, rows, cell_style(place))
            _depth_axis(panel, measure)
        same_scale(axes)
        label_outer(axes, shape, _DEPTH, measure.short)
    handles = [Line2D([], [], markersize=3, **cell_style(place)) for place in range(len(lengths))]
    legend(blocks[2].subplots(), handles, [*lengths.values()])


def _line(axes: Any, measure: _Measure, part: Any, style: dict[str, Any]) -> Any:
    cell, texts = part["cell"].iloc[0], []
    for row in part.to_dict("records"):
        value = interval(*(row[measure.name + end] for end in ("", "_low", "_high")))
        texts.append(f"{cell}, {where(row)}: {measure.name} {value} {measure.unit}")
    return curve(axes, part["position"], part, measure.name, texts, f"{cell}, {name_of_length(part.iloc[0])}", **style)


def _depth_axis(axes: Any, measure: _Measure) -> None:
    axes.set_xlim(-4, 104)
    axes.xaxis.set_major_locator(FixedLocator([0, 50, 100]))
    if measure.unit == "%":
        axes.set_ylim(-4, 104)
        axes.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    axes.grid(color=GRID, linewidth=0.5)
