"""Runs of a study, paired by seed and window, and their sums as arrays: the basis of every estimate in a report."""

import hashlib
import math
from typing import Any

import numpy as np

from hylo import stats
from hylo.core.errors import RecordError
from hylo.evaluation.metrics import Metric, main_metric
from hylo.runs.layout import EVAL, RESULT, THIRDS, WINDOWS
from hylo.runs.record import RunRecord, StudyRecord

Pair = tuple[RunRecord, RunRecord]


def complete_runs(study: StudyRecord, cell: str) -> list[RunRecord]:
    """A cell's complete runs, ordered by seed.

    Raises:
        RecordError: two of them have the same seed.
    """
    runs: dict[int, RunRecord] = {}
    for run in study.cells.get(cell, []):
        if run.complete and (twin := runs.setdefault(run.seed, run)) is not run:
            raise RecordError(
                f"{twin.folder} and {run.folder} are both seed {run.seed} of {cell!r}; remove one of them"
            )
    return [runs[seed] for seed in sorted(runs)]


def value_of(run: RunRecord, section: str, key: str) -> Any:
    """An entry of result.json; null reads as None.

    Raises:
        RecordError: the entry is missing; the message names the file.
    """
    try:
        return run.result[section][key]
    except (KeyError, TypeError):
        raise RecordError(
            f"{run.folder / RESULT} lacks {section}.{key}; delete {run.folder} and run it again"
        ) from None


def paired_runs(study: StudyRecord, cell: str, reference: str) -> list[Pair]:
    """The complete runs of a cell, each with the reference's run of the same seed.

    The single run of a base model pairs with every seed. Seeds that only one side has are left out.
    """
    runs, others = complete_runs(study, cell), complete_runs(study, reference)
    if study.is_base(reference):
        return [(run, others[0]) for run in runs] if others else []
    by_seed = {other.seed: other for other in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def paired_sums(pairs: list[Pair], metric: Metric | None = None) -> tuple[np.ndarray, np.ndarray]:
    """NLL sums of the cell minus those of the reference, [seeds, windows] in nats, and the metric's weights [windows]
    (token counts for perplexity, the default).

    Raises:
        RecordError: the two sides were evaluated on different windows, or a sum is missing.
    """
    runs, others = [run for run, _ in pairs], [other for _, other in pairs]
    same_windows(runs[0], others[0])
    nll, tokens = window_sums(runs, metric)
    reference, reference_tokens = window_sums(others, metric)
    if not np.array_equal(tokens, reference_tokens):
        raise RecordError(
            f"{runs[0].folder} and {others[0].folder} count different tokens in the same windows; run them again"
        )
    return nll - reference, tokens


def window_sums(runs: list[RunRecord], metric: Metric | None = None) -> tuple[np.ndarray, np.ndarray]:
    """NLL sums [seeds, windows] in nats and the metric's weights [windows] of runs over the same windows.

    Windows without a token of the metric are left out: one may be too short to have a middle third.

    Raises:
        RecordError: the runs were evaluated on different windows, or a sum is missing.
    """
    metric = metric or main_metric()
    measured = [_measured(run, metric) for run in runs]
    tokens = measured[0][1]
    for run, (_, weight) in zip(runs, measured, strict=True):
        same_windows(runs[0], run)
        if not np.array_equal(weight, tokens):
            raise RecordError(
                f"{run.folder} and {runs[0].folder} count different tokens in the same windows; run them again"
            )
    return np.stack([nll[tokens > 0] for nll, _ in measured]), tokens[tokens > 0]


def _measured(run: RunRecord, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """A metric's NLL sums and weights, [windows] each, computed once per record."""
    if metric.name not in run.window_sums:
        table = metric.window_sums(complete_sums(run, EVAL), complete_sums(run, THIRDS))
        if table.index.tolist() != [place[0] for place in run.window_places]:
            raise RecordError(
                f"{run.folder / EVAL} has other windows than {WINDOWS}; delete {run.folder} and run it again"
            )
        run.window_sums[metric.name] = table["nll_sum"].to_numpy(), table["weight"].to_numpy()
    return run.window_sums[metric.name]


def same_windows(run: RunRecord, other: RunRecord) -> None:
    """Check that two runs were evaluated on the same windows.

    Raises:
        RecordError: they were not.
    """
    if run.window_places != other.window_places:
        raise RecordError(
            f"cells {run.cell!r} (seed {run.seed}) and {other.cell!r} (seed {other.seed}) were evaluated on different "
            f"windows: {run.folder / WINDOWS} and {other.folder / WINDOWS}; run them with the same data settings"
        )


def sums(run: RunRecord, name: str, by: str | list[str]) -> Any:
    """NLL sums and token counts of a run's table, grouped by `by`, which becomes the index.

    Typed Any because pandas types a table's columns as everything a table can hold.
    """
    return complete_sums(run, name).groupby(by)[["nll_sum", "tokens"]].sum()


def complete_sums(run: RunRecord, name: str) -> Any:
    """A run's table of sums.

    Raises:
        RecordError: a sum or count is missing or not finite; the message names the file and the window.
    """
    table: Any = run.eval if name == EVAL else run.thirds
    if name in run.complete_tables:
        return table
    for column in table.columns.intersection(["nll_sum", "tokens", "bytes", "words"]):
        # pandas would add up a missing sum as 0.
        if len(bad := table[~np.isfinite(table[column].to_numpy(dtype=float, na_value=np.nan))]):
            raise RecordError(
                f"{run.folder / name} has {column} = {bad[column].iloc[0]} in window {bad['window'].iloc[0]}; "
                f"delete {run.folder} and run it again"
            )
    run.complete_tables.add(name)
    return table


def percent(
    effect: stats.Effect | stats.Interval, metric: Metric | None = None, reference: float = math.nan
) -> dict[str, float]:
    """A difference in mean NLL as an improvement in percent: effect_pct, low and high.

    Args:
        effect: the difference, in nats per weight of the metric.
        metric: perplexity by default.
        reference: mean NLL of the reference in nats per weight (`mean_nll`), for metrics whose percentages are relative
            to it.
    """
    metric = metric or main_metric()
    value, low, high = (metric.percent(end, reference) for end in (effect.value, effect.high, effect.low))
    return {"effect_pct": value, "low": low, "high": high}


def mean_nll(runs: list[RunRecord], metric: Metric) -> float:
    """Mean over seeds of a metric's NLL per weight; NaN where no window has any."""
    nll, weight = window_sums(runs, metric)
    return float((nll.sum(axis=1) / weight.sum()).mean()) if weight.size else math.nan


def generator(*names: str) -> np.random.Generator:
    """Random generator for an estimate, seeded by its names, so a row does not depend on other rows."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
