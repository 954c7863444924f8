"""Retrieval accuracy as small heat maps: every number of a study at a glance, without overlapping lines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hylo.analysis.retrieval import retrieval_table
from hylo.report.figures.base import study_figure
from hylo.report.figures.marks import checked, with_seeds
from hylo.report.figures.multiples import grid, label_outer, panels
from hylo.report.figures.retrieval import COLUMNS, as_percent, names_of_lengths, where
from hylo.report.figures.style import framed
from hylo.report.render.hover import hover
from hylo.report.tables.caption import caption
from hylo.report.tables.numbers import interval, number
from hylo.runs.record import StudyRecord

_COLOURS = colormaps["cividis"]  # sequential and safe for colour-blind readers
_SCALE = Normalize(0, 100)
_SQUARE, _ROW = 0.18, 0.18  # inches: room for three digits
_NUMBER = 6  # points


@study_figure("retrieval_heatmap", order=90)
def heatmap_of_study(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """`retrieval_heatmap` of the probed cells; None if none was probed."""
    table = retrieval_table(study)
    if table.empty:
        return None
    return retrieval_heatmap(f"{study.name}: retrieval by depth", caption(study, summary), table)


def retrieval_heatmap(title: str, lines: Sequence[str], table: pd.DataFrame) -> Figure:
    """One small map per cell: length against depth of the fact asked for, with the accuracy in each square.

    A row is divided evenly among the depths asked for, from the first fact on the left to the last. A missing accuracy
    leaves its square white. Takes and raises the same as `retrieval_figure`.
    """
    whole = as_percent(checked(table, COLUMNS, "retrieval_heatmap"))
    cells, lengths = list(dict.fromkeys(table["cell"])), names_of_lengths(table)
    widest = int(whole.groupby(["cell", "length"]).size().max())
    columns = max(1, min(5, int(6.0 / (widest * _SQUARE + 0.2))))
    # As many columns as the page has room for without numbers overlapping.
    shape = grid(cells, columns=columns, panel=_ROW * len(lengths), width=max(14, int(85 / columns)))
    half = (whole["accuracy_high"] - whole["accuracy_low"]).max() / 2
    said = ["Numbers: accuracy in percent", f"widest interval: ± {number(half)} points"]

    def draw(figure: Figure) -> None:
        axes = panels(figure, shape)
        for panel, cell in zip(axes, cells, strict=True):
            _draw(panel, whole[whole["cell"] == cell], [*lengths])
        label_outer(axes, shape, "depth of the fact", str(table["unit"].iloc[0]))
        bar = figure.colorbar(ScalarMappable(_SCALE, _COLOURS), ax=axes, shrink=min(1, 1.6 / shape.height), pad=0.015)
        bar.set_label("accuracy (%)", fontsize=8)
        bar.ax.tick_params(labelsize=7)

    return framed(title, [*said, *with_seeds(lines, table)], max(1.7, shape.height + 0.9), draw)


def _draw(axes: Any, table: Any, lengths: list[int]) -> None:
    for row, length in enumerate(lengths):
        part = table[table["length"] == length].to_dict("records")
        for place, record in enumerate(part):
            accuracy, start, width = record["accuracy"], place / len(part), 1 / len(part)
            known = bool(np.isfinite(accuracy))
            square = axes.add_patch(
                Rectangle(
                    (start, row - 0.5),
                    width,
                    1,
                    facecolor=_COLOURS(_SCALE(accuracy)) if known else "white",
                    edgecolor="white",
                    linewidth=0.6,
                )
            )
            value = interval(accuracy, record["accuracy_low"], record["accuracy_high"])
            hover(square, f"{record['cell']}, {where(record)}: accuracy {value} %")
            axes.text(
                start + width / 2,
                row,
                number(accuracy, 0),
                ha="center",
                va="center_baseline",
                fontsize=_NUMBER,
                color="black" if not known or accuracy > 47 else "white",
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(lengths) - 0.5, -0.5)
    axes.set_xticks([0, 0.5, 1], ["first", "middle", "last"])
    axes.set_yticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
