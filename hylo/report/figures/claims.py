"""The published claims of a study next to what was measured."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hylo.analysis.contrasts import claim_table
from hylo.report.figures.base import study_figure
from hylo.report.figures.forest import forest_figure
from hylo.report.tables.caption import caption
from hylo.runs.record import StudyRecord


@study_figure("claims", order=10)
def claims_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """One row per claim: published and measured effect; None if nothing comparable was measured."""
    table: Any = claim_table(study)
    measured = table[table["effect_pct"].notna()]
    if measured.empty:
        return None
    named = measured.rename(columns={"effect_pct": "effect", "published_pct": "published"})
    rows = named.assign(component="claim " + named["id"].astype(str), detectable=np.nan)
    return forest_figure(f"{study.name}: published claims", caption(study, summary), rows)
