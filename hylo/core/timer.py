"""What a run spends besides training and evaluating: loading, audits, checksums, records, tracking."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Runs from its making."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._worked = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time of the block is work and no overhead; that of one that raises is not counted."""
        began = time.perf_counter()
        yield
        self._worked += time.perf_counter() - began

    def overhead(self) -> float:
        """Seconds so far without work."""
        return time.perf_counter() - self._began - self._worked
