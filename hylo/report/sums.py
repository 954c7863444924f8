"""What a report computes with: the runs of a cell that count, their pairs, and NLL sums that are sure to be whole."""

import hashlib
import math
from typing import Any

import numpy as np

from hylo.errors import RecordError
from hylo.records import EVAL, THIRDS, WINDOWS, RunRecord, StudyRecord

Pair = tuple[RunRecord, RunRecord]
_MIDDLE = 1  # of the thirds


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


def paired(runs: list[RunRecord], others: list[RunRecord], *, one_for_all: bool) -> list[Pair]:
    """Runs with those of another cell: of the same seed, or each with the first where one pairs with every seed."""
    if one_for_all:
        return [(run, others[0]) for run in runs] if others else []
    by_seed = {other.seed: other for other in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def window_sums(runs: list[RunRecord]) -> tuple[np.ndarray, np.ndarray]:
    """NLL sums [seeds, windows] and token counts [windows] of runs over the same windows."""
    tables = [added_up(run, EVAL, "window") for run in runs]
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
    return np.stack([table["nll_sum"].to_numpy() for table in tables]), tables[0]["tokens"].to_numpy()


def same_windows(run: RunRecord, other: RunRecord) -> None:
    """Raises RecordError where two runs were evaluated on different windows; names both."""
    where = ["window", "document", "first_token", "length"]
    if run.windows[where].to_numpy().tolist() != other.windows[where].to_numpy().tolist():
        raise RecordError(
            f"cells {run.cell!r} (seed {run.seed}) and {other.cell!r} (seed {other.seed}) were evaluated on different "
            f"windows: {run.folder / WINDOWS} and {other.folder / WINDOWS}; run them with the same data settings"
        )


def middle_log_ppl(runs: list[RunRecord]) -> float:
    """Mean over seeds of log PPL in the middle third of positions; NaN where windows are too short to have one."""
    logs = []
    for run in runs:
        middle = added_up(run, THIRDS, "third").query(f"third == {_MIDDLE} and tokens > 0")
        logs.append(middle["nll_sum"].sum() / middle["tokens"].sum() if len(middle) else math.nan)
    return float(np.mean(logs))


def added_up(run: RunRecord, name: str, by: str | list[str]) -> Any:
    """NLL sums and token counts of a table, added up by some of its columns, which are the index of the result.

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


def generator(*names: str) -> np.random.Generator:
    """A generator seeded by names, so that what is drawn for one row does not depend on the others."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
