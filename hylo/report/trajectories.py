"""The figure of what components let be followed over training: one row of panels a cell and quantity."""

from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hylo.records import StudyRecord
from hylo.report.pairs import complete_runs
from hylo.report.style import LINES, fold, framed

_ROW_HEIGHT = 2.5  # inches
_NAME_WIDTH = 90  # characters


def trajectory_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """Entries of followed vectors over the steps, and their change since before training; None where there are none.

    Changes have an axis of their own: on that of the values a small one looks like none. How many entries moved at all
    is written above, so that a vector that training never reaches is seen.
    """
    rows = _rows(study)
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (cell, component, quantity, seeds) in zip(parts, rows, strict=True):
            part.suptitle(fold(f"{cell}: {component}", _NAME_WIDTH), x=0.01, ha="left", fontsize=9)
            left, right = part.subplots(1, 2)
            for place, (seed, table) in enumerate(seeds.items()):
                _draw_lines(left, table, LINES[place % len(LINES)])
                _draw_lines(right, table - table.iloc[0], LINES[place % len(LINES)], label=f"seed {seed}")
            left.set_ylabel(quantity)
            right.set_ylabel(f"{quantity},\nchange since the start")
            right.set_title(_moved(list(seeds.values())), fontweight="normal", fontsize=8)
            for axes in (left, right):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                axes.grid(color="0.9", linewidth=0.6)
                axes.margins(x=0.01)
                axes.set_xlabel("optimizer step")
            if len(seeds) > 1:
                right.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)

    lines = ["Lines: one an entry of the vector, from dark to bright in the order of its start"]
    return framed(f"{study.name}: what moved in training", lines, 0.5 + _ROW_HEIGHT * len(rows), draw)


def _rows(study: StudyRecord) -> list[tuple[str, str, str, dict[int, pd.DataFrame]]]:
    """Cell, component, quantity and, by seed, a table of steps (rows) and entries (columns)."""
    found: dict[tuple[str, str, str], dict[int, pd.DataFrame]] = {}
    for cell in study.cells:
        for run in complete_runs(study, cell):
            parts: Any = run.trajectory.groupby(["component", "quantity"], sort=False)
            for (component, quantity), part in parts:
                table = part.pivot(index="step", columns="index", values="value")
                found.setdefault((cell, component, quantity), {})[run.seed] = table
    return [(*names, seeds) for names, seeds in found.items()]


def _draw_lines(axes: Any, table: pd.DataFrame, style: str, label: str | None = None) -> None:
    ranks = table.iloc[0].rank(method="first").to_numpy(dtype=float) - 1
    for rank, column in zip(ranks, table, strict=True):
        colour = colormaps["viridis"](0.9 * rank / max(1, len(ranks) - 1))  # the last tenth is too bright on white
        axes.plot(table.index, table[column], color=colour, linestyle=style, linewidth=1, label=label)
        label = None  # once in the legend


def _moved(tables: list[pd.DataFrame]) -> str:
    changes: Any = pd.concat([(table - table.iloc[0]).abs().max() for table in tables])
    count = int((changes > 0).sum())
    return f"{count} of {len(changes)} moved" + (f", the furthest by {changes.max():.2g}" if count else "")
