"""Where a run stands, read from its folder alone: also on another machine than the one that runs it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hylo.core.errors import RecordError, first_line
from hylo.core.files import LEASE, heartbeat_age, owner_of
from hylo.runs.layout import COMPLETE, FAILED, INTERRUPTED, RESULT, RUNNING
from hylo.runs.record import RunRecord
from hylo.runs.store import read_run
from hylo.training.logs import CURVE

MISSING, DEAD, DAMAGED = "not begun", "dead", "damaged"
"""States beside those of a record: DEAD is a run whose process ended without a word."""
RECENT = 20
"""Steps whose mean time predicts the time left."""


@dataclass(frozen=True)
class Status:
    """The state of one run."""

    state: str
    """complete, running, interrupted, failed, dead, damaged or not begun."""
    note: str = ""
    """What is known besides: step and time left, or the reason."""

    @property
    def ended(self) -> bool:
        """Whether the run has a result, good or bad."""
        return self.state in (COMPLETE, FAILED)


def status_of(folder: Path) -> Status:
    """The status of the run in a folder, which need not exist."""
    if not (folder / RESULT).exists():
        owner = owner_of(folder) if _alive(folder) else None
        return Status(RUNNING, f"starting, {owner}") if owner else Status(MISSING)
    try:
        record = read_run(folder)
    except RecordError as error:
        return Status(DAMAGED, first_line(error))
    state = record.result["status"]
    if state == FAILED:
        return Status(FAILED, first_line(record.result["error"]))
    if state == COMPLETE:
        return Status(COMPLETE)
    lines, steps = _lines(folder), _steps(record)
    progress = [f"step {len(lines)} of {steps}"] if steps else []
    if state == INTERRUPTED:
        return Status(INTERRUPTED, "; ".join([*progress, record.result["error"]]))
    owner = owner_of(folder) or "its process"
    if _alive(folder):
        return Status(RUNNING, "; ".join([*progress, *_time_left(folder, lines, steps), owner]))
    return Status(DEAD, "; ".join([*progress, f"no heartbeat from {owner}"]))


def _alive(folder: Path) -> bool:
    age = heartbeat_age(folder)
    return age is not None and age <= LEASE


def _time_left(folder: Path, lines: list[bytes], steps: int) -> Iterator[str]:
    recent = [seconds for line in lines[-RECENT:] if (seconds := _seconds(line)) is not None]
    if recent and len(lines) < steps:
        yield f"ETA {(steps - len(lines)) * sum(recent) / len(recent):.0f} s"
    elif lines and (folder / CURVE).exists():
        yield f"evaluating for {max(0.0, time.time() - (folder / CURVE).stat().st_mtime):.0f} s"


def _steps(record: RunRecord) -> int:
    """Optimizer steps of the run; 0 if it trains nothing."""
    config = record.result.get("config", {})  # which records of earlier versions lack
    return config["trainer"]["steps"] if any(config.get("method", {}).values()) else 0


def _lines(folder: Path) -> list[bytes]:
    path = folder / CURVE
    return path.read_bytes().splitlines() if path.exists() else []


def _seconds(line: bytes) -> float | None:
    try:
        return float(json.loads(line)["seconds"])
    except (ValueError, KeyError, TypeError):
        return None
