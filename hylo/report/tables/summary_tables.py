"""Tables of a summary: every cell against its base model, then against other cells."""

import pandas as pd

from hylo.analysis.cost import cost_of
from hylo.analysis.pairs import complete_runs
from hylo.analysis.summary import named_contrasts
from hylo.analysis.task_scores import task_scores
from hylo.report.tables import summary_columns as show
from hylo.report.tables.caption import by_lines, caption, marked
from hylo.report.tables.columns import Column
from hylo.report.tables.table import Table
from hylo.report.tables.task_columns import with_scores
from hylo.runs.record import StudyRecord

BASE, PREVIOUS, NAMED = "Against the base model", "Against the previous row", "Contrasts"


def split_by_reference(summary: pd.DataFrame, study: StudyRecord) -> dict[str, pd.DataFrame]:
    """Rows against the base model (including its own row) and against other cells, by table title."""
    against_base = summary["reference"].map(lambda cell: not cell or study.is_base(cell)).astype(bool)
    title = NAMED if named_contrasts(study) else PREVIOUS
    return {BASE: summary.loc[against_base], title: summary.loc[~against_base]}


def summary_tables(study: StudyRecord, summary: pd.DataFrame) -> list[Table]:
    """The non-empty tables, with cells marked whose audit failed.

    What the study cost stands once, below the first table. Scores of tasks stand beside PPL where records hold them.
    Named contrasts have a table of their own (`hylo.report.tables.decisions`).
    """
    lines = caption(study, summary)
    cost = cost_of(study)
    paid = [str(cost)] if cost and cost.utilization is not None else []
    runs = [run for cell in study.cells for run in complete_runs(study, cell)]
    base_brief = [each for each in show.BASE_IN_BRIEF if by_lines(runs) or each is not show.MEAN_WINDOW_PPL]
    shown = {BASE: (show.BASE, base_brief), PREVIOUS: (show.CONTRASTS, show.CONTRASTS_IN_BRIEF)}
    scored, scores = with_scores(summary, task_scores(study))
    shown[BASE] = _after(shown[BASE][0], show.PPL, scores), _after(shown[BASE][1], show.PPL, scores)
    return [
        Table(
            title=title,
            frame=marked(part, summary),
            columns=shown[title][0],
            brief=shown[title][1],
            notes=lines + paid * (title == BASE),
        )
        for title, part in split_by_reference(scored, study).items()
        if len(part) and title in shown
    ]


def _after(columns: list[Column], place: Column, added: list[Column]) -> list[Column]:
    index = columns.index(place) + 1
    return [*columns[:index], *added, *columns[index:]]
