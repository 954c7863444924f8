"""Columns of the tables in hylo/report/tables/decisions.py: headers, tooltips, formatting."""

import pandas as pd

from hylo.analysis.verdicts import ClaimVerdict
from hylo.evaluation.metrics import all_metrics
from hylo.report.tables.columns import Column, Row, estimate, passage, quantity, text, verdict
from hylo.report.tables.numbers import MISSING
from hylo.report.tables.sentences import spaced


def yes_or_no(said: str) -> str:
    """Tone of a yes/no badge."""
    return "good" if said == "yes" else "bad"


def significant(header: str, key: str, about: str, unit: str = "") -> Column:
    """A numeric column with two significant digits."""

    def show(row: Row) -> str:
        return MISSING if pd.isna(row[key]) else f"{row[key]:.2g}"

    return Column(header=header, about=about, key=key, show=show, numeric=True, unit=unit)


CELL = text("Cell", "cell", "The cell whose improvement is reported.")
REFERENCE = text("Reference", "reference", "The cell it is compared with, paired by seed and window.")
COMPONENT = text("Component", "component", "What the two cells differ in.")
COMPARISON = text(
    "Comparison",
    "comparison",
    "added to a smaller method; cumulative; left out of the whole stack; alone; Shapley value.",
)
SEEDS = quantity("Seeds", "seeds", "Seeds both cells share. With one, evaluation noise only.", decimals=0)
EFFECT = estimate(
    "Improvement (%)", "effect_pct", "low", "high", "100 (1 - PPL / PPL of the reference). Higher is better.", unit="%"
)
ADDED = quantity(
    "Added params", "added_params", "Trainable parameters beyond the reference's.", decimals=0, unit="parameters"
)

OTHER_EFFECTS = {
    metric.name: estimate(
        f"{metric.short} improvement (%)",
        f"{metric.prefix}effect_pct",
        f"{metric.prefix}low",
        f"{metric.prefix}high",
        f"The same for {metric.about}.",
        unit="%",
        optional=not metric.everywhere,
    )
    for metric in all_metrics()[1:]
}
"""Improvements in the metrics other than the main one, by name."""
LIM = OTHER_EFFECTS["lim_ppl"]
IN_BRIEF = [OTHER_EFFECTS[metric.name] for metric in all_metrics()[1:] if metric.brief]
P = significant("p", "p_holm", "Test for no effect on PPL; two-sided, Holm-corrected over all contrasts.")
DETECTABLE = significant("Detectable (%)", "detectable_pct", "Smallest effect detected in 4 of 5 such studies.", "%")
PER_PCT = quantity(
    "Params per 1 %",
    "params_per_pct",
    "Added parameters divided by the improvement; no value where its interval reaches 0.",
    decimals=0,
    unit="parameters",
)
VERDICT = verdict(
    "Verdict",
    "verdict",
    "core: above 5 %; optional: 2 to 5 %; drop: below 2 %; or red flag. Untuned, undertrained: a lead, not a verdict.",
)
RESTS_ON = text("Rests on", "rests_on", "Learning rates and budget of both arms, and signs that one could go further.")
CONTRASTS = [
    CELL, REFERENCE, COMPONENT, COMPARISON, SEEDS, EFFECT, *OTHER_EFFECTS.values(), P, DETECTABLE, ADDED, PER_PCT,
    VERDICT, RESTS_ON,
]  # fmt: skip
CONTRASTS_IN_BRIEF = [CELL, REFERENCE, SEEDS, EFFECT, *IN_BRIEF, P, DETECTABLE, PER_PCT, VERDICT]
"""Columns that fit on a console or on paper."""

CLAIM = text("Claim", "id", "Its row in experiments/claims.csv.")
MEASURE = text("Measure", "measure", "; ".join(f"{metric.name}: {metric.about}" for metric in all_metrics()))
PUBLISHED = quantity("Published (%)", "published_pct", "The published improvement.", decimals=2, unit="%")
CLAIM_P = significant("p", "p_holm", "Test for half the published effect; two-sided, Holm-corrected over all claims.")
CLAIM_VERDICT = verdict("Verdict", "verdict", "; ".join(f"{spaced(each.name)}: {each.value}" for each in ClaimVerdict))
SEEDS_TO_DECIDE = quantity(
    "Seeds to decide",
    "seeds_to_decide",
    "Seeds needed to distinguish an effect of the measured size from half the published one.",
    decimals=0,
)
SOURCE = text("Source", "source", "Where the number was published.")
NOTE = text("Note", "note", "Remarks on the claim.")
CLAIMS = [
    CLAIM, CELL, REFERENCE, MEASURE, PUBLISHED, EFFECT, SEEDS, CLAIM_P, CLAIM_VERDICT, RESTS_ON, SEEDS_TO_DECIDE,
    SOURCE, NOTE,
]  # fmt: skip
CLAIMS_IN_BRIEF = [
    CLAIM, CELL, REFERENCE, MEASURE, PUBLISHED, EFFECT, SEEDS, CLAIM_P, CLAIM_VERDICT, SEEDS_TO_DECIDE
]  # fmt: skip

ATTRIBUTION = [COMPONENT, COMPARISON, CELL, REFERENCE, SEEDS, EFFECT, ADDED]
TUNING = [
    CELL,
    text("Chosen", "chosen", "Lowest validation perplexity."),
    quantity("Trials", "trials", "Settings tried, times seeds.", decimals=0),
    text("Tried", "tried", "Validation perplexity of every setting, geometric mean over seeds."),
    text("At the edge of the grid", "end", "Keys whose best value has no worse one beyond it; a better one may exist."),
]

LENGTH = quantity("Length", "length", "Of the text that is asked about.", decimals=0)
UNIT = text("Unit", "unit", "What the length counts.")
FLATTENING = estimate(
    "Flattening (points)",
    "flattening",
    "low",
    "high",
    "Accuracy at the ends minus the middle, for the reference minus the cell.",
    unit="points",
)
ACCURACY = estimate(
    "Accuracy (points)", "accuracy", "accuracy_low", "accuracy_high", "Difference over all depths.", unit="points"
)
RETRIEVAL_P = significant("p", "p_holm", "Test for no flattening; two-sided, Holm-corrected per length.")
AGREES = text("LIM-PPL agrees", "agrees", "Same sign as the flattening; open where either interval includes 0.")
RETRIEVAL_CONTRASTS = [
    CELL, REFERENCE, COMPONENT, LENGTH, UNIT, SEEDS, FLATTENING, RETRIEVAL_P, ACCURACY, LIM, AGREES
]  # fmt: skip
RETRIEVAL_CONTRASTS_IN_BRIEF = [CELL, REFERENCE, LENGTH, SEEDS, FLATTENING, RETRIEVAL_P, ACCURACY, LIM, AGREES]
RETRIEVAL = [
    CELL,
    LENGTH,
    UNIT,
    SEEDS,
    quantity("Accuracy (%)", "accuracy", "Exact-match accuracy, mean over depths.", unit="%"),
    estimate(
        "Ends minus middle (points)",
        "ends_minus_middle",
        "low",
        "high",
        "Accuracy at the first and last depth minus that in between.",
        unit="points",
    ),
]

TEXTS = [
    quantity("Prompt", "prompt", "Number of the beginning.", decimals=0),
    passage("Beginning", "beginning", "What every cell continues."),
    CELL,
    passage("Continuation", "continuation", "What the cell's first seed writes."),
]
