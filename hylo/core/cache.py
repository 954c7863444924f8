"""The cache folder for data shared by many runs: converted weights, tokens, file hashes.

Everything in it can be deleted at any time and is rebuilt on demand. `HYLO_CACHE` sets the folder.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from hylo.core.files import draft_of, replacing
from hylo.core.sums import damaged_files, sha256, write_sums

_CHECKED: set[Path] = set()
"""Folders of the cache that this process has made, or found undamaged."""


def cache_folder() -> Path:
    """`$HYLO_CACHE`, else `$XDG_CACHE_HOME/hylo`, else `~/.cache/hylo`."""
    if chosen := os.environ.get("HYLO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hylo"


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, created by `make(draft folder)` if it does not exist.

    A process compares the checksums of an existing folder once. A damaged one is named on standard error, set aside as
    `.damaged-...` and made again.

    Two processes may create it at the same time: each writes its own draft, and the first one in place stays. It is
    never replaced, because the other process may already be reading it.
    """
    folder = cache_folder() / name
    if folder in _CHECKED and folder.exists():
        return folder
    if folder.exists() and (damaged := damaged_files(folder)):
        print(f"{folder} is damaged ({', '.join(damaged)}); making it again", file=sys.stderr, flush=True)
        folder.rename(draft_of(folder.with_name(f"damaged-{folder.name}")))
    _CHECKED.add(folder)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(folder)
    draft.mkdir()
    try:
        make(draft)
        write_sums(draft)
        try:
            draft.rename(folder)
        except OSError:  # fails if a non-empty folder is already there
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def text_hash(*parts: str | bytes) -> str:
    """SHA-256 over the parts and their lengths, as 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, cached by the file's path, size and change times."""
    status = path.stat()
    # ctime as well: unpacking, `cp -p` and rsync set mtime to that of the source.
    key = text_hash(str(path.resolve()), *map(str, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)))
    remembered = cache_folder() / "hashes" / key
    if remembered.exists():
        return remembered.read_text()
    digest = sha256(path)
    with replacing(remembered) as draft:
        draft.write_text(digest)
    return digest
