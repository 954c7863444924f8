"""Where a run stands, read from its folder alone: also on another machine than the one that runs it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hylo.core.errors import RecordError
from hylo.core.files import LEASE, heartbeat_age, owner_of
from hylo.runs.store import COMPLETE, FAILED, INTERRUPTED, RESULT, RUNNING, RunRecord, read_run
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
        return Status(DAMAGED, str(error).splitlines()[0])
    state = record.result["status"]
    if state == FAILED:
        return Status(FAILED, record.result["error"].splitlines()[0])
    if state == COMPLETE:
        return Status(COMPLETE)
    progress = _progress(record)
    if state == INTERRUPTED:
        return Status(INTERRUPTED, "; ".join([*progress, record.result["error"]]))
    if _alive(folder):
        return Status(RUNNING, "; ".join([*progress, *_time_left(record), owner_of(folder) or ""]))
    return Status(DEAD, "; ".join([*progress, f"no heartbeat from {owner_of(folder) or 'its process'}"]))


def _alive(folder: Path) -> bool:
    age = heartbeat_age(folder)
    return age is not None and age <= LEASE


def _progress(record: RunRecord) -> Iterator[str]:
    if total := _steps(record):
        yield f"step {len(_lines(record))} of {total}"


def _time_left(record: RunRecord) -> Iterator[str]:
    lines, total = _lines(record), _steps(record)
    recent = [seconds for line in lines[-RECENT:] if (seconds := _seconds(line)) is not None]
    if recent and len(lines) < total:
        yield f"ETA {(total - len(lines)) * sum(recent) / len(recent):.0f} s"
    elif lines and (record.folder / CURVE).exists():
        yield f"evaluating for {max(0.0, time.time() - (record.folder / CURVE).stat().st_mtime):.0f} s"


def _steps(record: RunRecord) -> int:
    """Optimizer steps of the run; 0 if it trains nothing."""
    config = record.result.get("config", {})  # which records of earlier versions lack
    return config["trainer"]["steps"] if any(config.get("method", {}).values()) else 0


def _lines(record: RunRecord) -> list[bytes]:
    path = record.folder / CURVE
    return path.read_bytes().splitlines() if path.exists() else []


def _seconds(line: bytes) -> float | None:
    try:
        return float(json.loads(line)["seconds"])
    except (ValueError, KeyError, TypeError):
        return None
