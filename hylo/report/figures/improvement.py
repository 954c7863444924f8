"""The improvement of each cell over the base model."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hylo.report.figures.base import study_figure
from hylo.report.figures.marks import ends, row_axis, rows
from hylo.report.figures.style import COLOURS, GRID, fold, framed
from hylo.report.render.hover import hover
from hylo.report.tables.caption import caption
from hylo.report.tables.numbers import MISSING, interval
from hylo.report.tables.summary_tables import split_by_reference
from hylo.runs.record import StudyRecord


@study_figure("improvement", order=30)
def improvement_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """One bar per trained cell: improvement over the base model in percent, with its interval.

    None if nothing was trained.
    """
    if not set(summary["reference"]) - {""}:
        return None
    against_base, _ = split_by_reference(summary, study).values()
    part: Any = against_base[against_base["reference"] != ""]
    labels = [fold(cell) for cell in part["cell"]]
    places = rows(labels, [[0.2]] * len(part), gap=0.12)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, cell, (value, low, high) in zip(places, part["cell"], ends(part, "improvement_pct"), strict=True):
            text = interval(value, low, high)
            if np.isfinite(value):
                (bar,) = axes.barh(place.centre, value, height=0.2, color=COLOURS[0], alpha=0.85)
                hover(bar, f"{cell}: improvement {text} %")
            if np.isfinite([low, high]).all():
                whisker = axes.errorbar(
                    (low + high) / 2,
                    place.centre,
                    xerr=(high - low) / 2,
                    fmt="none",
                    ecolor="black",
                    elinewidth=1,
                    capsize=3,
                )
                hover(whisker.lines[2][0], f"{cell}: improvement {text} %")
            axes.annotate(
                text if np.isfinite(value) else f"{MISSING} no pair of complete runs",
                (1.01, place.centre),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
            )
        axes.axvline(0, color="black", linewidth=0.8)
        row_axis(axes, places, labels)
        axes.margins(x=0.04)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("improvement in perplexity over the base model (%), higher is better")
        axes.set_ylabel("cell")

    lines = ["Bars: 100 (1 - PPL / PPL of the base model), whiskers: intervals", *caption(study, summary)]
    height = 1.5 + max(0.6, sum(place.height for place in places))
    return framed(f"{study.name}: improvement over the base model", lines, height, draw)
