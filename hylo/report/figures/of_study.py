"""Every figure that a study has something for, by file name."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hylo.analysis.contrasts import attribution_table, claim_table, contrast_table
from hylo.analysis.retrieval import retrieval_table
from hylo.evaluation.metrics import metric_named
from hylo.report.figures.attribution import attribution_figure
from hylo.report.figures.forest import forest_figure
from hylo.report.figures.heatmap import retrieval_heatmap
from hylo.report.figures.improvement import improvement_figure
from hylo.report.figures.learning_rates import learning_rate_figure
from hylo.report.figures.pareto import pareto_figure, pareto_front
from hylo.report.figures.positions import position_figure
from hylo.report.figures.retrieval import retrieval_figure
from hylo.report.figures.trajectories import trajectory_figure
from hylo.report.tables.caption import caption
from hylo.runs.store import StudyRecord

FEWEST_ON_A_FRONT = 3
"""Trained cells from which quality against parameters is worth a figure."""


def study_figures(study: StudyRecord, summary: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Name and figure; those that would be empty are left out."""
    lines = caption(study, summary)
    if len(claims := _claims(study)):
        yield "claims", forest_figure(f"{study.name}: published claims", lines, claims)
    if len(contrasts := _contrasts(study)):
        yield "contrasts", forest_figure(f"{study.name}: contrasts", lines, contrasts)
    if set(summary["reference"]) - {""}:
        yield "improvement", improvement_figure(study, summary)
    attribution = attribution_table(study).rename(columns={"effect_pct": "effect"})
    if len(attribution):
        attribution["way"] = attribution["way"].str.replace("_", " ")
        yield "attribution", attribution_figure(f"{study.name}: attribution", lines, attribution)
    if (rates := learning_rate_figure(study)) is not None:
        yield "learning_rates", rates
    yield "ppl_by_position", position_figure(study, summary)
    front = _front(study, summary)
    if sum(count > 0 for count in front["trainable_params"]) >= FEWEST_ON_A_FRONT:
        yield "pareto", pareto_figure(f"{study.name}: quality against parameters", lines, front)
    retrieval = retrieval_table(study)
    if len(retrieval):
        yield "retrieval", retrieval_figure(f"{study.name}: retrieval by depth", lines, retrieval)
        yield "retrieval_heatmap", retrieval_heatmap(f"{study.name}: retrieval by depth", lines, retrieval)
    if (trajectories := trajectory_figure(study, summary)) is not None:
        yield "trajectories", trajectories


def _contrasts(study: StudyRecord) -> pd.DataFrame:
    names = {"effect_pct": "effect", "detectable_pct": "detectable"}
    table = contrast_table(study).drop_duplicates(["cell", "reference", "component", "measure"])
    drawn: Any = table[[metric_named(name).brief for name in table["measure"]]]
    return drawn.rename(columns=names).assign(published=np.nan)


def _claims(study: StudyRecord) -> pd.DataFrame:
    table: Any = claim_table(study)
    measured = table[table["effect_pct"].notna()]
    named = measured.rename(columns={"effect_pct": "effect", "published_pct": "published"})
    return named.assign(component="claim " + named["id"].astype(str), detectable=np.nan)


def _front(study: StudyRecord, summary: pd.DataFrame) -> pd.DataFrame:
    """Cells that share the first untuned model's windows: perplexities on other windows cannot be compared."""
    rows: Any = summary[summary["reference"].isin(["", study.untuned]) & summary["ppl"].notna()]
    same = [study.untuned_of(cell) == study.untuned for cell in rows["cell"]]
    cells = rows[same].drop_duplicates("cell")
    params = cells["trainable_params"].to_numpy(dtype=float)
    return cells.assign(front=pareto_front(params, cells["ppl"].to_numpy(dtype=float)))
