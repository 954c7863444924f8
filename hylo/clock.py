"""What a run spends besides training and evaluating: loading, audits, checksums, records, tracking."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Clock:
    """Runs from its making. Wall time, less that of what is called through `work`, is overhead."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._worked = 0.0

    def work(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the action returns. Its time counts as work; that of one that raises does not."""
        began = time.perf_counter()
        result = action(*args, **kwargs)
        self._worked += time.perf_counter() - began
        return result

    def overhead(self) -> float:
        """Seconds so far without work."""
        return time.perf_counter() - self._began - self._worked
