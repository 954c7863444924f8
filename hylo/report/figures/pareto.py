"""Quality against trained parameters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from hylo.report.figures.base import study_figure
from hylo.report.figures.labels import place_names
from hylo.report.figures.marks import checked, ends, estimate, perplexity_axis, with_seeds
from hylo.report.figures.style import COLOURS, GRID, fold, framed, legend, legend_columns
from hylo.report.render.hover import hover
from hylo.report.tables.caption import caption
from hylo.report.tables.numbers import interval
from hylo.runs.record import StudyRecord

COLUMNS = ["cell", "trainable_params", "ppl", "ppl_low", "ppl_high", "seeds", "front"]
_OTHER = "0.45"  # grey of cells that are not on the front
_NAMED = 8  # more cells than this get numbers instead of names next to their points

FEWEST_ON_A_FRONT = 3
"""Trained cells needed for a figure of quality against parameters."""


@study_figure("pareto", order=70)
def pareto_of_study(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """`pareto_figure` of the cells that share the first base model's windows; None if there are too few.

    Perplexities on different windows are not comparable.
    """
    rows: Any = summary[summary["reference"].isin(["", study.base]) & summary["ppl"].notna()]
    same = [study.base_of(cell) == study.base for cell in rows["cell"]]
    cells = rows[same].drop_duplicates("cell")
    if sum(count > 0 for count in cells["trainable_params"]) < FEWEST_ON_A_FRONT:
        return None
    params, ppl = (cells[name].to_numpy(dtype=float) for name in ("trainable_params", "ppl"))
    table = cells.assign(front=pareto_front(params, ppl))
    return pareto_figure(f"{study.name}: quality against parameters", caption(study, summary), table)


def pareto_front(params: ArrayLike, ppl: ArrayLike) -> NDArray[np.bool_]:
    """Whether no other cell is at least as good in parameters and perplexity, and better in one of them.

    Args:
        params: [cells], trained parameters.
        ppl: [cells], perplexity; a missing one is never on the front.

    Returns:
        [cells].

    Raises:
        ValueError: the shapes differ.
    """
    params, ppl = np.asarray(params, dtype=float), np.asarray(ppl, dtype=float)
    if params.shape != ppl.shape or params.ndim != 1:
        raise ValueError(f"params has shape {params.shape}, ppl {ppl.shape}; both must be [cells]")
    known = np.isfinite(params) & np.isfinite(ppl)
    as_good = (params[None] <= params[:, None]) & (ppl[None] <= ppl[:, None])
    better = as_good & ((params[None] < params[:, None]) | (ppl[None] < ppl[:, None]))
    return known & ~better.any(axis=1)


def pareto_figure(title: str, lines: Sequence[str], table: pd.DataFrame) -> Figure:
    """Perplexity against trainable parameters on a log axis, with the Pareto front joined; 0 is left of a break.

    Names are next to the points; many cells are numbered by parameters instead, with a key below.

    Args:
        title, lines: title, and caption lines beyond the description of what is drawn.
        table: one row per cell: cell, trainable_params, ppl, ppl_low, ppl_high, seeds, front (see `pareto_front`).
            A cell without a perplexity is not drawn.

    Raises:
        ValueError: a column is missing, or there is no row with a perplexity.
    """
    known = checked(table, COLUMNS, "pareto_figure").dropna(subset=["trainable_params", "ppl"])
    table = checked(known, COLUMNS, "pareto_figure").sort_values("trainable_params", kind="stable")
    x, first = _places(table["trainable_params"].to_numpy(dtype=float))
    front = table["front"].to_numpy(dtype=bool)
    colours = [COLOURS[0] if on_it else _OTHER for on_it in front]
    line = np.column_stack([x, table["ppl"].to_numpy(dtype=float)])[front]
    names = [str(cell) for cell in table["cell"]]
    key = [f"{number}  {name}" for number, name in enumerate(names, 1)] if len(names) > _NAMED else []
    key_height = legend_columns(key)[1]

    def draw(figure: Figure) -> None:
        axes, below = figure.subplots(2, 1, height_ratios=[3.4, key_height])
        axes.set_xscale("log")
        for place, colour, row in zip(x, colours, table.to_dict("records"), strict=True):
            text = interval(row["ppl"], row["ppl_low"], row["ppl_high"])
            said = f"{row['cell']}: PPL {text}, {row['trainable_params']:,.0f} trainable parameters"
            face = colour if row["front"] else "white"
            whisker = (row["ppl_low"], row["ppl_high"])
            estimate(axes, place, row["ppl"], whisker, said, upright=True, color=colour, markerfacecolor=face)
        (joined,) = axes.plot(*line.T, color=COLOURS[0], linewidth=1, alpha=0.6, zorder=1.8)
        hover(joined, "Pareto front")
        _parameter_axis(axes, x, first, with_base=bool((table["trainable_params"] == 0).any()))
        perplexity_axis(axes)
        axes.margins(y=0.12)
        points = [Line2D([], [], color=colour, marker="o", markersize=4.5, linestyle="", markerfacecolor=face)
                  for colour, face in zip(colours, np.where(front, colours, "white"), strict=True)]  # fmt: skip
        legend(below, points, key)

    said = ["Points: PPL, whiskers: intervals; filled and joined: the Pareto front, where no cell has both fewer "
            "parameters and a lower PPL"]  # fmt: skip
    figure = framed(title, [*said, *with_seeds(lines, table)], 4.2 + key_height, draw)
    shown = [str(number) for number in range(1, len(names) + 1)] if key else [fold(name) for name in names]
    place_names(figure.axes[0], shown, np.column_stack([x, ends(table, "ppl")]), colours, line)
    return figure


def _places(params: np.ndarray) -> tuple[np.ndarray, float]:
    """Positions of cells on the log axis, and the smallest positive number of parameters; 0 is placed left of it."""
    positive = params[params > 0]
    first = float(positive.min()) if positive.size else 1.0
    spread = float(positive.max()) / first if positive.size else 1.0
    return np.where(params > 0, params, first / max(1.3, spread**0.22)), first


def _parameter_axis(axes: Any, x: np.ndarray, first: float, *, with_base: bool) -> None:
    low, high = (float(x.min()), float(x.max())) if len(x) else (1.0, 10.0)
    room = max(1.3, (high / low) ** 0.06)
    axes.set_xlim(low / room, high * room)
    decades = 10.0 ** np.arange(np.floor(np.log10(first)) - 1, np.ceil(np.log10(high)) + 2)
    steps = (1,) if high / first > 300 else (1, 3) if high / first > 30 else (1, 2, 5)
    ticks = [decade * step for decade in decades for step in steps if first * 0.8 <= decade * step <= high * room]
    if len(ticks) < 2:
        ticks = sorted({first, high})
    if with_base:
        ticks.insert(0, low)
        middle = np.sqrt(low * first / 1.05)
        axes.axvspan(middle / room**0.1, middle * room**0.1, color=GRID, linewidth=0, zorder=0)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    zero = low if with_base else -1.0
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == zero else _short(value)))
    axes.set_xlabel("trainable parameters (log scale" + (", 0 left of the grey break)" if with_base else ")"))


def _short(count: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
