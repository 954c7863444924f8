"""Test session: no network, no display, no reporting to external services.

The marker `slow` is for tests that take many seconds (the real model, a separate process, a whole study); `make test`
skips it, CI does not. The marker `exhaustive` is for more of what other tests show: further combinations of methods and
architectures (`matrix` in adapters.py), families of models, pages and benchmarks. It is run by `make test-all`, and by
CI where the locked libraries changed.
"""

import atexit
import gc
import os
import shutil
import tempfile

# Libraries read these on import, so they are set before any other import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on two threads, and test processes run in parallel
# Leaves the user's cache alone, and an older entry cannot hide a broken conversion. Test processes share theirs.
if not {"PYTEST_XDIST_WORKER", "HYLO_CACHE"} <= os.environ.keys():
    os.environ["HYLO_CACHE"] = tempfile.mkdtemp(prefix="hylo-tests-")
    atexit.register(shutil.rmtree, os.environ["HYLO_CACHE"], ignore_errors=True)
# The libraries make so many lasting objects that looking for garbage among them takes a tenth of a test's time.
gc.set_threshold(50_000, 20, 50)

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each process starts with its share of the slow tests, which often wait, and none has a long one left at the end.

    `--dist worksteal` gives each process an equal part of the list, then whole parts of what others have not begun.
    """
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    bounds = [(number / processes, (number + 1) / processes) for number in range(processes)]
    items[:] = [item for low, high in bounds for part in (slow, fast) for item in share(part, low, high)]


def share(items: list[pytest.Item], low: float, high: float) -> list[pytest.Item]:
    """The items from one fraction of the list to another."""
    return items[round(low * len(items)) : round(high * len(items))]


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuses connections that leave this machine: a test that needs one would fail elsewhere."""
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
    """A synthetic study: three seeds of each of CELLS. Shared between tests, so read-only."""
    folder = tmp_path_factory.mktemp("recorded") / "demo"
    return write_recorded_study(folder, CELLS, [0, 1, 2], np.random.default_rng(0), params=PARAMS, **SIZE)


@pytest.fixture(scope="session")
def table(recorded: Path) -> pd.DataFrame:
    """Its summary."""
    return summarize(read_study(recorded))


@pytest.fixture
def study(recorded: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may modify or damage."""
    return Path(shutil.copytree(recorded, tmp_path / "demo"))
