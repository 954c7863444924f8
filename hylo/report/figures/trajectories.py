"""Quantities that components track over training: one row of panels per cell and quantity."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from hylo.analysis.pairs import complete_runs
from hylo.report.figures.base import study_figure
from hylo.report.figures.style import GRID, LINES, fold, framed
from hylo.report.render.hover import hover
from hylo.runs.record import StudyRecord

_ROW_HEIGHT, _LOW_ROW, _MANY = 2.5, 2.0, 3  # inches per row; inches per row if there are more than _MANY rows
_NAME_WIDTH = 90  # characters
_WIDE = 20  # ratio of largest to smallest value above which a linear axis hides the small ones


@study_figure("trajectories", order=100)
def trajectory_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """Entries of tracked vectors by step, and their change since the start of training; None if there are none.

    Changes have their own axis, since small ones would be invisible on the axis of values. The title says how many
    entries moved at all, which exposes vectors that training never reaches.
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
                style, name = LINES[place % len(LINES)], f"{cell}, {component}, seed {seed}"
                _draw_lines(left, table, table, style, f"{name}: {quantity}")
                _draw_lines(right, table - table.iloc[0], table, style, f"{name}: {quantity}", label=f"seed {seed}")
            left.set_ylabel(quantity)
            if _is_wide(list(seeds.values())):
                left.set_yscale("log")
                left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                left.yaxis.set_minor_formatter(NullFormatter())
                left.set_title("log scale", fontweight="normal", fontsize=8)
            right.set_ylabel(f"{quantity},\nchange since the start")
            right.set_title(_moved(list(seeds.values())), fontweight="normal", fontsize=8)
            for axes in (left, right):
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                axes.grid(color=GRID, linewidth=0.6)
                axes.margins(x=0.01)
                axes.set_xlabel("optimizer step", fontsize=8)
                axes.yaxis.label.set_fontsize(8)
            if len(seeds) > 1:
                right.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8, handlelength=2.8)

    counts = sorted({len(seeds) for *_, seeds in rows})
    lines = [
        "One line per vector entry and seed, from dark to bright by initial value",
        f"seeds per cell: {' to '.join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))}",
    ]
    height = _ROW_HEIGHT if len(rows) <= _MANY else _LOW_ROW
    return framed(f"{study.name}: what moved in training", lines, 0.5 + height * len(rows), draw)


def _rows(study: StudyRecord) -> list[tuple[str, str, str, dict[int, pd.DataFrame]]]:
    """Cell, component, quantity and, by seed, a table of steps (rows) by entries (columns)."""
    found: dict[tuple[str, str, str], dict[int, pd.DataFrame]] = {}
    for cell in study.cells:
        for run in complete_runs(study, cell):
            parts: Any = run.trajectory.groupby(["component", "quantity"], sort=False)
            for (component, quantity), part in parts:
                table = part.pivot(index="step", columns="index", values="value")
                found.setdefault((cell, component, quantity), {})[run.seed] = table
    return [(*names, seeds) for names, seeds in found.items()]


def _draw_lines(
    axes: Any, shown: pd.DataFrame, table: pd.DataFrame, style: str, name: str, label: str | None = None
) -> None:
    """Draw one line per entry of `shown`, the values of `table` or their changes."""
    ranks = table.iloc[0].rank(method="first").to_numpy(dtype=float) - 1
    for rank, column in zip(ranks, table, strict=True):
        colour = colormaps["viridis"](0.9 * rank / max(1, len(ranks) - 1))  # the brightest tenth is too light on white
        (line,) = axes.plot(shown.index, shown[column], color=colour, linestyle=style, linewidth=0.9, label=label)
        first, last = table[column].iloc[0], table[column].iloc[-1]
        hover(
            line, f"{name}, entry {column}: {first:.4g} before training, {last:.4g} after ({_short(last - first, '+')})"
        )
        label = None  # only once in the legend


def _is_wide(tables: list[pd.DataFrame]) -> bool:
    """Whether values are positive and so far apart that a linear axis would hide the small ones."""
    low, high = (float(end([end(table.to_numpy()) for table in tables])) for end in (np.min, np.max))
    return low > 0 and high > _WIDE * low


def _short(value: float, sign: str = "") -> str:
    """Two significant digits: `0.18`, `610`."""
    return f"{float(f'{value:.2g}'):{sign}g}"


def _moved(tables: list[pd.DataFrame]) -> str:
    changes: Any = pd.concat([(table - table.iloc[0]).abs().max() for table in tables])
    count = int((changes > 0).sum())
    return f"{count} of {len(changes)} moved" + (f", the furthest by {_short(changes.max())}" if count else "")
