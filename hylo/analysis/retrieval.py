"""Retrieval by depth, from the records of a study whose runs were probed (probe=kv).

Reads no files but the records, and ignores answers to other probes. The unit is a list within a seed, an item of
hylo/analysis/probed.py: all runs are asked the same questions on the same lists, so a contrast is paired by seed and
list.

Shapes: S seeds, N lists, D depths.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from hylo.analysis.probed import interval, probed_pairs, probed_runs
from hylo.core.errors import RecordError
from hylo.evaluation.probes.score import COLUMNS
from hylo.evaluation.probes.score import ends_minus_middle as difference
from hylo.runs.store import PROBE, RunRecord, StudyRecord

KV = "kv"
"""The probe whose answers these are."""
TABLE = [
    "cell", "facts", "depth", "place", "accuracy", "accuracy_low", "accuracy_high", "logprob", "logprob_low",
    "logprob_high", "seeds",
]  # fmt: skip
DIFFERENCE = ["cell", "facts", "seeds", "value", "low", "high"]


def retrieval_table(study: StudyRecord) -> pd.DataFrame:
    """One row per cell, number of facts and depth; cells in study order, those without a probe left out.

    - `depth`: 0 is the first fact; `place`: index in the list of the fact asked for.
    - `accuracy`: share of lists and seeds for which greedy decoding gives the answer, 0 to 1.
    - `logprob`: mean log-probability of the answer in nats, summed over its tokens.
    - `seeds`: number of seeds behind the row.

    Raises:
        RecordError: a record is damaged, or two runs were asked different probes.
    """
    rows = []
    for cell, facts, runs in _probed(study):
        exact_SND, logprob_SND = _answers(runs, facts, "exact"), _answers(runs, facts, "answer_logprob")
        places = _places(runs[0], facts)
        for depth, place in enumerate(places):
            names = (cell, str(facts), str(depth))
            accuracy = interval(exact_SND[..., depth], *names, low=0, high=1)
            logprob = interval(logprob_SND[..., depth], *names, high=0)
            rows.append((cell, facts, depth, place, *accuracy, *logprob, len(runs)))
    return pd.DataFrame(rows, columns=pd.Index(TABLE))


def ends_minus_middle(study: StudyRecord) -> pd.DataFrame:
    """One row per cell and number of facts: accuracy at the first and last depth minus that in between, -1 to 1.

    Raises:
        RecordError: as in `retrieval_table`.
    """
    rows = []
    for cell, facts, runs in _probed(study):
        value = interval(difference(_answers(runs, facts, "exact")), cell, str(facts), low=-1, high=1)
        rows.append((cell, facts, len(runs), *value))
    return pd.DataFrame(rows, columns=pd.Index(DIFFERENCE))


def retrieval_contrast(study: StudyRecord, cell: str, reference: str, facts: int) -> tuple[np.ndarray, np.ndarray]:
    """A cell minus a reference, paired by seed and list, as input to `interval`.

    Returns:
        Differences in (accuracy at the ends minus accuracy in the middle), and in the mean accuracy over depths, [S, N]
        each; S are the shared seeds, in order.

    Raises:
        RecordError: a cell has no probe with this many facts, the cells share no seed, or as in `retrieval_table`.
    """
    found = {name: runs for name, count, runs in _probed(study) if count == facts}
    for name in (cell, reference):
        if name not in found:
            raise RecordError(f"{study.folder}: {name!r} was not asked of {facts} facts; run it with probe=kv")
    pairs = probed_pairs(study, found, cell, reference)
    if not pairs:
        raise RecordError(f"{study.folder}: {cell!r} and {reference!r} have no seed in common; run the missing seeds")
    one, other = (_answers([pair[side] for pair in pairs], facts, "exact") for side in (0, 1))
    return difference(one) - difference(other), one.mean(axis=-1) - other.mean(axis=-1)


def _probed(study: StudyRecord) -> Iterator[tuple[str, int, list[RunRecord]]]:
    """Yield each probed cell and number of facts with the cell's complete probed runs by seed."""
    for cell, runs in probed_runs(study, KV).items():
        for facts in sorted(set(runs[0].probe_table(COLUMNS)["facts"].tolist())):
            yield cell, facts, runs


def _answers(runs: list[RunRecord], facts: int, column: str) -> np.ndarray:
    """One column of the answers on lists of this many facts, [S, N, D].

    Raises:
        RecordError: a run lacks an answer that another has.
    """
    tables = [_of(run, facts).pivot(index="list", columns="depth", values=column) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        same = table.index.equals(tables[0].index) and table.columns.equals(tables[0].columns)
        if not same or not np.isfinite(table.to_numpy(dtype=float, na_value=np.nan)).all():
            raise RecordError(f"{run.folder / PROBE} lacks answers; delete it and run the cell again")
    return np.stack([table.to_numpy(dtype=float) for table in tables])


def _places(run: RunRecord, facts: int) -> list[float]:
    return _of(run, facts).groupby("depth")["place"].mean().tolist()


def _of(run: RunRecord, facts: int) -> Any:
    """Answers on lists of this many facts. Any, because pandas types a selection as everything a table can hold."""
    table = run.probe_table(COLUMNS)
    return table[table["facts"] == facts]
