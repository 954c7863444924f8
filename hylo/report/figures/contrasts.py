"""The contrasts of a study with their intervals."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hylo.analysis.contrasts import contrast_table
from hylo.evaluation.metrics import metric_named
from hylo.report.figures.base import study_figure
from hylo.report.figures.forest import forest_figure
from hylo.report.tables.caption import caption
from hylo.runs.record import StudyRecord


@study_figure("contrasts", order=20)
def contrasts_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """One row per contrast, once even if it is named in several ways; None if the study has none."""
    table: Any = contrast_table(study).drop_duplicates(["cell", "reference", "component", "measure"])
    drawn = table[[metric_named(name).brief for name in table["measure"]]]
    if drawn.empty:
        return None
    rows = drawn.rename(columns={"effect_pct": "effect", "detectable_pct": "detectable"}).assign(published=np.nan)
    return forest_figure(f"{study.name}: contrasts", caption(study, summary), rows)
