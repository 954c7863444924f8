"""What each component contributes, by kind of comparison."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hylo.analysis.contrasts import attribution_table
from hylo.report.figures.base import study_figure
from hylo.report.figures.marks import (
    beside,
    checked,
    effect_axis,
    effect_limits,
    estimate,
    precise,
    row_axis,
    rows,
    visible_guides,
    with_seeds,
)
from hylo.report.figures.style import COLOURS, GRID, MARKERS, fold, framed, legend, legend_columns
from hylo.report.tables.caption import caption
from hylo.report.tables.numbers import MISSING
from hylo.runs.record import StudyRecord

COLUMNS = ["component", "comparison", "effect", "low", "high", "seeds"]


@study_figure("attribution", order=40)
def attribution_of_study(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """`attribution_figure` of a study; None if it tests no component."""
    table = attribution_table(study).rename(columns={"effect_pct": "effect"})
    if table.empty:
        return None
    table["comparison"] = table["comparison"].str.replace("_", " ")
    return attribution_figure(f"{study.name}: attribution", caption(study, summary), table)


def attribution_figure(title: str, lines: Sequence[str], table: pd.DataFrame) -> Figure:
    """One row per component: its effect on perplexity, with a point and interval per kind of comparison.

    Args:
        title, lines: title, and caption lines beyond the description of what is drawn.
        table: component, comparison (cumulative, leave-one-out, Shapley), effect, low, high (percent of PPL, positive
            is better), seeds. Numbers may be missing.

    Raises:
        ValueError: a column is missing, or the table is empty.
    """
    by_component = checked(table, COLUMNS, "attribution_figure").groupby("component", sort=False)
    comparisons = list(dict.fromkeys(table["comparison"]))
    parts = {str(component): part.to_dict("records") for component, part in by_component}
    labels = [fold(component) for component in parts]
    places = rows(labels, [[0.15] * len(part) for part in parts.values()])
    height = sum(place.height for place in places)
    legend_height = legend_columns(comparisons)[1]
    limits = effect_limits(table[COLUMNS[2:5]].to_numpy(dtype=float, na_value=np.nan))

    def style(comparison: str) -> dict[str, Any]:
        return {
            "color": COLOURS[comparisons.index(comparison) % len(COLOURS)],
            "marker": MARKERS[comparisons.index(comparison) % len(MARKERS)],
        }

    def draw(figure: Figure) -> None:
        axes, names = figure.subplots(2, 1, height_ratios=[max(height, 0.5), legend_height])
        for (component, part), place in zip(parts.items(), places, strict=True):
            for row, y in zip(part, place.slots, strict=True):
                effect, low, high = (float(row[key]) if pd.notna(row[key]) else np.nan for key in COLUMNS[2:5])
                text = precise(effect, low, high)
                said = f"{component}, {row['comparison']}: {text} % of PPL"
                estimate(axes, effect, y, (low, high), said, **style(row["comparison"]))
                beside(axes, y, [text if np.isfinite(effect) else f"{MISSING} unknown"], [0], color="0.25")
        row_axis(axes, places, labels)
        effect_axis(axes, limits)
        axes.grid(axis="x", color=GRID, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("effect of the component on perplexity (%), positive is better")
        axes.set_ylabel("component")
        legend(
            names,
            [Line2D([], [], markersize=4.5, linewidth=1.2, **style(comparison)) for comparison in comparisons],
            comparisons,
        )

    said = [f"Points: effect, whiskers: intervals{visible_guides(limits)}"]
    return framed(title, [*said, *with_seeds(lines, table)], 1.2 + max(height, 0.5) + legend_height, draw)
