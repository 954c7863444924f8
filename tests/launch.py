"""Starts train.py: in this process, which is fast, or in one of its own, as a user does."""

import os
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hydra import initialize_config_dir

import hylo.report
from hylo.cli.main import compose
from hylo.runs.config import Config

ROOT = Path(__file__).parent.parent

TINY = ("model=tiny_llama", "trainer=smoke", "tracking=none", "data.context_length=32", "data.eval_windows=6")
"""A cell that takes a fraction of a second."""


def train(*arguments: str, figures: bool = False) -> int:
    """Run train.py in this process and return its exit code; sweeps and cells share what `hylo.cli.main.SESSION` keeps.

    Drawing takes longer than the rest of a tiny run, its report and its start together, so few tests ask for figures.
    """
    drawn = nullcontext() if figures else mock.patch.object(hylo.report, "study_figures", return_value=[])
    with mock.patch.object(sys, "argv", ["train.py", *arguments]), drawn:
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0


def composed(*overrides: str) -> Config:
    """The typed configuration that train.py makes of overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(overrides)[0]


def train_process(
    *arguments: str, cwd: Path, processes: int = 1, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run train.py as a user does, with one thread; in several processes by torchrun."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *several, str(ROOT / "train.py"), *arguments]
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=600, check=False)


def write_text(folder: Path) -> tuple[str, ...]:
    """Write three text files with some structure in them and return the overrides that choose them."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + letter) for letter in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(60)]
    overrides = ["data=text"]
    for split in ("train", "validation", "test"):
        path = folder / f"{split}.txt"
        path.write_text("\n".join(" ".join(rng.choice(words, 15)) for _ in range(100)))
        overrides.append(f"data.{split}_files=[{path}]")
    return tuple(overrides)


def files_below(folder: Path) -> dict[str, Any]:
    """Every file below a folder with its time of change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
