"""Retrieval by depth, from the records of a study whose runs were asked a retrieval probe (probe=kv or probe=needle).

Reads no files but the records, and ignores answers to other probes. The unit is a text within a seed (a list, a
haystack), an item of hylo/analysis/probed.py: all runs are asked the same questions about the same texts, so a contrast
is paired by seed and text.

Shapes: S seeds, N texts, D depths.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from hylo.analysis.probed import interval, probed_pairs, probed_runs
from hylo.core.errors import RecordError
from hylo.evaluation.probes.score import GRIDS, Grid
from hylo.evaluation.probes.score import ends_minus_middle as difference
from hylo.runs.layout import PROBE
from hylo.runs.record import RunRecord, StudyRecord

TABLE = [
    "cell", "length", "unit", "depth", "place", "accuracy", "accuracy_low", "accuracy_high", "logprob", "logprob_low",
    "logprob_high", "seeds",
]  # fmt: skip
DIFFERENCE = ["cell", "length", "unit", "seeds", "value", "low", "high"]


def retrieval_table(study: StudyRecord) -> pd.DataFrame:
    """One row per cell, length and depth; cells in study order, those without a probe left out.

    - `length`: of the text, in `unit`: facts of a list, or tokens of a haystack.
    - `depth`: 0 is the first fact; `place`: of the fact asked for, from 0, in the unit of the length.
    - `accuracy`: share of texts and seeds for which greedy decoding gives the answer, 0 to 1.
    - `logprob`: mean log-probability of the answer in nats, summed over its tokens.
    - `seeds`: number of seeds behind the row.

    Raises:
        RecordError: a record is damaged, or two runs were asked different probes.
    """
    rows = []
    for cell, length, runs in _probed(study):
        exact_SND, logprob_SND = _answers(runs, length, "exact"), _answers(runs, length, "answer_logprob")
        for depth, place in enumerate(_places(runs[0], length)):
            names = (cell, str(length), str(depth))
            accuracy = interval(exact_SND[..., depth], *names, low=0, high=1)
            logprob = interval(logprob_SND[..., depth], *names, high=0)
            rows.append((cell, length, unit(runs[0]), depth, place, *accuracy, *logprob, len(runs)))
    return pd.DataFrame(rows, columns=pd.Index(TABLE))


def ends_minus_middle(study: StudyRecord) -> pd.DataFrame:
    """One row per cell and length: accuracy at the first and last depth minus that in between, -1 to 1.

    Raises:
        RecordError: as in `retrieval_table`.
    """
    rows = []
    for cell, length, runs in _probed(study):
        value = interval(difference(_answers(runs, length, "exact")), cell, str(length), low=-1, high=1)
        rows.append((cell, length, unit(runs[0]), len(runs), *value))
    return pd.DataFrame(rows, columns=pd.Index(DIFFERENCE))


def retrieval_contrast(study: StudyRecord, cell: str, reference: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A cell minus a reference, paired by seed and text, as input to `interval`.

    Returns:
        Differences in (accuracy at the ends minus accuracy in the middle), and in the mean accuracy over depths, [S, N]
        each; S are the shared seeds, in order.

    Raises:
        RecordError: a cell was not asked about texts of this length, the cells share no seed, or as in
            `retrieval_table`.
    """
    found = {name: runs for name, each, runs in _probed(study) if each == length}
    for name in (cell, reference):
        if name not in found:
            raise RecordError(f"{study.folder}: {name!r} was not asked about length {length}; run it with the probe")
    pairs = probed_pairs(study, found, cell, reference)
    if not pairs:
        raise RecordError(f"{study.folder}: {cell!r} and {reference!r} have no seed in common; run the missing seeds")
    one, other = (_answers([pair[side] for pair in pairs], length, "exact") for side in (0, 1))
    return difference(one) - difference(other), one.mean(axis=-1) - other.mean(axis=-1)


def _probed(study: StudyRecord) -> Iterator[tuple[str, int, list[RunRecord]]]:
    """Yield each probed cell and length with the cell's complete probed runs by seed."""
    for probe in GRIDS:
        for cell, runs in probed_runs(study, probe).items():
            table, grid = _table(runs[0])
            for length in sorted(set(table[grid.length].tolist())):
                yield cell, length, runs


def unit(run: RunRecord) -> str:
    """What the lengths of a probed run's texts count."""
    return GRIDS[run.probe_name or ""].length


def _answers(runs: list[RunRecord], length: int, column: str) -> np.ndarray:
    """One column of the answers about texts of this length, [S, N, D].

    Raises:
        RecordError: a run lacks an answer that another has.
    """
    text = _table(runs[0])[1].text
    tables = [_of(run, length).pivot(index=text, columns="depth", values=column) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        same = table.index.equals(tables[0].index) and table.columns.equals(tables[0].columns)
        if not same or not np.isfinite(table.to_numpy(dtype=float, na_value=np.nan)).all():
            raise RecordError(f"{run.folder / PROBE} lacks answers; delete it and run the cell again")
    return np.stack([table.to_numpy(dtype=float) for table in tables])


def _places(run: RunRecord, length: int) -> list[float]:
    return _of(run, length).groupby("depth")["place"].mean().tolist()


def _of(run: RunRecord, length: int) -> Any:
    """Answers about texts of this length."""
    table, grid = _table(run)
    return table[table[grid.length] == length]


def _table(run: RunRecord) -> tuple[Any, Grid]:
    """All answers, and the words of their probe. Any: pandas types a selection as everything a table can hold."""
    grid = GRIDS[run.probe_name or ""]
    return run.probe_table(grid.columns), grid
