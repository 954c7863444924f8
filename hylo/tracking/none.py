"""No tracking: the record is all there is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pandas as pd

from hylo.core.registry import register
from hylo.tracking.base import TrackedRun, Tracker, TrackerConfig


@register("tracking", "none")
@dataclass(kw_only=True, slots=True)
class NoTrackingConfig(TrackerConfig):
    """Nothing is sent or written anywhere but in the record."""

    def check(self) -> None: ...

    def open(self, run: TrackedRun) -> "NullTracker":
        return NullTracker()


@final
class NullTracker(Tracker):
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def summary(self, values: Mapping[str, Any]) -> None: ...
    def table(self, name: str, frame: pd.DataFrame) -> None: ...
    def image(self, name: str, path: Path) -> None: ...
    def finish(self, exit_code: int = 0) -> None: ...
