"""Finished studies of any size: copies of a published run's record with other numbers, to measure what reports cost.

Every file is as a run writes it, with checksums; only adapters are missing, which no report reads.
"""

import json
import re
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hylo.core.files import write_json, write_table
from hylo.core.sums import write_sums
from hylo.runs.layout import CONFIG, EVAL, HALF, RESULT, SCHEMA_VERSION, STUDY, THIRDS

PUBLISHED = Path(__file__).parent.parent / "experiments" / "tuned_landmarks" / "records"
BASE, TRAINED = "base-63bbc51b8358", "rslora-seed0-99a6d9aeb982"
"""The records that are copied."""
LARGEST = 0.2
"""Effect of the last cell, nats per token; that of the first is 0."""


def write_study(folder: Path, cells: int, *, seeds: int = 1, contrasts: int = 0) -> Path:
    """Write a study of finished runs: the base model, and trained cells, each better than the one before.

    Args:
        folder: of the study; its name is the study's.
        cells: number of trained cells, each with its own learning rate and number of parameters.
        seeds: runs of each cell.
        contrasts: number of named contrasts, of each cell with the one before; 0: none, as in a sweep.
    """
    rng = np.random.default_rng(0)
    effects = {f"cell{place:04}": -LARGEST * place / cells for place in range(cells)}
    _write_run(folder, BASE, "base", 0)
    entries = [{"cell": "base", "runs": [BASE], "base": "base"}]
    for place, (cell, effect) in enumerate(effects.items()):
        runs = [f"{cell}-seed{seed}-{place * seeds + seed:012x}" for seed in range(seeds)]
        for seed, run in enumerate(runs):
            _write_run(folder, run, cell, seed)
            _shift_sums(folder / run, effect, rng)
            _set_settings(folder / run, place)
            write_sums(folder / run)
        entries.append({"cell": cell, "runs": runs, "base": "base"})
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "study": folder.name,
        "question": "What does a report of this size cost?",
        "protocol": "Copies of one record, with other numbers.",
        "overrides": [],
        "base": "base",
        "cells": entries,
        "contrasts": _contrasts([*effects][: contrasts + 1]),
        "claims": [],
        "factorial": [],
    }
    write_json(folder / STUDY, manifest)
    return folder


def _contrasts(cells: Sequence[str]) -> list[dict[str, Any]]:
    named = {"component": None, "comparison": "added"}
    return [{"cell": cell, "reference": reference, **named} for reference, cell in pairwise(cells)]


def _write_run(folder: Path, run: str, cell: str, seed: int) -> None:
    shutil.copytree(PUBLISHED / (BASE if run == BASE else TRAINED), folder / run)
    result = json.loads((folder / run / RESULT).read_text())
    named = {"study": folder.name, "cell": cell, "seed": seed, "fingerprint": run.rpartition("-")[2]}
    write_json(folder / run / RESULT, result | named)
    write_sums(folder / run)


def _shift_sums(run: Path, effect: float, rng: np.random.Generator) -> None:
    """Add an effect, and noise by seed and window, to the recorded NLL."""
    shifts = effect + rng.normal(0, 0.01) + rng.normal(0, 0.02, 1_000)  # nats per token, by window
    for name in (EVAL, THIRDS, HALF):
        table: Any = pd.read_parquet(run / name)
        shift = shifts[table["window"].to_numpy()] * table["tokens"].to_numpy()
        write_table(run / name, table.assign(nll_sum=table["nll_sum"] + shift))


def _set_settings(run: Path, place: int) -> None:
    """Give the cell at this place its own learning rate and number of parameters."""
    config = (run / CONFIG).read_text()
    (run / CONFIG).write_text(re.sub(r"\blearning_rate: .*", f"learning_rate: {1e-5 * (place + 1):g}", config))
    result = json.loads((run / RESULT).read_text())
    result["params"]["trainable"] = 1_000 * (place + 1)
    write_json(run / RESULT, result)
