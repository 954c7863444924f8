"""Test session: no network, no display, nothing reported to anyone.

The marker `slow` is for what needs many seconds (the real model, a process of its own, a whole study) and for the part
of methods x architectures that says least: see `matrix` in adapters.py. `make test` leaves it out; `make test-all` and
CI run everything.
"""

import atexit
import os
import shutil
import tempfile

# Read by the libraries when they are first imported, so this comes before every other import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on two threads, and two test processes would be on four
# The user's cache stays as it is, and a broken conversion cannot hide behind an older one.
os.environ["HYLO_CACHE"] = tempfile.mkdtemp(prefix="hylo-tests-")
atexit.register(shutil.rmtree, os.environ["HYLO_CACHE"], ignore_errors=True)

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from launch import TINY, write_text
from recorded import CELLS, PARAMS, SIZE, write_recorded_study

from hylo.report import summarize
from hylo.runs.store import read_study


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse connections that leave this machine: a test that needs one would pass here and fail elsewhere."""
    connect = socket.socket.connect

    def guarded(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to connect to {address!r}; tests use no network")
        connect(sock, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of a cell that takes a fraction of a second: a tiny model on a few kilobytes of text."""
    return (*TINY, *write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic study: three seeds of each of CELLS. Shared: read it, do not change it."""
    folder = tmp_path_factory.mktemp("recorded") / "demo"
    return write_recorded_study(folder, CELLS, [0, 1, 2], np.random.default_rng(0), params=PARAMS, **SIZE)


@pytest.fixture(scope="session")
def table(recorded: Path) -> pd.DataFrame:
    """Its summary."""
    return summarize(read_study(recorded))


@pytest.fixture
def study(recorded: Path, tmp_path: Path) -> Path:
    """A copy of it to write to, or to damage."""
    return Path(shutil.copytree(recorded, tmp_path / "demo"))
