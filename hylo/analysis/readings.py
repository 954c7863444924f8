"""What components of probed runs chose, by position and layer (probe=readings), and what they wrote (probe=texts)."""

from typing import Any

import pandas as pd

from hylo.analysis.probed import probed_runs
from hylo.runs.record import StudyRecord

READINGS, TEXTS = "readings", "texts"
"""The probes whose answers these are."""
_READINGS = ["quantity", "layer", "item", "first", "last", "value"]
_TEXTS = ["prompt", "beginning", "continuation"]


def readings_table(study: StudyRecord) -> pd.DataFrame:
    """Columns cell, seed, then those of hylo/evaluation/probes/readings.py; cells in study order.

    Raises:
        RecordError: a record is damaged, or two runs were asked different probes.
    """
    return _stacked(study, READINGS, _READINGS)


def texts_table(study: StudyRecord) -> pd.DataFrame:
    """One row per beginning and cell, of each cell's first seed: prompt, beginning, cell, seed, continuation.

    Raises:
        RecordError: as in `readings_table`.
    """
    table: Any = _stacked(study, TEXTS, _TEXTS)
    first = table.groupby("cell", sort=False)["seed"].transform("min") if len(table) else table["seed"]
    chosen = table[table["seed"] == first].sort_values("prompt", kind="stable")
    return chosen[["prompt", "beginning", "cell", "seed", "continuation"]].reset_index(drop=True)


def _stacked(study: StudyRecord, probe: str, columns: list[str]) -> pd.DataFrame:
    parts: list[Any] = [
        run.probe_table(columns)[columns].assign(cell=cell, seed=run.seed)
        for cell, runs in probed_runs(study, probe).items()
        for run in runs
        if len(run.probe)
    ]
    whole = pd.Index(["cell", "seed", *columns])
    return pd.concat(parts, ignore_index=True).reindex(columns=whole) if parts else pd.DataFrame(columns=whole)
