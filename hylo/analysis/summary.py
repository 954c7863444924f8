"""The numbers of a study, from its records alone: one row per cell and reference."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hylo import stats
from hylo.analysis.choice_noise import choice_variance
from hylo.analysis.pairs import (
    Pair,
    complete_runs,
    generator,
    mean_nll,
    paired_runs,
    paired_sums,
    percent,
    value_of,
    window_sums,
)
from hylo.analysis.rates import rate_in_words
from hylo.core.errors import RecordError
from hylo.evaluation.metrics import all_metrics
from hylo.runs.layout import FAILED, INTERRUPTED, STUDY, TRACEBACK
from hylo.runs.record import RunRecord, StudyRecord

MAIN, *OTHERS = all_metrics()
COLUMNS = [
    "cell", "reference", "seeds", MAIN.name, f"{MAIN.name}_low", f"{MAIN.name}_high",
    *(metric.name for metric in OTHERS), "mean_window_ppl",
    *(f"{metric.prefix}improvement_{end}" for metric in (MAIN, *OTHERS) for end in ("pct", "low", "high")),
    "trainable_params", "added_params", "params_per_pct", "train_seconds", "tokens_per_second", "peak_memory_bytes",
    "rate", "audit",
]  # fmt: skip
_COUNTS = ["seeds", "trainable_params", "added_params", "peak_memory_bytes"]
_TEXTS = ["cell", "reference", "rate", "audit"]
PASSED = "passed"
_ENDS = {"effect_pct": "pct", "low": "low", "high": "high"}


def summarize(study: StudyRecord) -> pd.DataFrame:
    """Every cell against the base model on the same windows, then the study's named contrasts or, if it names none,
    every cell against the previous row.

    A cell without a complete run has no row (see `incomplete`). Runs are paired by seed and window; the single run of
    the base model pairs with every seed. Columns:

    - `seeds`: the seeds both sides share; all measures of the row are over these. If they share none it is 0, the
      improvement is missing, and the other measures are over all of the cell's seeds.
    - `ppl`, `lim_ppl`, ...: the metrics, from the mean over seeds of mean NLL. Those that older records have no sums
      for have no columns where no record has them.
    - `mean_window_ppl`: arithmetic mean over windows and seeds of per-window perplexity, as published.
    - `improvement_pct`, `lim_improvement_pct`, ...: 100 (1 - PPL / PPL of the reference), likewise for the other
      metrics; 95 % intervals as in `hylo.stats`.
    - `added_params`: trainable parameters beyond the reference's; `params_per_pct`: divided by the improvement.
    - `train_seconds`, `tokens_per_second`: means over seeds; `peak_memory_bytes`: the maximum.
    - `rate`: learning rate, with the multipliers of components that deviate from it; `own`: tuned for the cell.
    - `audit`: passed, or the checks that failed in any run of the cell.

    A perplexity that overflows (a mean NLL above 709 nats) is missing, and so is everything derived from it.

    The bootstrap generator is seeded by the names of cell and reference, so a row does not depend on other rows.

    Raises:
        RecordError: a record is damaged, or two cells were evaluated on different windows.
    """
    if not isinstance(study.manifest.get("base"), str):
        raise RecordError(f"{study.folder / STUDY} does not name the base cell; run the study again to rewrite it")
    known: dict[tuple[Path, ...], stats.Interval] = {}
    rows = [_row(study, cell, reference, known) for cell, reference in compared(study)]
    table: Any = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    kinds = {column: "Int64" if column in _COUNTS else "float64" for column in COLUMNS if column not in _TEXTS}
    table = table.astype(kinds).replace([np.inf, -np.inf], np.nan)
    unmeasured = [metric for metric in OTHERS if not metric.everywhere and table[metric.name].isna().all()]
    left_out = [[each.name, *(f"{each.prefix}improvement_{end}" for end in _ENDS.values())] for each in unmeasured]
    return table.drop(columns=list(itertools.chain(*left_out)))


def incomplete(study: StudyRecord) -> list[str]:
    """One line per run without a result: why (failed, interrupted, damaged, not run), cell and seed, first line of the
    error, folder."""
    lines = []
    for cell, runs in study.cells.items():
        for run in (run for run in runs if not run.complete):
            status = run.result["status"]
            parts = [
                status if status in (FAILED, INTERRUPTED) else "not finished",
                f"{cell} seed {run.seed}",
                _first_line(run),
                str(run.folder),
            ]
            lines.append(f"{parts[0]}: " + ", ".join(part for part in parts[1:] if part))
        lines += study.unread.get(cell, [] if runs else [f"not run: {cell}"])
    return lines


def compared(study: StudyRecord) -> Iterator[tuple[str, str]]:
    """Cell and reference of each row of a summary; the reference of a base model is empty."""
    cells = list(study.cells)
    ran = {cell for cell in cells if complete_runs(study, cell)}
    yield from ((cell, "" if study.is_base(cell) else study.base_of(cell)) for cell in cells if cell in ran)
    for reference, cell in named_contrasts(study) or _neighbours(study):
        if {cell, reference} <= ran:
            yield cell, reference


def named_contrasts(study: StudyRecord) -> list[tuple[str, str]]:
    """Reference and cell of each named contrast between trained cells, without duplicates."""
    named = [(contrast["reference"], contrast["cell"]) for contrast in study.manifest.get("contrasts", [])]
    return [pair for pair in dict.fromkeys(named) if not any(study.is_base(cell) for cell in pair)]


def _neighbours(study: StudyRecord) -> Iterator[tuple[str, str]]:
    for previous, cell in itertools.pairwise(study.cells):
        with_base = study.is_base(previous) or study.is_base(cell)
        if not with_base and study.base_of(previous) == study.base_of(cell):
            yield previous, cell


def _row(
    study: StudyRecord, cell: str, reference: str, known: dict[tuple[Path, ...], stats.Interval]
) -> dict[str, Any]:
    """One row; `known` keeps perplexities with their intervals, which several rows of a cell share."""
    runs, others = complete_runs(study, cell), complete_runs(study, reference)
    pairs = paired_runs(study, cell, reference) if reference else []
    used = [run for run, _ in pairs] or runs
    row: dict[str, Any] = {"cell": cell, "reference": reference, "seeds": len(pairs if reference else runs)}
    nll, tokens = window_sums(used)
    try:
        key = tuple(run.folder for run in used)
        if (ppl := known.get(key)) is None:
            ppl = known[key] = stats.ppl(nll, tokens, generator(cell))
        row |= {MAIN.name: ppl.value, f"{MAIN.name}_low": ppl.low, f"{MAIN.name}_high": ppl.high}
        row |= {metric.name: metric.value(mean_nll(used, metric), 1.0) for metric in OTHERS}
        row["mean_window_ppl"] = stats.mean_window_ppl(nll, tokens)
        if pairs:
            row |= _improvement(pairs, generator(cell, reference), choice_variance(study, cell, reference))
    except ValueError as error:
        raise RecordError(f"{used[0].folder}: {error}") from error
    row |= _cost(used) | {"rate": rate_in_words(study, cell)}
    row["audit"] = ", ".join(sorted({name for run in used for name in value_of(run, "audit", "failed")})) or PASSED
    if others:
        row["added_params"] = row["trainable_params"] - value_of(others[0], "params", "trainable")
    if pairs:
        contrast = row["improvement_pct"], row["improvement_low"], row["improvement_high"]
        if np.isfinite(contrast).all():
            row["params_per_pct"] = stats.params_per_pct(row["added_params"], *contrast)
    return row


def _improvement(pairs: list[Pair], rng: np.random.Generator, chosen: float) -> dict[str, float]:
    """Improvement in every metric with its interval; `chosen` is the variance added by the choice of settings."""
    row = {}
    for metric in all_metrics():
        difference, weights = paired_sums(pairs, metric)
        if metric is not MAIN and weights.size < 2:
            continue  # windows too short to have a middle
        if chosen:
            nats = stats.effect(difference, weights, choice_variance=chosen)
        else:
            nats = stats.difference(difference, weights, rng)
        found = percent(nats, metric, mean_nll([other for _, other in pairs], metric))
        row |= {f"{metric.prefix}improvement_{end}": found[key] for key, end in _ENDS.items()}
    return row


def _cost(runs: list[RunRecord]) -> dict[str, Any]:
    def measured(key: str) -> list[float]:
        values = (value_of(run, "training", key) for run in runs)
        return [value for value in values if value is not None]

    seconds, speed, memory = measured("seconds"), measured("tokens_per_second"), measured("peak_memory_bytes")
    return {
        "trainable_params": value_of(runs[0], "params", "trainable"),
        "train_seconds": float(np.mean(seconds)) if seconds else None,
        "tokens_per_second": float(np.mean(speed)) if speed else None,
        "peak_memory_bytes": max(memory, default=None),
    }


def _first_line(run: RunRecord) -> str:
    """First line of the error that a traceback ends with: the one that says what went wrong."""
    path = run.folder / TRACEBACK
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=-1)
    return next((line.strip() for line in lines[start + 1 :] if line.strip() and not line.startswith(" ")), "")
