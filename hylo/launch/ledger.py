"""Which job was handed which cells, on disk, so that a later process finds the jobs of an earlier one."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hylo.core.errors import RecordError
from hylo.core.files import write_json

JOBS, LEDGER = "jobs", "jobs.json"
"""Folder of a group's jobs (their scripts and output), and the ledger in it."""


class Ledger:
    """The jobs of a group: outputs/<group>/jobs/jobs.json. A cell is known by the name of its run's folder."""

    def __init__(self, group: Path) -> None:
        self.folder = group / JOBS
        self._path = self.folder / LEDGER

    def jobs(self) -> dict[str, list[str]]:
        """The runs of each job, oldest job first.

        Raises:
            RecordError: the ledger is damaged.
        """
        try:
            content: Any = json.loads(self._path.read_text())
            return {job["id"]: list(job["runs"]) for job in content["jobs"]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{self._path} is damaged ({error!r}); delete it: jobs that run finish anyway") from error

    def add(self, jobs: Mapping[str, Sequence[str]]) -> None:
        """Enter jobs that were just submitted."""
        known = {"jobs": [], **(json.loads(self._path.read_text()) if self._path.exists() else {})}
        now = round(time.time())
        known["jobs"] += [{"id": job, "runs": list(runs), "submitted": now} for job, runs in jobs.items()]
        write_json(self._path, known)

    def job_of(self) -> dict[str, str]:
        """The latest job of each run."""
        return {run: job for job, runs in self.jobs().items() for run in runs}
