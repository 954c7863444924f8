"""Columns of the tables in hylo/report/tables/summary_tables.py: headers, tooltips, formatting."""

from hylo.analysis.summary import PASSED
from hylo.evaluation.metrics import all_metrics
from hylo.report.tables.columns import estimate, quantity, text, verdict

CELL = text("Cell", "cell", "What was trained. [!] after a name: its audit failed. Column cell of summary.csv.")
REFERENCE = text("Reference", "reference", "The cell this row is compared with. Column reference.")
SEEDS = quantity("Seeds", "seeds", "Seeds shared by the cell and its reference. Column seeds.", decimals=0)
PPL = estimate(
    "PPL [95 %]",
    "ppl",
    "ppl_low",
    "ppl_high",
    "Perplexity: exp of the mean negative log-likelihood (nats) per token; geometric mean over seeds. "
    "Lower is better. Column ppl.",
)
OTHER_METRICS = {
    metric.name: quantity(
        metric.label,
        metric.name,
        f"{metric.about[:1].upper()}{metric.about[1:]}. Lower is better. Column {metric.name}.",
        optional=not metric.everywhere,
    )
    for metric in all_metrics()[1:]
}
"""The metrics other than the main one, by name."""
MEAN_WINDOW_PPL = quantity(
    "Mean window PPL",
    "mean_window_ppl",
    "Arithmetic mean of per-window perplexities, as some papers report it; not an estimate of PPL. "
    "Column mean_window_ppl.",
)
IMPROVEMENT = estimate(
    "Improvement (%) [95 %]",
    "improvement_pct",
    "improvement_low",
    "improvement_high",
    "100 (1 - PPL / PPL of the reference), paired by seed and window. Higher is better. Column improvement_pct.",
    unit="%",
)
OTHER_IMPROVEMENTS = {
    metric.name: estimate(
        f"{metric.short} improvement (%) [95 %]",
        f"{metric.prefix}improvement_pct",
        f"{metric.prefix}improvement_low",
        f"{metric.prefix}improvement_high",
        f"The same improvement in {metric.about}. Higher is better. Column {metric.prefix}improvement_pct.",
        unit="%",
        optional=not metric.everywhere,
    )
    for metric in all_metrics()[1:]
}
BRIEF = [metric.name for metric in all_metrics()[1:] if metric.brief]
TRAINABLE = quantity(
    "Trainable params",
    "trainable_params",
    "Parameters that training changes. Column trainable_params.",
    decimals=0,
    unit="parameters",
)
ADDED = quantity(
    "Added params",
    "added_params",
    "Trainable parameters beyond the reference's. Column added_params.",
    decimals=0,
    unit="parameters",
)
PER_PCT = quantity(
    "Params per 1 %",
    "params_per_pct",
    "Added parameters divided by the improvement in percent, both against the same reference; no value where the "
    "improvement's interval reaches 0. Column params_per_pct.",
    decimals=0,
    unit="parameters",
)
SECONDS = quantity(
    "Training (s)", "train_seconds", "Training time in seconds, mean over seeds. Column train_seconds.", unit="s"
)
SPEED = quantity(
    "Tokens/s",
    "tokens_per_second",
    "Training tokens per second, mean over seeds. Column tokens_per_second.",
    decimals=0,
    unit="tokens/s",
)
MEMORY = quantity(
    "Peak memory (MiB)",
    "peak_memory_bytes",
    "Peak memory during training, maximum over seeds. Column peak_memory_bytes.",
    decimals=0,
    unit="bytes",
    scale=2**20,
)
AUDIT = verdict(
    "Audit",
    "audit",
    "Checks before the first step: passed, or those that failed in any run of the cell. Column audit.",
    tone=lambda words: "good" if words == PASSED else "bad",
)
RATE = text(
    "Rate",
    "rate",
    "Learning rate, with the multipliers of components that deviate from it; own: tuned for this cell on validation "
    "documents. Column rate.",
)
CONTRASTS = [
    CELL, REFERENCE, RATE, SEEDS, PPL, *OTHER_METRICS.values(), MEAN_WINDOW_PPL, IMPROVEMENT,
    *OTHER_IMPROVEMENTS.values(), TRAINABLE, ADDED, PER_PCT, SECONDS, SPEED, MEMORY, AUDIT,
]  # fmt: skip
CONTRASTS_IN_BRIEF = [
    CELL, REFERENCE, SEEDS, IMPROVEMENT, *(OTHER_IMPROVEMENTS[name] for name in BRIEF), ADDED, PER_PCT
]  # fmt: skip
"""Columns that fit on a console or on paper."""

# Relative to the base model, added parameters equal trained parameters and the reference is always the same.
BASE = [column for column in CONTRASTS if column not in (REFERENCE, ADDED)]
_GAINS = [
    quantity(f"{metric.short} improvement (%)", f"{metric.prefix}improvement_pct", metric.about, unit="%")
    for metric in all_metrics()[1:]
    if metric.brief
]
BASE_IN_BRIEF = [
    CELL, RATE, SEEDS, PPL, *(OTHER_METRICS[name] for name in BRIEF), MEAN_WINDOW_PPL, IMPROVEMENT, *_GAINS, TRAINABLE,
    PER_PCT, SECONDS, MEMORY,
]  # fmt: skip
