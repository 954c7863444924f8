"""The numbers of a study, from its records alone: one row a cell and reference."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from hylo import stats
from hylo.errors import RecordError
from hylo.records import EVAL, FAILED, RESULT, STUDY, THIRDS, TRACEBACK, WINDOWS, RunRecord, StudyRecord

COLUMNS = [
    "cell", "reference", "seeds", "ppl", "ppl_low", "ppl_high", "lim_ppl", "mean_window_ppl",
    "improvement_pct", "improvement_low", "improvement_high", "lim_improvement_pct",
    "trainable_params", "added_params", "params_per_pct", "train_seconds", "tokens_per_second", "peak_memory_bytes",
    "audit",
]  # fmt: skip
_COUNTS = ["seeds", "trainable_params", "added_params", "peak_memory_bytes"]
_TEXTS = ["cell", "reference", "audit"]
PASSED = "passed"
_MIDDLE = 1  # of the thirds

Pair = tuple[RunRecord, RunRecord]


def summarize(study: StudyRecord) -> pd.DataFrame:
    """Every cell against the untuned model, then every cell against the previous row of the study.

    A cell without a complete run has no row (see `incomplete`). Runs are paired by seed and window; the one run of the
    untuned model pairs with every seed. What the columns mean:

    - `seeds`: the seeds that both sides have, and all measures of the row are over these. Where none is common it is 0,
      the improvement is missing, and the other measures are over all of the cell's seeds.
    - `ppl`, `lim_ppl`: exp of the mean over seeds of log PPL, over all positions and over the middle third.
    - `mean_window_ppl`: arithmetic mean over windows and seeds of each window's own perplexity, as published.
    - `improvement_pct`: 100 (1 - PPL / PPL of the reference); intervals as in `hylo.stats`, 95 %.
    - `added_params`: trainable parameters beyond the same reference's; `params_per_pct`: divided by the improvement.
    - `train_seconds`, `tokens_per_second`: means over seeds; `peak_memory_bytes`: the largest.
    - `audit`: passed, or the checks that failed in any run of the cell.

    A perplexity too large for a number (a mean NLL above 709 nats) is missing, and so is what rests on it.

    The bootstrap's generator is seeded by the names of cell and reference, so a row does not depend on other rows.

    Raises:
        RecordError: a record is damaged, or two cells were evaluated on different windows.
    """
    if not isinstance(study.manifest.get("untuned"), str):
        raise RecordError(
            f"{study.folder / STUDY} does not name the untuned cell; run the study again to write it anew"
        )
    rows = [_row(study, cell, reference) for cell, reference in _contrasts(study)]
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    kinds = {column: "Int64" if column in _COUNTS else "float64" for column in COLUMNS if column not in _TEXTS}
    return table.astype(kinds).replace([np.inf, -np.inf], np.nan)


def incomplete(study: StudyRecord) -> list[str]:
    """One line a run that failed or was interrupted: status, cell and seed, the error's first line, the folder."""
    lines = []
    for cell, runs in study.cells.items():
        for run in (run for run in runs if not run.complete):
            failed = run.result["status"] == FAILED
            parts = [
                "failed" if failed else "not finished",
                f"{cell} seed {run.seed}",
                _first_line(run),
                str(run.folder),
            ]
            lines.append(f"{parts[0]}: " + ", ".join(part for part in parts[1:] if part))
        if not runs:
            lines.append(f"not run: {cell}")
    return lines


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


def ppl_by_bin(study: StudyRecord) -> pd.DataFrame:
    """Columns cell, bin, ppl: perplexity of each position bin, exp of the mean over seeds of log PPL."""
    tables = []
    for cell in study.cells:
        for run in complete_runs(study, cell):
            sums = _sums(run, EVAL, "bin").query("tokens > 0")
            log_ppl = (sums["nll_sum"] / sums["tokens"]).rename("log_ppl").reset_index()
            tables.append(log_ppl.assign(cell=cell))
    if not tables:
        return pd.DataFrame(columns=pd.Index(["cell", "bin", "ppl"]))
    means: Any = pd.concat(tables).groupby(["cell", "bin"], sort=False)["log_ppl"].mean()
    return means.map(stats.perplexity).replace(np.inf, np.nan).rename("ppl").reset_index()


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


def _contrasts(study: StudyRecord) -> Iterator[tuple[str, str]]:
    cells = list(study.cells)
    ran = {cell for cell in cells if complete_runs(study, cell)}
    yield from ((cell, "" if cell == study.untuned else study.untuned) for cell in cells if cell in ran)
    for previous, cell in itertools.pairwise(cells):
        if cell in ran and study.untuned not in (previous, cell):
            yield cell, previous


