"""Ray: cells as tasks of an existing cluster, or of one started on this machine (https://docs.ray.io).

A task whose worker process or node is lost starts again and goes on from its last checkpoint. Tasks end with the
process that submitted them: it must stay. Source: own design.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hylo.core.errors import HyloError, first_line
from hylo.core.interruption import Interrupted, handle_signals, stop_if_asked
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.launch.jobs import run_in_turn
from hylo.launch.watch import Watch
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint
from hylo.runs.launcher import LauncherConfig, need
from hylo.runs.shared import Session

GRACE = 120.0
"""Seconds that tasks have to finish their step and save their state when this process is asked to stop."""


@register("launcher", "ray")
@dataclass(kw_only=True, slots=True)
class RayConfig(LauncherConfig):
    """A Ray cluster whose nodes share this folder, or this machine."""

    address: str | None = None
    """Address of the cluster, or `auto`; None: RAY_ADDRESS if it is set, else Ray starts on this machine."""
    cpus: float = bounded(1.0, gt=0)
    """Cores of a cell, and its threads."""
    gpus: float = bounded(0.0, ge=0)
    """GPUs of a cell; a fraction lets several cells share one."""
    memory_gib: float | None = bounded(None, gt=0)
    """Memory that Ray sets aside for a cell; None: Ray does not count it."""
    restarts: int = bounded(5, ge=0)
    """How often a cell starts again whose worker process or node was lost."""

    def check(self) -> None:
        need("ray", "ray")

    def at_once(self, cells: Sequence[Cell], session: Session) -> int:
        return len(cells)

    def run(self, cells: Sequence[Cell], session: Session) -> None:
        import ray

        if not cells:
            return
        watch = Watch([cell.folder(fingerprint(cell.config, session)) for cell in cells])
        self._connect()
        try:
            options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": self.restarts}
            options |= {"memory": int(self.memory_gib * 2**30)} if self.memory_gib else {}
            task = ray.remote(**options)(_task)
            waiting = [task.remote(cell, os.getcwd(), self.cpus) for cell in cells]
            try:
                while waiting:
                    stop_if_asked()
                    ended, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
                    _say_if_lost(ended)
                    watch.say(jobs=len(waiting))
            except Interrupted:
                _stop(waiting)
                raise
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        import ray

        try:
            ray.init(
                address=self.address, include_dashboard=False, log_to_driver=True, configure_logging=False,
                runtime_env={"env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}},
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise HyloError(
                f"launcher=ray: no connection to {self.address or 'a cluster on this machine'}: {error}\n"
                f"    fix:     start Ray there (`ray start --head`), or launcher.address=null"
            ) from error


PASSED_ON = ("PYTHONPATH", "HYLO_CACHE", "HF_HUB_OFFLINE", "HF_HOME")
"""Environment variables that tasks get from this process."""


def _say_if_lost(tasks: list[Any]) -> None:
    """Print why tasks ended without having run their cell to its end: a cell that fails says so in its record."""
    import ray
    from ray.exceptions import RayError

    for each in tasks:
        try:
            ray.get(each)
        except RayError as error:
            print(f"launcher=ray: a task was lost: {first_line(error)}", file=sys.stderr, flush=True)


def _stop(tasks: list[Any]) -> None:
    """Ask tasks to stop, and wait until they have saved their state."""
    import ray

    for each in tasks:
        ray.cancel(each, force=False)
    until = time.monotonic() + GRACE
    while tasks and time.monotonic() < until:
        _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=1.0)


def _task(cell: Cell, folder: str, cpus: float) -> None:
    """Runs in a worker of Ray, in the folder of the process that submitted it."""
    os.chdir(Path(folder))
    handle_signals()
    torch.set_num_threads(max(1, int(cpus)))
    run_in_turn([cell], Session(), total=1)
