"""Watching runs that other machines execute, by their folders: a line whenever something changed."""

import time
from collections.abc import Sequence
from pathlib import Path

from hylo.core.interruption import stop_if_asked
from hylo.runs.layout import COMPLETE, FAILED, RUNNING
from hylo.runs.status import status_of

SAY_SECONDS = 60.0
"""Seconds after which a line is printed although nothing changed: somebody may be watching."""


class Watch:
    """The runs of some folders, as they go on elsewhere."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._left = [*folders]
        self._total, self._began = len(folders), time.monotonic()
        self._said, self._said_at = "", -SAY_SECONDS
        self._before: int | None = None
        """Runs that were complete at the first look: how long they took is not known."""

    def say(self, *, jobs: int) -> None:
        """Look at the runs, and print how many are complete, run and failed; so many `jobs` wait or run."""
        found = {folder: status_of(folder) for folder in self._left}
        # A failed run may be one of an earlier attempt that a job is about to repeat: only a complete one is settled.
        self._left = [folder for folder, status in found.items() if status.state != COMPLETE]
        running = [status for status in found.values() if status.state == RUNNING]
        failed = sum(status.state == FAILED for status in found.values())
        done, now = self._total - len(self._left), time.monotonic()
        said = f"{done} of {self._total} cells done, {len(running)} running, {jobs} jobs left"
        said += f", {failed} failed" * bool(failed)
        if said == self._said and now - self._said_at < SAY_SECONDS:
            return
        if self._before is None:
            self._before = done
        elapsed, lately = now - self._began, done - self._before
        eta = f", ETA {elapsed / lately * len(self._left):.0f} s" if lately and jobs else ""
        note = f" ({running[0].note})" if running else ""
        print(f"{said} in {elapsed:.0f} s{eta}{note}", flush=True)
        self._said, self._said_at = said, now

    def without_result(self) -> list[Path]:
        """The folders of the runs that ended neither well nor badly."""
        return [folder for folder in self._left if not status_of(folder).ended]

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Interrupted: a signal asked to stop.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            stop_if_asked()
            time.sleep(min(left, 0.5))