def _row(study: StudyRecord, cell: str, reference: str) -> dict[str, Any]:
    runs, others = complete_runs(study, cell), complete_runs(study, reference)
    pairs = _pairs(runs, others, one_for_all=reference == study.untuned)
    used = [run for run, _ in pairs] or runs
    row: dict[str, Any] = {"cell": cell, "reference": reference, "seeds": len(pairs if reference else runs)}
    nll, tokens = _window_sums(used)
    try:
        ppl = stats.ppl(nll, tokens, _generator(cell))
        lim_ppl, mean_window_ppl = stats.perplexity(_middle_log_ppl(used)), stats.mean_window_ppl(nll, tokens)
        row |= {"ppl": ppl.value, "ppl_low": ppl.low, "ppl_high": ppl.high}
        row |= {"lim_ppl": lim_ppl, "mean_window_ppl": mean_window_ppl}
        if pairs:
            row |= _improvement(pairs, nll, tokens, _generator(cell, reference))
    except ValueError as error:
        raise RecordError(f"{used[0].folder}: {error}") from error
    row |= _cost(used)
    row["audit"] = ", ".join(sorted({name for run in used for name in value_of(run, "audit", "failed")})) or PASSED
    if others:
        row["added_params"] = row["trainable_params"] - value_of(others[0], "params", "trainable")
    if pairs:
        contrast = row["improvement_pct"], row["improvement_low"], row["improvement_high"]
        if np.isfinite(contrast).all():
            row["params_per_pct"] = stats.params_per_pct(row["added_params"], *contrast)
    return row


def _pairs(runs: list[RunRecord], others: list[RunRecord], *, one_for_all: bool) -> list[Pair]:
    if one_for_all:
        return [(run, others[0]) for run in runs] if others else []
    by_seed = {other.seed: other for other in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def _improvement(pairs: list[Pair], nll: np.ndarray, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    runs, others = [run for run, _ in pairs], [other for _, other in pairs]
    _same_windows(runs[0], others[0])
    reference, reference_tokens = _window_sums(others)
    if not np.array_equal(tokens, reference_tokens):
        raise RecordError(
            f"{runs[0].folder} and {others[0].folder} count other tokens in the same windows; run them again"
        )
    contrast = stats.improvement(nll, reference, tokens, rng)
    with np.errstate(over="ignore"):
        lim = -100 * float(np.expm1(_middle_log_ppl(runs) - _middle_log_ppl(others)))
    return {
        "improvement_pct": contrast.value,
        "improvement_low": contrast.low,
        "improvement_high": contrast.high,
        "lim_improvement_pct": lim,
    }


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


def _window_sums(runs: list[RunRecord]) -> tuple[np.ndarray, np.ndarray]:
    """NLL sums [seeds, windows] and token counts [windows] of runs over the same windows."""
    tables = [_sums(run, EVAL, "window") for run in runs]
    for run, table in zip(runs, tables, strict=True):
        _same_windows(runs[0], run)
        if table.index.tolist() != run.windows["window"].tolist():
            raise RecordError(
                f"{run.folder / EVAL} has other windows than {WINDOWS}; delete {run.folder} and run it again"
            )
        if not np.array_equal(table["tokens"], tables[0]["tokens"]):
            raise RecordError(
                f"{run.folder} and {runs[0].folder} count other tokens in the same windows; run them again"
            )
    return np.stack([table["nll_sum"].to_numpy() for table in tables]), tables[0]["tokens"].to_numpy()


def _same_windows(run: RunRecord, other: RunRecord) -> None:
    where = ["window", "document", "first_token", "length"]
    if run.windows[where].to_numpy().tolist() != other.windows[where].to_numpy().tolist():
        raise RecordError(
            f"cells {run.cell!r} (seed {run.seed}) and {other.cell!r} (seed {other.seed}) were evaluated on different "
            f"windows: {run.folder / WINDOWS} and {other.folder / WINDOWS}; run them with the same data settings"
        )


def _middle_log_ppl(runs: list[RunRecord]) -> float:
    """Mean over seeds of log PPL in the middle third of positions; NaN where windows are too short to have one."""
    logs = []
    for run in runs:
        middle = _sums(run, THIRDS, "third").query(f"third == {_MIDDLE} and tokens > 0")
        logs.append(middle["nll_sum"].sum() / middle["tokens"].sum() if len(middle) else math.nan)
    return float(np.mean(logs))


def _sums(run: RunRecord, name: str, by: str) -> Any:
    """NLL sums and token counts of a table, added up by one of its columns, which is the index of the result.

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


def _generator(*names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _first_line(run: RunRecord) -> str:
    """The first line of the error a traceback ends with: the line that says what went wrong."""
    path = run.folder / TRACEBACK
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=-1)
    return next((line.strip() for line in lines[start + 1 :] if line.strip() and not line.startswith(" ")), "")
