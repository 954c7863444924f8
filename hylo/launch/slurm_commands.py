"""What Slurm's own commands say about jobs."""

import subprocess
from collections.abc import Sequence

from hylo.core.errors import HyloError


def in_queue() -> set[str]:
    """The user's jobs that wait or run, one entry per job of an array.

    Raises:
        HyloError: Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())
    except (OSError, subprocess.SubprocessError) as error:
        raise HyloError(f"launcher=slurm: squeue does not answer: {reason(error)}") from error


def final_states(jobs: Sequence[str]) -> dict[str, str]:
    """The state of ended jobs from Slurm's accounting; empty without one."""
    command = ["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(jobs)]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split("|", 1) for line in lines if "|" in line)


def reason(error: Exception) -> str:
    """What a command said when it failed, in at most 500 characters."""
    said = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
    return (said.decode() if isinstance(said, bytes) else str(said)).strip()[:500]
