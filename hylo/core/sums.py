"""Checksums of the files in a folder, so that a file that was damaged on the disk is noticed when it is read back."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from hylo.core.files import write_json

SUMS = "sha256.json"
"""File in the folder: the SHA-256 of every other file, by its path in the folder."""


def write_sums(folder: Path) -> None:
    """Write the checksums of a folder whose files are complete. Locks and drafts, whose names begin with a dot, do not
    count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    sums = {path.relative_to(folder).as_posix(): sha256(path) for path in files if path.name != SUMS}
    write_json(folder / SUMS, sums)


def remove_sums(folder: Path) -> None:
    """Take back the checksums before a file of the folder changes; interrupted then, it counts as unchecked."""
    (folder / SUMS).unlink(missing_ok=True)


def damaged_files(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Files that are not what was written: missing, or with another checksum.

    Args:
        folder: a folder with checksums. Without (written by an earlier version, or still being written), no file counts
            as damaged.
        wanted: whether to look at a file, by its path in the folder.
    """
    path = folder / SUMS
    if not path.exists():
        return []
    try:
        sums = json.loads(path.read_text())
        return [name for name, expected in sums.items() if wanted(name) and not _is(folder / name, expected)]
    except (ValueError, TypeError, AttributeError):
        return [SUMS]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is(path: Path, expected: str) -> bool:
    return path.is_file() and sha256(path) == expected
