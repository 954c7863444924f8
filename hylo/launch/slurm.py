"""Slurm: cells as arrays of jobs, submitted by submitit (https://github.com/facebookincubator/submitit).

A job gets a signal before its time is up; its cell then saves its state and the job is put back into the queue, where
it goes on from there. The process that submitted only watches: it may be ended and started again. Source: own design.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hylo.core.errors import ConfigError, HyloError, MissingDependency, problem
from hylo.core.interruption import Interrupted, handle_signals, stop_if_asked
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.launch.jobs import run_in_turn
from hylo.launch.ledger import Ledger
from hylo.launch.slurm_commands import final_states, in_queue, reason
from hylo.launch.watch import Watch
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint
from hylo.runs.launcher import LauncherConfig, LeftRunning, need
from hylo.runs.shared import Session

WARNING = "SIGUSR2"
"""What Slurm sends before a job's time is up, and what submitit takes for a preemption."""
PATIENCE = 600.0
"""Seconds without an answer from Slurm after which watching ends."""
STARTING = 120
"""Seconds that a job has to load its libraries. A warning that comes earlier finds nobody who heeds it."""


@register("launcher", "slurm")
@dataclass(kw_only=True, slots=True)
class SlurmConfig(LauncherConfig):
    """A cluster with Slurm, from a machine that has its commands and shares the disk with the nodes."""

    partition: str | None = None
    """Partition; None: the cluster's default."""
    account: str | None = None
    """Account that is charged; None: your default."""
    qos: str | None = None
    """Quality of service; None: the default."""
    constraint: str | None = None
    """Features that a node must have, such as `a100|h100`; None: any node."""
    minutes: int = bounded(240, ge=1)
    """Time limit of a job. A cell that needs longer goes on in the next one."""
    cpus: int = bounded(4, ge=1)
    """Cores of a job, and threads of its cells."""
    gpus: int = bounded(0, ge=0)
    """GPUs of a job."""
    memory_gib: float = bounded(16.0, gt=0)
    """Memory of a job."""
    cells_per_job: int = bounded(1, ge=1)
    """Cells that a job runs one after the other, sharing what they load: more for cells of a minute or two."""
    jobs_at_once: int | None = bounded(None, ge=1)
    """Jobs of an array that may run at the same time; None: as many as the cluster allows."""
    array_size: int = bounded(1000, ge=1)
    """Jobs in an array; a cluster's limit is in `scontrol show config` (MaxArraySize)."""
    requeues: int = bounded(20, ge=0)
    """How often a job goes back into the queue when its time is up."""
    warning_seconds: int = bounded(120, ge=1)
    """Seconds before the end at which a job is told: enough for an optimizer step and saving its state."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job's program, such as `module load cuda`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, such as `reservation: name`."""
    wait: bool = True
    """Watch the jobs until they end; false returns at once, and `python -m hylo.studies` says how they fare."""
    poll_seconds: float = bounded(10.0, gt=0)
    """Seconds between two looks at the jobs."""

    def check(self) -> None:
        need("submitit", "slurm")
        if missing := [name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]:
            raise MissingDependency(
                f"launcher=slurm needs Slurm's commands; {', '.join(missing)} not found\n"
                f"    fix:     start it on a machine of the cluster, or launcher=local"
            )
        if self.minutes * 60 < (least := self.warning_seconds + STARTING):
            allowed = f"at least {least / 60:g}: {STARTING} s to start, and launcher.warning_seconds"
            raise ConfigError(problem("launcher.minutes", self.minutes, allowed, "a longer time limit"))

    def at_once(self, cells: Sequence[Cell], session: Session) -> int:
        return len(cells)

    def run(self, cells: Sequence[Cell], session: Session) -> None:
        if not cells:
            return
        runs = {cell.folder(fingerprint(cell.config, session)): cell for cell in cells}
        group = next(iter(runs)).parent
        ledger = Ledger(group)
        queued = in_queue()
        taken = {run for job, names in ledger.jobs().items() if job in queued for run in names}
        left = {folder: cell for folder, cell in runs.items() if folder.name not in taken}
        if len(left) < len(runs):
            print(f"{group.name}: {len(runs) - len(left)} cells are in jobs already", flush=True)
        self._submit(left, ledger)
        if not self.wait:
            raise LeftRunning(group)
        self._watch([*runs], ledger)

    def _submit(self, cells: dict[Path, Cell], ledger: Ledger) -> None:
        folders = [*cells]
        jobs = [folders[first : first + self.cells_per_job] for first in range(0, len(cells), self.cells_per_job)]
        for first in range(0, len(jobs), self.array_size):
            stop_if_asked()
            array = jobs[first : first + self.array_size]
            executor = self._executor(ledger.folder, folders[0].parent.name)
            try:
                submitted = executor.map_array(
                    _job, [[cells[each] for each in job] for job in array], [self] * len(array)
                )
            except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
                raise HyloError(f"launcher=slurm: sbatch refused the jobs: {reason(error)}") from error
            ids = [job.job_id for job in submitted]
            ledger.add({job: [folder.name for folder in array[place]] for place, job in enumerate(ids)})
            size = sum(map(len, array))
            print(f"{ledger.folder.parent.name}: {size} cells in {len(ids)} jobs, {ids[0]} to {ids[-1]}", flush=True)

    def _executor(self, folder: Path, name: str) -> Any:
        import submitit

        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        executor = submitit.SlurmExecutor(folder.resolve())
        wanted = {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus or None,
            "mem": f"{max(1, round(self.memory_gib * 1024))}MB",
            "array_parallelism": self.jobs_at_once or self.array_size,
            "signal_delay_s": self.warning_seconds,
            "setup": self.setup or None,
            "additional_parameters": self.options or None,
            "stderr_to_stdout": True,
        }
        executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
        return executor

    def _watch(self, folders: list[Path], ledger: Ledger) -> None:
        """Return when no job holds one of these runs any more."""
        watch, answered = Watch(folders), time.monotonic()
        jobs = {job for run, job in ledger.job_of().items() if run in {folder.name for folder in folders}}
        while True:
            try:
                queued, answered = in_queue(), time.monotonic()
            except HyloError:
                if time.monotonic() - answered > PATIENCE:
                    raise
                queued = jobs
            alive = jobs & queued
            watch.say(jobs=len(alive))
            if not alive:
                break
            watch.pause(self.poll_seconds)
        if left := watch.without_result():
            _say_why(left, ledger)


def _say_why(folders: list[Path], ledger: Ledger) -> None:
    """Print what Slurm knows of the jobs that left runs behind."""
    job_of = ledger.job_of()
    states = final_states(sorted({job_of[folder.name] for folder in folders if folder.name in job_of}))
    for folder in folders[:20]:
        job = job_of.get(folder.name, "")
        state = states.get(job, "no longer in the queue")
        print(f"{folder.name}: job {job}: {state}; its output: {ledger.folder}/{job}_0_log.out", file=sys.stderr)
    if len(folders) > 20:
        print(f"... and {len(folders) - 20} more", file=sys.stderr)


def _job(cells: Sequence[Cell], config: SlurmConfig) -> None:
    """Runs in the job. Told that its time is up, it saves its state and goes back into the queue."""
    handle_signals()
    torch.set_num_threads(config.cpus)
    try:
        run_in_turn(cells, Session(), total=len(cells))
    except Interrupted as stopped:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if signal.Signals(stopped.number).name == WARNING and restarts < config.requeues:
            print(f"back into the queue: {_own_id()}", flush=True)
            subprocess.run(["scontrol", "requeue", _own_id()], check=True, timeout=60)
        sys.exit(stopped.exit_code)


def _own_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
