"""Stopping on a signal without losing work: a step ends, the state is saved, and what there is is reported.

The first SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 only asks to stop; code that can stop calls `stop_if_asked` at its
next safe point. Worker processes are told. A second signal, at least a second later, ends the process at once; earlier
it is taken for the first one, because schedulers and terminals often send it twice.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""Those that the platform has are handled: Ctrl-C, the end of a login, and what schedulers send before they kill."""


class Interrupted(BaseException):
    """The user or a scheduler asked to stop. No Exception: nothing that handles failures may take it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        """The signal's number."""

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


TWICE = 1.0
"""Seconds after which another signal is a second one."""

_ARRIVED: dict[str, float] = {}
"""The `number` of the first signal that arrived, and the `time`; empty: none did."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Handles the signals for the duration of the block. In other threads than the main one it does nothing."""
    before = handle_signals()
    _ARRIVED.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ARRIVED.clear()


def handle_signals() -> dict[int, Any]:
    """Handle the signals from now on. Returns the handlers that were there, by signal."""
    before: dict[int, Any] = {}
    for name in SIGNALS:
        with suppress(AttributeError, ValueError):  # not on this platform; not in the main thread
            number = getattr(signal, name)
            before[number] = signal.signal(number, _ask)
    return before


def asked_to_stop() -> bool:
    """Whether a signal has arrived."""
    return bool(_ARRIVED)


def ask_to_stop() -> None:
    """Stop at the next safe point, as if by SIGTERM."""
    if not _ARRIVED:
        _ARRIVED.update(number=signal.SIGTERM, time=time.monotonic())


def stop_if_asked() -> None:
    """Stop here if a signal has arrived.

    Raises:
        Interrupted: as above.
    """
    if _ARRIVED:
        raise interrupted()


def interrupted() -> Interrupted:
    """What to raise; in a process that got no signal itself, but stops with the others, as if by SIGTERM."""
    return Interrupted(int(_ARRIVED.get("number", signal.SIGTERM)))


def _ask(number: int, frame: FrameType | None) -> None:
    worker = multiprocessing.parent_process() is not None  # it ends at once when its parent does
    if _ARRIVED:
        if not worker and time.monotonic() - _ARRIVED["time"] > TWICE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _ARRIVED.update(number=number, time=time.monotonic())
    if not worker:
        said = "finishing the current step; once more to end at once"
        print(f"\n{signal.Signals(number).name}: {said}", file=sys.stderr, flush=True)
    for child in multiprocessing.active_children():
        with suppress(OSError):  # it has ended in the meantime
            os.kill(cast(int, child.pid), number)
