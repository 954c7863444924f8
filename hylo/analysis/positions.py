"""Perplexity by position in the window, with intervals, and its improvement over the base model."""

from typing import Any

import numpy as np
import pandas as pd

from hylo import stats
from hylo.analysis.pairs import complete_runs, generator, paired_runs, same_windows, sums
from hylo.core.errors import RecordError
from hylo.runs.layout import EVAL
from hylo.runs.record import RunRecord, StudyRecord

COLUMNS = [
    "cell", "bin", "seeds", "ppl", "ppl_low", "ppl_high", "improvement_pct", "improvement_low", "improvement_high",
]  # fmt: skip
# Only for bands in figures: the tables' number, for every cell, bin and measure, would dominate report time.
_RESAMPLES = 2_000
_MISSING = stats.Interval(np.nan, np.nan, np.nan)


def ppl_by_bin(study: StudyRecord) -> pd.DataFrame:
    """One row per cell and position bin: perplexity, and its improvement over the base model in percent.

    Estimates and intervals (95 %) are those of `hylo.stats` over the windows that reach into the bin: exp of the mean
    over seeds of log PPL, improvements paired by window and seed. Intervals are missing where only one window reaches
    the bin. Improvements are missing for the base model itself, and where it has no complete run.

    Raises:
        RecordError: a record is damaged, or two cells were evaluated on different windows.
    """
    rows = []
    for cell in study.cells:
        pairs = [] if study.is_base(cell) else paired_runs(study, cell, study.base_of(cell))
        if runs := complete_runs(study, cell):
            rows += _rows(cell, runs, [other for _, other in pairs])
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    return table.replace([np.inf, -np.inf], np.nan)


def _rows(cell: str, runs: list[RunRecord], others: list[RunRecord]) -> list[dict[str, Any]]:
    for other in (*runs[1:], *others):
        same_windows(runs[0], other)
    nll, tokens = _by_bin(runs)
    reference, reference_tokens = _by_bin(others) if others else (nll, tokens)
    if not np.array_equal(tokens, reference_tokens):
        raise RecordError(
            f"{runs[0].folder} and {others[0].folder} count different tokens in the same bins; run them again"
        )
    rows = []
    for place, counts in enumerate(tokens):
        if not (reached := counts > 0).any():
            continue
        ours, theirs = nll[:, place, reached], reference[:, place, reached]
        ppl, improvement = _ppl(ours, counts[reached], generator(cell, str(place))), _MISSING
        if others:
            improvement = _improvement(ours, theirs, counts[reached], generator(cell, others[0].cell, str(place)))
        values = (cell, place, len(runs), *ppl, *improvement)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _by_bin(runs: list[RunRecord]) -> tuple[np.ndarray, np.ndarray]:
    """NLL sums [seeds, bins, windows] and token counts [bins, windows]; 0 where a window does not reach the bin."""
    tables = [sums(run, EVAL, ["bin", "window"]) for run in runs]
    counts = [table["tokens"].unstack(fill_value=0) for table in tables]
    for run, table in zip(runs, counts, strict=True):
        if not table.equals(counts[0]):
            raise RecordError(
                f"{run.folder} and {runs[0].folder} count different tokens in the same bins; run them again"
            )
    bins = range(int(counts[0].index.max()) + 1)
    nll = [table["nll_sum"].unstack(fill_value=0.0).reindex(bins, fill_value=0.0) for table in tables]
    return np.stack([table.to_numpy() for table in nll]), counts[0].reindex(bins, fill_value=0).to_numpy()


def _ppl(nll: np.ndarray, tokens: np.ndarray, rng: np.random.Generator) -> stats.Interval:
    if tokens.size > 1:
        return stats.ppl(nll, tokens, rng, resamples=_RESAMPLES)
    return _MISSING._replace(value=stats.perplexity(stats.ratio_of_sums(nll, tokens)))


def _improvement(
    nll: np.ndarray, reference: np.ndarray, tokens: np.ndarray, rng: np.random.Generator
) -> stats.Interval:
    if tokens.size > 1:
        return stats.improvement(nll, reference, tokens, rng, resamples=_RESAMPLES)
    with np.errstate(over="ignore"):
        return _MISSING._replace(value=-100 * float(np.expm1(stats.ratio_of_sums(nll - reference, tokens))))
