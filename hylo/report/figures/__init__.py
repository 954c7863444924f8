"""The figures of a study, one file a family. They are functions of records or of tables; none reads a file.

`FIGURES` are drawn of every study, `TABLE_FIGURES` of a table that a caller has computed. No pyplot, the same bytes for
the same input, and every mark shows its value on pointing where the figure is saved as SVG (`hylo.report.files.save`).
"""

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from hylo.records import StudyRecord
from hylo.report.figures.attribution import attribution_figure
from hylo.report.figures.forest import forest_figure
from hylo.report.figures.heatmap import retrieval_heatmap
from hylo.report.figures.improvement import improvement_figure
from hylo.report.figures.loss import loss_figure
from hylo.report.figures.pareto import pareto_figure, pareto_front
from hylo.report.figures.positions import position_figure, ppl_by_position_figure
from hylo.report.figures.retrieval import retrieval_figure
from hylo.report.figures.trajectories import trajectory_figure

__all__ = [
    "FIGURES",
    "TABLE_FIGURES",
    "attribution_figure",
    "forest_figure",
    "improvement_figure",
    "loss_figure",
    "pareto_figure",
    "pareto_front",
    "position_figure",
    "ppl_by_position_figure",
    "retrieval_figure",
    "retrieval_heatmap",
    "trajectory_figure",
]

FIGURES: dict[str, Callable[[StudyRecord, pd.DataFrame], Figure | None]] = {
    "improvement": improvement_figure,
    "ppl_by_position": position_figure,
    "trajectories": trajectory_figure,
}
"""By file name. None: there is nothing to draw."""

TABLE_FIGURES: dict[str, Callable[[str, Sequence[str], pd.DataFrame], Figure]] = {
    "forest": forest_figure,
    "pareto": pareto_figure,
    "attribution": attribution_figure,
    "retrieval": retrieval_figure,
    "retrieval_heatmap": retrieval_heatmap,
}
"""By file name; arguments are title, lines of the caption and table."""
