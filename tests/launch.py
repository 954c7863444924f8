"""Starts train.py: in this process, which is fast, or in a new one, as a user does."""

import os
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import hydra._internal.hydra
import numpy as np
import program
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath

import hylo.report
from hylo.cli.main import compose
from hylo.runs.config import Config

ROOT = Path(__file__).parent.parent

TINY = ("model=tiny_llama", "trainer=smoke", "tracking=none", "data.context_length=32", "data.eval_windows=6")
"""A cell that takes a fraction of a second."""

_LOADERS: dict[tuple[str, ...], ConfigLoaderImpl] = {}


def _loader(config_search_path: ConfigSearchPath) -> ConfigLoaderImpl:
    """Hydra's loader of the same folders: what the same files give is composed once (hylo/cli/composition.py)."""
    folders = tuple(each.path or "" for each in config_search_path.get_path())
    return _LOADERS.setdefault(folders, ConfigLoaderImpl(config_search_path))


one_loader = mock.patch.object(hydra._internal.hydra, "ConfigLoaderImpl", _loader)
"""Hydra makes a loader each time it is started, so nothing would be known from one test to the next."""


def train(*arguments: str, figures: bool = False) -> int:
    """Runs train.py in this process and returns its exit code; sweeps and cells share `hylo.cli.main.SESSION`.

    Drawing takes longer than everything else in a tiny run, so few tests ask for figures. Hydra composes everything
    once more to find out whether this is a sweep; here the flag alone says so.
    """
    mode = mock.patch.object(Hydra, "get_mode", return_value=None)
    drawn = nullcontext() if figures else mock.patch.object(hylo.report, "all_figures", return_value={})
    with mock.patch.object(sys, "argv", ["train.py", *arguments]), drawn, mode, one_loader:
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0


def composed(*overrides: str) -> Config:
    """The typed configuration that train.py makes of overrides."""
    with one_loader, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(overrides)[0]


def train_process(
    *arguments: str, cwd: Path, processes: int = 1, forked: bool = program.LINUX, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs train.py in another process, or several as ranks of one run, with one thread each (see program.py)."""
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    train_py = str(ROOT / "train.py")
    return program.run(train_py, *arguments, cwd=cwd, env=settings, processes=processes, forked=forked)


def write_text(folder: Path) -> tuple[str, ...]:
    """Writes three text files with some structure and returns the overrides that select them."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + letter) for letter in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(60)]
    overrides = ["data=text"]
    for split in ("train", "validation", "test"):
        path = folder / f"{split}.txt"
        path.write_text("\n".join(" ".join(rng.choice(words, 15)) for _ in range(100)))
        overrides.append(f"data.{split}_files=[{path}]")
    return tuple(overrides)


def files_below(folder: Path) -> dict[str, Any]:
    """All files below a folder with their modification times."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
