"""What a study decides, as tables for a reader: claims, contrasts, attribution, criteria, chosen settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from hylo.analysis.contrasts import SHAPLEY, attribution_table, claim_table, contrast_table, criteria_table, level
from hylo.analysis.rates import choice_table
from hylo.analysis.retrieval_contrasts import retrieval_cells, retrieval_contrasts
from hylo.analysis.verdicts import ClaimVerdict
from hylo.evaluation.metrics import all_metrics
from hylo.report.tables import decision_columns as show
from hylo.report.tables.caption import marked
from hylo.report.tables.columns import verdict
from hylo.report.tables.sentences import spaced
from hylo.report.tables.table import Table
from hylo.runs.store import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Decision(Table):
    """A table of what a study decides."""

    name: str
    """Of its file, without .csv."""
    printed: bool = False
    """Whether it is shown on the console, too."""


def decisions(study: StudyRecord) -> list[Decision]:
    """The tables that have rows."""
    made = (_claims, _contrasts, _retrieval_contrasts, _retrieval, _attribution, _criteria, _tuning)
    return [decision for make in made if len((decision := make(study)).frame)]


def for_readers(decided: Sequence[Decision], summary: pd.DataFrame) -> list[Decision]:
    """The same with the cells marked whose audit failed, as in the tables of the summary."""
    return [replace(each, frame=marked(each.frame, summary)) for each in decided]


def wide_contrasts(study: StudyRecord) -> pd.DataFrame:
    """`contrast_table` with one row per contrast: the effects on other metrics (lim_effect_pct, lim_low, lim_high,
    lim_p_holm, ...) beside that on the main one."""
    table: Any = contrast_table(study)
    main, *others = all_metrics()
    key = ["cell", "reference", "component", "comparison"]
    wide = table[table["measure"] == main.name].drop(columns="measure")
    for metric in others:
        names = {name: f"{metric.prefix}{name}" for name in ("effect_pct", "low", "high", "p_holm")}
        wide = wide.merge(
            table[table["measure"] == metric.name][[*key, *names]].rename(columns=names), on=key, how="left"
        )
    return wide


def _contrasts(study: StudyRecord) -> Decision:
    return Decision(
        name="contrasts",
        title="Contrasts",
        about=f"Improvement of perplexity by the cell over its reference, paired by seed and window, with intervals of "
        f"{100 * level(study):.4g} %. p: of no effect, two-sided, by Holm over the contrasts of the study. Detectable: "
        f"the smallest improvement that this many seeds and windows would show in four of five studies. One seed "
        f"covers evaluation noise only, and decides nothing. Untuned: cells kept the learning rates of their files. "
        f"Undertrained: too few tokens, or a component could go further (see Rests on). Both are leads, no verdicts.",
        frame=wide_contrasts(study),
        columns=show.CONTRASTS,
        brief=show.CONTRASTS_IN_BRIEF,
        printed=True,
    )


def _claims(study: StudyRecord) -> Decision:
    meaning = "; ".join(f"{spaced(each.name)}: {each.value}" for each in ClaimVerdict)
    return Decision(
        name="claims",
        title="Published claims",
        about=f"{meaning[:1].upper()}{meaning[1:]}. Decided by the interval and by Holm over the claims of the study, "
        f"and never by one seed. Where nothing is measured the claim names another model or text.",
        frame=claim_table(study),
        columns=show.CLAIMS,
        brief=show.CLAIMS_IN_BRIEF,
        printed=True,
    )


def _retrieval_contrasts(study: StudyRecord) -> Decision:
    return Decision(
        name="retrieval_contrasts",
        title="Retrieval: contrasts",
        about="Flattening: how much less a cell's accuracy depends on the depth of the fact than its reference's (ends "
        "less middle), in points. A cell that forgets everything is flat, too, so the difference of accuracy "
        "stands beside it. Agrees: whether LIM-PPL and flattening have the same sign, where both are shown.",
        frame=retrieval_contrasts(study),
        columns=show.RETRIEVAL_CONTRASTS,
        brief=show.RETRIEVAL_CONTRASTS_IN_BRIEF,
        printed=True,
    )


def _retrieval(study: StudyRecord) -> Decision:
    return Decision(
        name="retrieval",
        title="Retrieval: cells",
        about="Exact answers to questions about lists of facts, by the number of facts.",
        frame=retrieval_cells(study),
        columns=show.RETRIEVAL,
    )


def _attribution(study: StudyRecord) -> Decision:
    frame = attribution_table(study).assign(comparison=lambda table: table["comparison"].str.replace("_", " "))
    shapley = " Shapley: the mean over all orders of adding the components one after the other."
    return Decision(
        name="attribution",
        title="Attribution",
        about="What each component earns, by every comparison that the study makes."
        + shapley * (SHAPLEY in set(frame["comparison"])),
        frame=frame,
        columns=show.ATTRIBUTION,
    )


def _criteria(study: StudyRecord) -> Decision:
    frame = criteria_table(study)
    named = ["cell", "reference", "component"]
    told = "Whether the criterion holds; for effects, with the whole interval."
    columns = [verdict(name, name, told, tone=show.yes_or_no) for name in frame.columns if name not in named]
    return Decision(
        name="criteria",
        title="Success criteria and red flags",
        about="Of each contrast that adds or removes a component.",
        frame=frame,
        columns=[show.CELL, show.REFERENCE, show.COMPONENT, *columns],
    )


def _tuning(study: StudyRecord) -> Decision:
    return Decision(
        name="tuning",
        title="Chosen on the validation split",
        about="The setting with the lowest perplexity on validation documents, mean over trial seeds that no reported "
        "run has. Every cell had as many trials as the others.",
        frame=choice_table(study),
        columns=show.TUNING,
        printed=True,
    )
