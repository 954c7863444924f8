"""The figure of what components let be followed over training: one row of panels a cell and quantity."""

from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hylo.records import StudyRecord
from hylo.report.style import LINES, fold, framed
from hylo.report.summary import complete_runs

_ROW_HEIGHT = 2.3  # inches


def trajectory_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """Entries of followed vectors over the steps, and their change since before training; None where there are none.

    Changes have an axis of their own: on that of the values a small one looks like none. How many entries moved at all
    is written above, so that a vector that training never reaches is seen.
    """
    rows = _rows(study)
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        for place, (cell, component, quantity, seeds) in enumerate(rows):
            left, right = (figure.add_subplot(len(rows), 2, 2 * place + side) for side in (1, 2))
            for seed_place, table in enumerate(seeds.values()):
                _lines(left, table, seed_place)
                _lines(right, table - table.iloc[0], seed_place)
            left.set_title(fold(f"{cell}: {component}"))
            right.set_title(_moved(list(seeds.values())), fontweight="normal", fontsize=8)
            left.set_ylabel(quantity)
            right.set_ylabel(f"change of {quantity}")
            for axes in (left, right):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                axes.grid(color="0.9", linewidth=0.6)
                axes.margins(x=0.01)
                axes.set_xlabel("optimizer step")
            if len(seeds) > 1:
                lines = [right.lines[sum(t.shape[1] for t in list(seeds.values())[:n])] for n in range(len(seeds))]
                right.legend(
                    lines, [f"seed {seed}" for seed in seeds], loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8
                )

    lines = ["Lines: one an entry of the vector, from dark to bright in the order of its start"]
    if max(len(seeds) for *_, seeds in rows) > 1:
        lines.append("every seed drawn")
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


def _lines(axes: Any, table: pd.DataFrame, seed_place: int) -> None:
    order = table.iloc[0].rank(method="first").to_numpy(dtype=float) - 1
    for rank, column in zip(order, table, strict=True):
        colour = colormaps["viridis"](0.9 * rank / max(1, len(order) - 1))  # the last tenth is too bright on white
        axes.plot(table.index, table[column], color=colour, linestyle=LINES[seed_place % len(LINES)], linewidth=1)


def _moved(tables: list[pd.DataFrame]) -> str:
    changes: Any = pd.concat([(table - table.iloc[0]).abs().max() for table in tables])
    count = int((changes > 0).sum())
    return f"{count} of {len(changes)} moved" + (f", the furthest by {changes.max():.2g}" if count else "")
