"""Atomic writes and locks: a concurrent reader sees the old content or all of the new content, never a part."""

import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

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


@contextmanager
def exclusive(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder, creating it if needed. Other processes that want it wait until the block ends.

    The lock is a file beside the folder, because the folder itself may be replaced meanwhile.

    Raises:
        Timeout: another process has it, and `wait` is False.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=-1 if wait else 0):
        folder.mkdir(exist_ok=True)
        yield
