"""Tables of what a study decides: claims, contrasts, retrieval, tasks, attribution, criteria, tuned settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from hylo.analysis.contrasts import SHAPLEY, attribution_table, claim_table, contrast_table, criteria_table, level
from hylo.analysis.rates import choice_table
from hylo.analysis.readings import texts_table
from hylo.analysis.retrieval_contrasts import retrieval_cells, retrieval_contrasts
from hylo.analysis.task_scores import task_contrasts, task_scores
from hylo.analysis.verdicts import ClaimVerdict
from hylo.core.errors import RecordError
from hylo.evaluation.metrics import all_metrics
from hylo.report.tables import decision_columns as show
from hylo.report.tables import task_columns as show_tasks
from hylo.report.tables.caption import marked
from hylo.report.tables.columns import verdict
from hylo.report.tables.sentences import spaced
from hylo.report.tables.table import Table
from hylo.runs.record import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Decision(Table):
    """A table of what a study decides."""

    name: str = ""
    """File name without .csv: its key in `MAKERS`."""
    printed: bool = False
    """Whether it is also shown on the console."""


def decisions(study: StudyRecord, failed: list[str] | None = None) -> list[Decision]:
    """The tables that have rows.

    Args:
        study: the study's records.
        failed: takes a line for each table that cannot be made; None: its error is raised.
    """
    found = []
    for name, make in MAKERS.items():
        try:
            decision = replace(make(study), name=name)
        except RecordError:  # the records themselves are at fault, and with them every table
            raise
        except Exception as error:
            if failed is None:
                raise
            failed.append(f"table {name} cannot be made: {type(error).__name__}: {error}")
            continue
        if len(decision.frame):
            found.append(decision)
    return found


def for_readers(decided: Sequence[Decision], summary: pd.DataFrame) -> list[Decision]:
    """The same tables with cells marked whose audit failed, as in the summary."""
    return [replace(each, frame=marked(each.frame, summary)) for each in decided]


def wide_contrasts(study: StudyRecord) -> pd.DataFrame:
    """`contrast_table` with one row per contrast: effects on other metrics (lim_effect_pct, lim_low, lim_high,
    lim_p_holm, ...) in columns next to that on the main one."""
    table: Any = contrast_table(study)
    main, *others = all_metrics()
    key = ["cell", "reference", "component", "comparison"]
    wide = table[table["measure"] == main.name].drop(columns="measure")
    measured = set(table["measure"])
    for metric in (metric for metric in others if metric.everywhere or metric.name in measured):
        names = {name: f"{metric.prefix}{name}" for name in ("effect_pct", "low", "high", "p_holm")}
        wide = wide.merge(
            table[table["measure"] == metric.name][[*key, *names]].rename(columns=names), on=key, how="left"
        )
    return wide


def _contrasts(study: StudyRecord) -> Decision:
    return Decision(
        title="Contrasts",
        about=f"Improvement in perplexity of the cell over its reference, paired by seed and window, with "
        f"{100 * level(study):.4g} % intervals. p: two-sided test for no effect, Holm-corrected over all contrasts. "
        f"Detectable: the smallest improvement that this many seeds and windows would detect in four of five studies. "
        f"One seed covers evaluation noise only and decides nothing. Untuned: an arm kept its default learning rate. "
        f"Undertrained: too few tokens, or an arm could go further (see Rests on). Both are leads, not verdicts.",
        frame=wide_contrasts(study),
        columns=show.CONTRASTS,
        brief=show.CONTRASTS_IN_BRIEF,
        printed=True,
    )


def _claims(study: StudyRecord) -> Decision:
    meaning = "; ".join(f"{spaced(each.name)}: {each.value}" for each in ClaimVerdict)
    return Decision(
        title="Published claims",
        about=f"{meaning[:1].upper()}{meaning[1:]}. Decided by the interval and Holm's correction over the study's "
        f"claims, never by one seed. Claims without a measurement name another model or text.",
        frame=claim_table(study),
        columns=show.CLAIMS,
        brief=show.CLAIMS_IN_BRIEF,
        printed=True,
    )


def _retrieval_contrasts(study: StudyRecord) -> Decision:
    return Decision(
        title="Retrieval: contrasts",
        about="Flattening: how much less the cell's accuracy depends on the depth of the fact than its reference's "
        "(ends minus middle), in points. A cell that forgets everything is flat too, so the difference in accuracy is "
        "given as well. Agrees: whether LIM-PPL and flattening have the same sign, where both intervals exclude 0.",
        frame=retrieval_contrasts(study),
        columns=show.RETRIEVAL_CONTRASTS,
        brief=show.RETRIEVAL_CONTRASTS_IN_BRIEF,
        printed=True,
    )


def _retrieval(study: StudyRecord) -> Decision:
    return Decision(
        title="Retrieval: cells",
        about="Exact answers to questions about facts in lists or haystacks, by their length.",
        frame=retrieval_cells(study),
        columns=show.RETRIEVAL,
    )


def _task_contrasts(study: StudyRecord) -> Decision:
    return Decision(
        title="Tasks: contrasts",
        about=f"Score of the cell minus that of its reference, in the metric's own unit, paired by seed and item, with "
        f"{100 * level(study):.4g} % intervals. p: two-sided test for no difference, Holm-corrected over the rows of a "
        f"task and metric. Unpaired: the half-width that the standard errors of lm-eval would give.",
        frame=task_contrasts(study),
        columns=show_tasks.CONTRASTS,
        brief=show_tasks.CONTRASTS_IN_BRIEF,
        printed=True,
    )


def _tasks(study: StudyRecord) -> Decision:
    return Decision(
        title="Tasks: cells",
        about="Scores of tasks (probe=tasks), as lm-eval computes them, with intervals over seeds and items.",
        frame=task_scores(study),
        columns=show_tasks.SCORES,
    )


def _texts(study: StudyRecord) -> Decision:
    return Decision(
        title="Texts",
        about="What each cell's first seed writes after the same beginning (probe=texts), to be read: nothing is "
        "scored. The base model's own continuation stands first.",
        frame=texts_table(study),
        columns=show.TEXTS,
    )


def _attribution(study: StudyRecord) -> Decision:
    frame = attribution_table(study).assign(comparison=lambda table: table["comparison"].str.replace("_", " "))
    shapley = " Shapley: mean over all orders of adding the components one by one."
    return Decision(
        title="Attribution",
        about="What each component contributes, under every comparison the study makes."
        + shapley * (SHAPLEY in set(frame["comparison"])),
        frame=frame,
        columns=show.ATTRIBUTION,
    )


def _criteria(study: StudyRecord) -> Decision:
    frame = criteria_table(study)
    named = ["cell", "reference", "component"]
    told = "Whether the criterion holds; effects must meet it with the whole interval."
    columns = [verdict(name, name, told, tone=show.yes_or_no) for name in frame.columns if name not in named]
    return Decision(
        title="Success criteria and red flags",
        about="For each contrast that adds or removes a component.",
        frame=frame,
        columns=[show.CELL, show.REFERENCE, show.COMPONENT, *columns],
    )


def _tuning(study: StudyRecord) -> Decision:
    return Decision(
        title="Chosen on the validation split",
        about="The setting with the lowest mean perplexity on validation documents, over trial seeds that no reported "
        "run uses. Every cell had the same number of trials.",
        frame=choice_table(study),
        columns=show.TUNING,
        printed=True,
    )


MAKERS: dict[str, Callable[[StudyRecord], Decision]] = {
    "claims": _claims,
    "contrasts": _contrasts,
    "retrieval_contrasts": _retrieval_contrasts,
    "retrieval": _retrieval,
    "task_contrasts": _task_contrasts,
    "tasks": _tasks,
    "texts": _texts,
    "attribution": _attribution,
    "criteria": _criteria,
    "tuning": _tuning,
}
"""What makes each table, by name and in the order of a report."""
