"""The figures of a study, one file a family. They are functions of records or of tables; none reads a file.

`study_figures` draws all that a study has something for. No pyplot, the same bytes for
the same input, and every mark shows its value on pointing where the figure is saved as SVG
(`hylo.report.render.files.save`).
"""

from hylo.report.figures.attribution import attribution_figure
from hylo.report.figures.forest import forest_figure
from hylo.report.figures.heatmap import retrieval_heatmap
from hylo.report.figures.improvement import improvement_figure
from hylo.report.figures.learning_rates import learning_rate_figure
from hylo.report.figures.loss import loss_figure
from hylo.report.figures.of_study import study_figures
from hylo.report.figures.pareto import pareto_figure, pareto_front
from hylo.report.figures.positions import position_figure, ppl_by_position_figure
from hylo.report.figures.retrieval import retrieval_figure
from hylo.report.figures.trajectories import trajectory_figure

__all__ = [
    "attribution_figure",
    "forest_figure",
    "improvement_figure",
    "learning_rate_figure",
    "loss_figure",
    "pareto_figure",
    "pareto_front",
    "position_figure",
    "ppl_by_position_figure",
    "retrieval_figure",
    "retrieval_heatmap",
    "study_figures",
    "trajectory_figure",
]
