"""Writes a synthetic study with known effects in the project's record format, to test reports without a model."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from hylo.analysis.summary import incomplete
from hylo.core.files import write_json
from hylo.report import Report, print_report, summarize
from hylo.report.tables.decisions import decisions
from hylo.runs.layout import COMPLETE, EVAL, FAILED, HALF, RESULT, SCHEMA_VERSION, STUDY, THIRDS, TRACEBACK, WINDOWS
from hylo.runs.store import read_study
from hylo.training.logs import CURVE

CELLS = {"low": 20.0, "high": 28.0, "same": 28.0}
"""Cells of the default study and their true improvement in percent."""
PARAMS = {"low": 1_000, "high": 1_500, "same": 1_900}
SIZE: dict[str, Any] = {"windows": 12, "length": 64}
UNTUNED = "untuned"
TRACEBACK_TEXT = (
    'Traceback (most recent call last):\n  File "run.py", line 1, in <module>\n'
    "    train()\nhylo.core.errors.TrainingDiverged: 9 losses in a row are not finite\n"
    "    fix: a smaller learning rate\n"
)


def write_recorded_study(
    folder: Path,
    cells: Mapping[str, float],
    seeds: Sequence[int],
    rng: np.random.Generator,
    *,
    windows: int = 32,
    length: int = 256,
    seed_sd: float = 0.01,
    window_sd: float = 0.3,
    difference_sd: float = 0.05,
    params: Mapping[str, int] | None = None,
    pretrained: bool = True,
    failed: Sequence[tuple[str, int]] = (),
    steps: int = 20,
    audit: Mapping[str, Sequence[str]] | None = None,
    manifest: Mapping[str, Any] | None = None,
    tuned: Sequence[str] = (),
    half: Mapping[str, float] | None = None,
) -> Path:
    """Writes a group's folder: one run of the base model, and one run per cell and seed.

    Args:
        folder: the group's folder; its name is the study's.
        cells: true improvement over the base model in percent, by cell; `untuned`, the base model, is added first.
        windows, length: number of evaluation windows and tokens per window, of which length - 1 are predicted.
        seed_sd: standard deviation of log PPL between seeds.
        window_sd: standard deviation of the base model's log PPL between windows; shared by all cells.
        difference_sd: the same of a cell's difference from the base model; shared by the cell's seeds.
        params: trainable parameters by cell; 1,000 by default.
        audit: failed checks by cell.
        failed: (cell, seed) of runs that end with a traceback and no tables.
        manifest: further entries of study.json: contrasts, claims, factorial.
        tuned: cells with a tuned learning rate, the best one inside its grid.
        half: improvement after half of the steps, by cell; other cells have no such evaluation.
    """
    position = np.linspace(1.0, -0.3, length - 1)  # early tokens are harder, in nats
    base = 3.5 + rng.normal(0, window_sd, (windows, 1)) + position + rng.normal(0, 0.1, (windows, length - 1))
    sizes = rng.integers(1, 9, (windows, length - 1))
    entries = []
    for cell, improvement in {UNTUNED: 0.0, **cells}.items():
        trains = cell != UNTUNED
        effect = np.log1p(-improvement / 100) + rng.normal(0, difference_sd, (windows, 1)) * trains
        names = []
        for seed in seeds if trains else seeds[:1]:
            names.append(f"{cell}-seed{seed}-{len(entries):08x}")
            run = folder / names[-1]
            run.mkdir(parents=True)
            nll = base + (effect + rng.normal(0, seed_sd)) * trains
            result = _result(folder.name, cell, seed, steps if trains else 0, pretrained, audit or {})
            result["params"] = {
                "trainable": (params or {}).get(cell, 1_000) * trains,
                "total": 10_000,
                "by_component": {},
            }
            if (cell, seed) in failed:
                result |= {"status": FAILED, "metrics": None, "training": None}
                (run / TRACEBACK).write_text(TRACEBACK_TEXT)
            else:
                result["metrics"] = _metrics(nll, sizes)
                _write_tables(run, nll, sizes)
                if cell in (half or {}):
                    shift = np.log1p(-(half or {})[cell] / 100) - np.log1p(-improvement / 100)
                    _write_sums(run / HALF, nll + shift, sizes, "bin", 10)
                loss = 3.5 - 0.5 * np.arange(result["training"]["steps"]) / steps + rng.normal(0, 0.05)
                curve = pd.DataFrame({"step": np.arange(1, len(loss) + 1), "loss": loss})
                (run / CURVE).write_text(curve.to_json(orient="records", lines=True) if len(loss) else "")
            write_json(run / RESULT, result)
        entries.append({"cell": cell, "runs": names, "base": UNTUNED})
    written = {"schema_version": SCHEMA_VERSION, "study": folder.name, "base": UNTUNED, "cells": entries}
    if tuned:
        written["tuning"] = [choice(cell) for cell in tuned]
    written |= {"question": "Does it help?", "protocol": "packed windows, equal steps"}
    write_json(folder / STUDY, written | dict(manifest or {}))
    return folder


def choice(cell: str, *, at_an_end: bool = False) -> dict[str, Any]:
    """A manifest's entry for a tuned learning rate."""
    ppl = {1e-3: [21.0, 21.2], 2e-3: [20.0, 20.1], 4e-3: [20.5, 20.9]}
    return {
        "cell": cell, "keys": ["trainer.learning_rate"], "chosen": [2e-3], "trials": 6, "seeds": [100, 101],
        "at_an_end": ["trainer.learning_rate"] * at_an_end, "condition": "", "recorded": 0, "defaults": [5e-4],
        "tried": [{"values": [value], "ppl": found} for value, found in ppl.items()],
    }  # fmt: skip


