"""Local text files. Each file is one document."""

import os
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.data.base import DataConfig, Document, Split


@register("data", "text_files")
@dataclass(kw_only=True, slots=True)
class TextFilesConfig(DataConfig):
    """Files of each split, as paths or glob patterns relative to the working directory."""

    train_files: list[str] = field(default_factory=list)
    """Files to train on."""
    validation_files: list[str] = field(default_factory=list)
    """Files for choosing settings."""
    test_files: list[str] = field(default_factory=list)
    """Files used for reported numbers."""

    def documents(self, split: Split) -> list[Document]:
        files = {each: self._files(each) for each in Split}
        key = f"data.{split.name}_files"
        for other in Split:
            if other is not split and (both := files[split].keys() & files[other].keys()):
                path = str(files[split][min(both)])
                raise ConfigError(problem(key, path, f"files not in data.{other.name}_files", "name each once"))
        return [Document(str(path), _read(path, key)) for path in files[split].values()]

    def _files(self, split: Split) -> dict[Path, Path]:
        """A split's files as named, by resolved path: a file matched by two patterns is listed once."""
        files: dict[Path, Path] = {}
        for pattern in getattr(self, f"{split.name}_files"):
            for path in _matches(pattern, f"data.{split.name}_files"):
                files.setdefault(path.resolve(), path)
        return files


def _matches(pattern: str, key: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))  # Path.expanduser raises for unknown users
    if path.is_file():  # its name may contain brackets, which a glob pattern would interpret
        return [path]
    matches = sorted(match for match in map(Path, glob(str(path), recursive=True)) if match.is_file())
    if not matches:
        fix = f"check the path from here: {Path.cwd()}"
        raise ConfigError(problem(key, pattern, "a text file, or a pattern that matches some", fix))
    return matches


def _read(path: Path, key: str) -> str:
    try:
        # Without a byte-order mark, which is no text. read_text would change line endings.
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = f"convert it to UTF-8, or leave it out ({error})"
        raise ConfigError(problem(key, str(path), "readable UTF-8 text", fix)) from error
    if not text.strip():
        raise ConfigError(problem(key, str(path), "a file with text; this one is blank", "leave it out"))
    return text
