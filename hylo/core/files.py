"""Atomic writes and locks: a concurrent reader sees the old content or all of the new content, never a part."""

import json
import math
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import LeaseCompromise, SoftFileLease, Timeout

from hylo.core.interruption import ask_to_stop, asked_to_stop, stop_if_asked

if TYPE_CHECKING:
    import pandas as pd

DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names of drafts: see `draft_of`."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft that replaces a file when the block succeeds, and is deleted when it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A draft folder that replaces `folder` when the block succeeds, and is deleted when it raises.

    The folder is moved out of the way only when the draft is complete, and deleted only when the draft stands in its
    place; or kept as `keep`, in place of what was there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, old = draft_of(folder), keep or draft_of(folder)
    draft.mkdir()
    try:
        yield draft
        if folder.exists():
            remove_folder(old)
            folder.rename(old)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if keep is None:
            shutil.rmtree(old, ignore_errors=True)


def flush(folder: Path) -> None:
    """Wait until a folder's files are on the disk, so that they survive a loss of power."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def remove_drafts(folder: Path) -> None:
    """Delete what writers that were killed left in a folder. Only for the process that has the folder to itself."""
    for path in folder.glob(".*"):
        if DRAFT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def draft_of(path: Path) -> Path:
    """A unique name beside a file or folder. Process ids would not do: they repeat in containers and on machines that
    share a disk."""
    return path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex}")


def remove_folder(folder: Path) -> None:
    """Delete a folder if it exists."""
    if folder.exists():
        shutil.rmtree(folder)


def write_json(path: Path, content: Any) -> None:
    """Write JSON. NaN is rejected: it is not valid JSON."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as draft:
        draft.write_text(text)


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as Parquet."""
    with replacing(path) as draft:
        table.to_parquet(draft, index=False)


def finite_or_none(value: float) -> float | None:
    """The value, or None if it is not finite: JSON has no NaN, and no number can stand in for one."""
    return value if math.isfinite(value) else None


LEASE = 60.0
"""Seconds without a heartbeat after which a lock's owner counts as dead. On its own machine, its process tells."""


@contextmanager
def exclusive(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder, creating it if needed. Other processes that want it wait until the block ends, and say for whom.

    The lock is a file beside the folder, because the folder itself may be replaced meanwhile. It names its owner, who
    renews it while it lives: this also works where machines share a disk that has no locks of its own (NFS). An owner
    that finds another one in its place stops at the next step.

    Raises:
        Timeout: another process has it, and `wait` is False.
        Interrupted: a signal asked to stop while waiting.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLease(_lock_of(folder), lease_duration=LEASE, on_compromise=_stop_working)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        print(f"{folder}: waiting for {owner_of(folder) or 'another process'}", file=sys.stderr, flush=True)
        with suppress(Timeout):
            lock.acquire(poll_interval=0.2, cancel_check=asked_to_stop)
        if not lock.is_locked:
            stop_if_asked()
    try:
        folder.mkdir(exist_ok=True)
        yield
    finally:
        lock.release()


def owner_of(folder: Path) -> str | None:
    """The process that has a folder locked, or died while it had; None if there is none."""
    owner = SoftFileLease(_lock_of(folder), lease_duration=LEASE).owner
    return None if owner is None else f"process {owner.pid} on {owner.hostname}"


def heartbeat_age(folder: Path) -> float | None:
    """Seconds since the owner of a folder's lock renewed it; None if it is not locked."""
    try:
        return max(0.0, time.time() - _lock_of(folder).stat().st_mtime)
    except FileNotFoundError:
        return None


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.owner")


def _stop_working(lost: LeaseCompromise) -> None:
    print(f"{lost.lock_file}: another process took over; stopping", file=sys.stderr, flush=True)
    ask_to_stop()
