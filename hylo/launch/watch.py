"""Watching runs that other machines execute, by their folders: a line whenever something changed."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hylo.core.interruption import stop_if_asked
from hylo.runs.status import Status, status_of
from hylo.runs.store import COMPLETE, FAILED, RUNNING

SAY_SECONDS = 60.0
"""Seconds after which a line is printed although nothing changed: somebody may be watching."""


class Watch:
    """The runs of some folders, as they go on elsewhere."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._open = dict.fromkeys(folders, Status("not begun"))
        self._ended: Counter[str] = Counter()
        self._total, self._began = len(folders), time.monotonic()
        self._said, self._said_at = "", -SAY_SECONDS

    def say(self, *, waiting: int) -> None:
        """Look at the runs, and print how many ended, run and wait; `waiting` jobs are in the queue or run."""
        for folder in [*self._open]:
            self._open[folder] = status = status_of(folder)
            if status.ended:
                self._ended[status.state] += 1
                del self._open[folder]
        running = [status for status in self._open.values() if status.state == RUNNING]
        done, now = sum(self._ended.values()), time.monotonic()
        said = (
            f"{self._ended[COMPLETE]} of {self._total} cells done, {len(running)} running, {waiting} jobs in the queue"
        )
        if self._ended[FAILED]:
            said += f", {self._ended[FAILED]} failed"
        if said == self._said and now - self._said_at < SAY_SECONDS:
            return
        elapsed = now - self._began
        eta = f", ETA {elapsed / done * len(self._open):.0f} s" if done and self._open else ""
        note = f" ({running[0].note})" if running else ""
        print(f"{said} in {elapsed:.0f} s{eta}{note}", flush=True)
        self._said, self._said_at = said, now

    def all_ended(self) -> bool:
        """Whether every run has a result."""
        return not self._open

    def not_ended(self) -> list[Path]:
        """The folders of the runs without a result."""
        return [*self._open]

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Interrupted: a signal asked to stop.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            stop_if_asked()
            time.sleep(min(left, 0.5))
