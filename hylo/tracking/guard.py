"""Wraps every tracker: it receives only finite and private values, and its errors cost a one-line warning, never a run.

Source: own design.
"""

import dataclasses
import logging
import math
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any, final

import pandas as pd

from hylo.core.errors import HyloError
from hylo.core.registry import name_of
from hylo.tracking.base import TrackedRun, Tracker, TrackerConfig

_log = logging.getLogger(__name__)
_said: set[str] = set()
"""What this process has already printed: a sweep runs many jobs in one process."""


def open_tracker(config: TrackerConfig, run: TrackedRun) -> Tracker:
    """Begin a run with the chosen tracker. The home folder is written as `~` in its configuration.

    Raises:
        HyloError: as `config.check` does.
    """
    choice = name_of("tracking", type(config))
    tracker = None
    try:
        tracker = config.open(dataclasses.replace(run, resolved=_without_home(run.resolved)))
    except HyloError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a tracking library raises, the run can do without it
        reason = f"tracking={choice} could not start ({one_line(error)})"
        warn_once(f"{reason}, so nothing is tracked; tracking=none is silent", of=choice)
    return Guarded(tracker, choice)


@final
class Guarded(Tracker):
    """Passes clean values to another tracker; at its first error, warns once and stops tracking."""

    def __init__(self, tracker: Tracker | None, choice: str) -> None:
        self._tracker, self._choice = tracker, choice

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if finite := _finite(metrics):
            self._attempt(lambda tracker: tracker.log(finite, step))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._attempt(lambda tracker: tracker.summary(_finite(values)))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        cells = pd.DataFrame({str(key): _cells(column) for key, column in frame.items()}, dtype=object)
        self._attempt(lambda tracker: tracker.table(name, cells))

    def image(self, name: str, path: Path) -> None:
        self._attempt(lambda tracker: tracker.image(name, path))

    def finish(self, exit_code: int = 0) -> None:
        self._attempt(lambda tracker: tracker.finish(exit_code))
        self._tracker = None

    def _attempt(self, action: Callable[[Tracker], object]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:  # noqa: BLE001  as above
            broken, self._tracker = self._tracker, None
            reason = f"tracking={self._choice} stopped ({one_line(error)})"
            warn_once(f"{reason}; the run goes on untracked, its record is unaffected", of=self._choice)
            with suppress(Exception):
                broken.finish(exit_code=1)


def warn_once(message: str, of: str = "") -> None:
    """Warn once per process about the subject `of`; without one, once per message."""
    if _first(of or message):
        _log.warning(message)


def print_once(message: str) -> None:
    """Print a line once per process."""
    if _first(message):
        print(message)


def one_line(error: Exception) -> str:
    """An error's message, in at most 200 characters."""
    return textwrap.shorten(str(error) or type(error).__name__, 200)


def _first(what: str) -> bool:
    new = what not in _said
    _said.add(what)
    return new


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not isinstance(value, Real) or math.isfinite(value)}


def _cells(column: pd.Series) -> pd.Series:
    """A column as Python values of one kind, None for missing and non-finite ones; mixed kinds become text."""
    cells = column.astype(object).where(column.notna() & ~column.isin([math.inf, -math.inf]), None)
    kinds = {Real if isinstance(cell, Real) and not isinstance(cell, bool) else type(cell) for cell in cells.dropna()}
    return cells if len(kinds) <= 1 else cells.map(str, na_action="ignore")


def _without_home(node: Any) -> Any:
    """The same tree with the user's home folder written as `~`."""
    if isinstance(node, Mapping):
        return {key: _without_home(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_home(value) for value in node]
    home = str(Path.home())
    return node.replace(home, "~") if isinstance(node, str) and home != "/" else node
