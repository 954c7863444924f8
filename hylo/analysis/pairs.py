"""Runs of a study, paired by seed and window, and their sums as arrays: what every estimate of a report rests on."""

import hashlib
from typing import Any

import numpy as np

from hylo import stats
from hylo.core.errors import RecordError
from hylo.runs.store import EVAL, RESULT, THIRDS, WINDOWS, RunRecord, StudyRecord

Pair = tuple[RunRecord, RunRecord]
PPL, LIM_PPL = "ppl", "lim_ppl"
"""Measures: over all positions, and over the middle third."""
_MIDDLE = 1  # of the thirds


def measure_of(metric: str) -> str | None:
    """The measure that a claim's metric is about; None where it is no improvement over a reference."""
    return {"ppl_improvement": PPL, "lim_ppl_improvement": LIM_PPL}.get(metric)


def complete_runs(study: StudyRecord, cell: str) -> list[RunRecord]:
    """A cell's complete runs by seed.

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
        RecordError: the entry is missing; names the file.
    """
    try:
        return run.result[section][key]
    except (KeyError, TypeError):
        raise RecordError(
            f"{run.folder / RESULT} lacks {section}.{key}; delete {run.folder} and run it again"
        ) from None


def paired_runs(study: StudyRecord, cell: str, reference: str) -> list[Pair]:
    """The complete runs of a cell, each with the reference's run of the same seed; an untuned reference has one run,
    which pairs with every seed. Seeds that only one side has are left out."""
    runs, others = complete_runs(study, cell), complete_runs(study, reference)
    if study.is_untuned(reference):
        return [(run, others[0]) for run in runs] if others else []
    by_seed = {other.seed: other for other in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def paired_sums(pairs: list[Pair], measure: str = PPL) -> tuple[np.ndarray, np.ndarray]:
    """NLL sums of the cell less those of the reference, [seeds, windows] in nats, and token counts [windows].

    Raises:
        RecordError: the two sides were evaluated on different windows, or a sum is missing.
    """
    runs, others = [run for run, _ in pairs], [other for _, other in pairs]
    same_windows(runs[0], others[0])
    nll, tokens = window_sums(runs, measure)
    reference, reference_tokens = window_sums(others, measure)
    if not np.array_equal(tokens, reference_tokens):
        raise RecordError(
            f"{runs[0].folder} and {others[0].folder} count other tokens in the same windows; run them again"
        )
    return nll - reference, tokens


def window_sums(runs: list[RunRecord], measure: str = PPL) -> tuple[np.ndarray, np.ndarray]:
    """NLL sums [seeds, windows] in nats and token counts [windows] of runs over the same windows.

    Windows in which the measure has no token are left out: one may be too short to have a middle third.

    Raises:
        RecordError: the runs were evaluated on different windows, or a sum is missing.
    """
    tables = [_measured(run, measure) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        same_windows(runs[0], run)
        if table.index.tolist() != run.windows["window"].tolist():
            raise RecordError(
                f"{run.folder / EVAL} has other windows than {WINDOWS}; delete {run.folder} and run it again"
            )
        if not np.array_equal(table["tokens"], tables[0]["tokens"]):
            raise RecordError(
                f"{run.folder} and {runs[0].folder} count other tokens in the same windows; run them again"
            )
    tokens = tables[0]["tokens"].to_numpy()
    return np.stack([table["nll_sum"].to_numpy()[tokens > 0] for table in tables]), tokens[tokens > 0]


def _measured(run: RunRecord, measure: str) -> Any:
    """Sums by window of a measure."""
    if measure == PPL:
        return sums(run, EVAL, "window")
    return sums(run, THIRDS, ["third", "window"]).loc[_MIDDLE]


def same_windows(run: RunRecord, other: RunRecord) -> None:
    """Refuse two runs that were evaluated on different windows.

    Raises:
        RecordError: they were.
    """
    where = ["window", "document", "first_token", "length"]
    if run.windows[where].to_numpy().tolist() != other.windows[where].to_numpy().tolist():
        raise RecordError(
            f"cells {run.cell!r} (seed {run.seed}) and {other.cell!r} (seed {other.seed}) were evaluated on different "
            f"windows: {run.folder / WINDOWS} and {other.folder / WINDOWS}; run them with the same data settings"
        )


def sums(run: RunRecord, name: str, by: str | list[str]) -> Any:
    """NLL sums and token counts of a run's table, added up by columns of it, which are the index of the result.

    Any, because pandas types the columns of a table as everything a table can hold.
    """
    table: Any = run.eval if name == EVAL else run.thirds
    for column in ("nll_sum", "tokens"):
        # A missing sum must not be added up as 0, as pandas would.
        if len(bad := table[~np.isfinite(table[column].to_numpy(dtype=float, na_value=np.nan))]):
            raise RecordError(
                f"{run.folder / name} has {column} = {bad[column].iloc[0]} in window {bad['window'].iloc[0]}; "
                f"delete {run.folder} and run it again"
            )
    return table.groupby(by)[["nll_sum", "tokens"]].sum()


def percent(effect: stats.Effect) -> dict[str, float]:
    """effect_pct, low and high: the improvement in percent that a difference of log PPL is."""
    with np.errstate(over="ignore"):
        value, low, high = (-100 * float(np.expm1(end)) for end in (effect.value, effect.high, effect.low))
    return {"effect_pct": value, "low": low, "high": high}


def generator(*names: str) -> np.random.Generator:
    """The generator of an estimate, seeded by what it is about: a row does not depend on other rows."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
