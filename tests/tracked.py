"""A run and a report to track, and scripts in separate processes, since trackers keep per-process state."""

import math
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from hylo.tracking.base import TrackedRun, Tracker, log_report, log_run, log_step

ROOT = Path(__file__).parents[1]
KEY = "0123456789abcdef" * 2 + "01234567"  # well-formed, but belongs to no account
STEPS, DIVERGED = 150, 7  # enough steps for several blocks of a W&B file; the step with a NaN loss
RESULT: dict[str, Any] = {
    "status": "complete",
    "fingerprint": "f00d",
    "audit": {"failed": ["causality", "padding"]},
    "params": {"trainable": 811008},
    "metrics": {"ppl": 27.7, "lim_ppl": 26.5, "bins": [1.0, 2.0], "probe": {"gap": math.nan, "ends": 0.9}},
    "training": {"seconds": 12.5, "nonfinite_steps": 1},
}
NUMBERS = {
    "eval/ppl": 27.7, "eval/lim_ppl": 26.5, "eval/probe/ends": 0.9, "params/trainable": 811008,
    "training/seconds": 12.5, "training/nonfinite_steps": 1,
}  # fmt: skip
"""The finite numbers of RESULT, by their names in a summary."""
SUMMARY = pd.DataFrame(
    {"cell": ["untuned", "lora"], "ppl": [38.8, 30.0], "gain": [math.nan, 22.7], "params": ["none", 811008]}
)


@dataclass
class Tracked:
    """What was sent."""

    curve: pd.DataFrame
    figure: Path


def known_run(folder: Path, name: str = "lora-seed0", job_type: str = "cell") -> TrackedRun:
    """A run with a list, a null and a path in the home folder in its configuration."""
    resolved = {"method": {"rank": 8, "targets": ["q", "v"], "bias": None}, "model": {"path": str(Path.home() / "m")}}
    return TrackedRun(
        folder=folder, group="study", name=name, resolved=resolved, job_type=job_type, tags=("gpt2", "plays")
    )


def send_everything(tracker: Tracker, folder: Path) -> Tracked:
    """Sends a curve, a result, two tables, a PNG and an SVG; the figures are written to the folder."""
    step = np.arange(STEPS)
    loss = np.where(step == DIVERGED, math.nan, 4.0 - step / STEPS)
    curve = pd.DataFrame(
        {"step": step, "loss": loss, "learning_rate": 5e-4, "grad_norm": 1.0, "tokens": 1024, "seconds": 0.5}
    )
    figure = folder / "forest.png"
    Image.new("RGB", (100, 100)).save(figure)
    figure.with_suffix(".svg").write_text("<svg/>")
    for row in curve.to_dict("records"):
        log_step(tracker, {str(key): value for key, value in row.items()})
    log_run(tracker, RESULT)
    log_report(
        tracker, SUMMARY, [figure.with_suffix(".svg"), figure], {"claims": SUMMARY.drop(columns=["gain", "params"])}
    )
    tracker.finish()
    return Tracked(curve, figure)


def run_script(script: str, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a script in a fresh process, whose trackers see only these variables and an empty home folder."""
    prefixes = ("WANDB_", "TRACKIO_", "HF_", "NETRC")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    (folder / "home").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env=clean | {"HOME": str(folder / "home"), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
