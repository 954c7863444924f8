"""The cache folder for what is made once and used by many runs: converted weights, tokens, file hashes.

Everything in it can be deleted at any time and is made again. `HYLO_CACHE` chooses the folder.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from hylo.records import replacing_folder


def cache_folder() -> Path:
    """`$HYLO_CACHE`, else `$XDG_CACHE_HOME/hylo`, else `~/.cache/hylo`."""
    if chosen := os.environ.get("HYLO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hylo"


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made by `make(draft folder)` if it is not there.

    Two processes may make it at the same time: each writes a draft of its own, and the last one in place stays.
    """
    folder = cache_folder() / name
    if not folder.exists():
        with replacing_folder(folder) as draft:
            make(draft)
    return folder


def text_hash(*parts: str | bytes) -> str:
    """SHA-256 over the parts with their lengths, as 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content. Remembered in the cache under the file's path, size and time of change."""
    status = path.stat()
    key = text_hash(str(path.resolve()), str(status.st_size), str(status.st_mtime_ns))
    remembered = cache_folder() / "hashes" / key
    if remembered.exists():
        return remembered.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    remembered.parent.mkdir(parents=True, exist_ok=True)
    draft = remembered.with_name(f".{key}.{os.getpid()}")
    draft.write_text(digest)
    draft.replace(remembered)
    return digest
