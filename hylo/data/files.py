"""Local files of each split, named by paths or glob patterns."""

import os
from glob import glob
from pathlib import Path
from typing import Any

from hylo.core.errors import ConfigError, problem
from hylo.data.base import DataConfig, Split


def split_files(config: DataConfig, split: Split) -> list[Path]:
    """The files that `<split>_files` of a config names, each once, in order.

    Raises:
        ConfigError: a pattern matches no file, or a file is named for two splits.
    """
    files = {each: _files(config, each) for each in Split}
    for other in Split:
        if other is not split and (both := files[split].keys() & files[other].keys()):
            path = str(files[split][min(both)])
            allowed = f"files not in data.{other.name}_files"
            raise ConfigError(problem(f"data.{split.name}_files", path, allowed, "name each once"))
    return list(files[split].values())


def _files(config: Any, split: Split) -> dict[Path, Path]:
    """A split's files as named, by resolved path: a file matched by two patterns is listed once."""
    key = f"{split.name}_files"
    files: dict[Path, Path] = {}
    for pattern in getattr(config, key):
        for path in matching_files(pattern, f"data.{key}"):
            files.setdefault(path.resolve(), path)
    return files


def matching_files(pattern: str, key: str) -> list[Path]:
    """The files that a path or a glob pattern names, sorted; `key` is the setting that it stands in.

    Raises:
        ConfigError: there are none.
    """
    path = Path(os.path.expanduser(pattern))  # Path.expanduser raises for unknown users
    if path.is_file():  # its name may contain brackets, which a glob pattern would interpret
        return [path]
    matches = sorted(match for match in map(Path, glob(str(path), recursive=True)) if match.is_file())
    if not matches:
        fix = f"check the path from here: {Path.cwd()}"
        raise ConfigError(problem(key, pattern, "a text file, or a pattern that matches some", fix))
    return matches


def read_text(path: Path, key: str) -> str:
    """The text of a file; `key` is the setting that names it.

    Raises:
        ConfigError: it cannot be read, is not UTF-8, or is blank.
    """
    try:
        # Without a byte-order mark, which is no text. Path.read_text would change line endings.
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = f"convert it to UTF-8, or leave it out ({error})"
        raise ConfigError(problem(key, str(path), "readable UTF-8 text", fix)) from error
    if not text.strip():
        raise ConfigError(problem(key, str(path), "a file with text; this one is blank", "leave it out"))
    return text