def _result(
    study: str, cell: str, seed: int, steps: int, pretrained: bool, audit: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "status": COMPLETE,
        "fingerprint": "0" * 8,
        "study": study,
        "cell": cell,
        "seed": seed,
        "model": {"name": "synthetic", "pretrained": pretrained},
        "data": {"name": "synthetic"},
        "training": {
            "steps": steps,
            "tokens": 4_096 * steps,
            "seconds": 2.0 * steps + seed,
            "tokens_per_second": 512.0 + seed if steps else None,
            "padding_share": 0.0 if steps else None,
            "peak_memory_bytes": 2**30 + seed,
            "final_loss": 3.0 if steps else None,
            "nonfinite_steps": 0,
            "max_loss_jump": 0.1 if steps else None,
        },
        "audit": {"failed": list(audit.get(cell, ()))},
        "environment": {},
    }


def _metrics(nll: np.ndarray, sizes: np.ndarray) -> dict[str, float | int]:
    head, middle, tail = (float(np.exp(part.mean())) for part in np.array_split(nll, 3, axis=1))
    return {
        "ppl": float(np.exp(nll.mean())),
        "lim_ppl": middle,
        "head_ppl": head,
        "tail_ppl": tail,
        "mean_window_ppl": float(np.exp(nll.mean(axis=1)).mean()),
        "nll_nats_per_token": float(nll.mean()),
        "bits_per_byte": float(nll.sum() / np.log(2) / sizes.sum()),
        "eval_tokens": nll.size,
    }


def _write_tables(run: Path, nll: np.ndarray, sizes: np.ndarray) -> None:
    windows, predicted = nll.shape
    for name, column, groups in ((EVAL, "bin", 10), (THIRDS, "third", 3)):
        _write_sums(run / name, nll, sizes, column, groups)
    length = predicted + 1
    pd.DataFrame(
        {
            "window": np.arange(windows),
            "document": [f"play-{window // 8}" for window in range(windows)],
            "first_token": [window % 8 * length for window in range(windows)],
            "length": length,
        }
    ).to_parquet(run / WINDOWS)


def _write_sums(path: Path, nll: np.ndarray, sizes: np.ndarray, column: str, groups: int) -> None:
    windows, predicted = nll.shape
    member = np.arange(predicted) * groups // predicted
    rows = [
        (
            window,
            group,
            nll[window, member == group].sum(),
            int((member == group).sum()),
            sizes[window, member == group].sum(),
            max(1, int((member == group).sum()) // 2),
        )
        for window in range(windows)
        for group in range(groups)
    ]
    pd.DataFrame(rows, columns=pd.Index(["window", column, "nll_sum", "tokens", "bytes", "words"])).to_parquet(path)


def row_of(table: pd.DataFrame, cell: str, reference: str) -> Any:
    """The summary row of a cell against a reference."""
    rows = table[(table["cell"] == cell) & (table["reference"] == reference)]
    assert len(rows) == 1
    return rows.iloc[0]


def printed(folder: Path, **options: Any) -> str:
    """The output of `print_report`, without spending time on figures."""
    console, study = Console(record=True, **{"width": 80, "file": io.StringIO(), **options}), read_study(folder)
    print_report(Report(study, summarize(study), decisions(study), incomplete(study), [], [], folder), console)
    return console.export_text()
