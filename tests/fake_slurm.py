"""A Slurm of one machine, for tests where none is installed: jobs are processes, and the queue is a folder.

`install` writes the commands that hylo and submitit call: sbatch with job arrays, srun, squeue, and scontrol requeue.
They really run what they are given, with the variables that Slurm sets. The real one runs the same tests where there is
one (tests/test_launchers.py).
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

QUEUE = "FAKE_SLURM_QUEUE"


def install(folder: Path) -> dict[str, str]:
    """Write the commands to a folder. Returns the environment variables with which they are found."""
    commands, queue = folder / "bin", folder / "queue"
    for each in (commands, queue):
        each.mkdir(parents=True)
    for name in COMMANDS:
        path = commands / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", QUEUE: str(queue)}


def sbatch(*arguments: str) -> None:
    """Starts a process per job of the array, and returns."""
    queue, script = Path(os.environ[QUEUE]), Path(arguments[-1])
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script.read_text(), re.MULTILINE))
    number = str(len(list(queue.glob("*.array"))) + 1)
    (queue / f"{number}.array").touch()
    array = re.match(r"0-(\d+)", options.get("array", ""))
    for job in [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [number]:
        (queue / job).touch()
        command = [sys.executable, __file__, "run_job", job, str(script), options["output"]]
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {number}")


def run_job(job: str, script: str, output: str) -> None:
    """Runs a job's script, again after each requeue."""
    entry, (number, _, task) = Path(os.environ[QUEUE]) / job, job.partition("_")
    environment = os.environ | {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {}
    log = output.strip('"').replace("%A", number).replace("%a", task).replace("%j", number).replace("%t", "0")
    for restart in range(10):
        with open(log, "a") as file:
            job_process = subprocess.Popen(
                ["bash", script],
                env=environment | {"SLURM_RESTART_COUNT": str(restart)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            entry.write_text(str(job_process.pid))
            job_process.wait()
        requeued = entry.with_name(f"{job}.requeued")
        if not requeued.exists():
            break
        requeued.unlink()
    entry.unlink()


def srun(*arguments: str) -> None:
    """Runs a command in place of itself."""
    left = [*arguments]
    while left[0].startswith("-"):
        left = left[2 if left[0] == "--output" else 1 :]
    os.execvp(left[0], left)


def squeue(*arguments: str) -> None:
    """Prints the jobs that have not ended."""
    print("\n".join(path.name for path in Path(os.environ[QUEUE]).iterdir() if "." not in path.name))


def scontrol(action: str, job: str) -> None:
    """Puts a running job back into the queue."""
    assert action == "requeue"
    entry = Path(os.environ[QUEUE]) / job
    entry.with_name(f"{job}.requeued").touch()
    with suppress(ProcessLookupError):
        os.killpg(int(entry.read_text()), signal.SIGTERM)
    time.sleep(60)  # Slurm ends the caller, too


COMMANDS: dict[str, Callable[..., None]] = {each.__name__: each for each in (sbatch, run_job, srun, squeue, scontrol)}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
