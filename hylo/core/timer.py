"""Time that a run spends outside training and evaluation: loading, audits, checksums, records, tracking."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Starts when it is created."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._worked = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the block as work rather than overhead, unless it raises."""
        began = time.perf_counter()
        yield
        self._worked += time.perf_counter() - began

    def overhead(self) -> float:
        """Seconds so far that were not work."""
        return time.perf_counter() - self._began - self._worked
