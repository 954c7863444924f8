"""Local text files. Each file is one document."""

from dataclasses import dataclass, field
from pathlib import Path

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.data.base import DataConfig, Document, Split
from hylo.data.files import split_files


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
        key = f"data.{split.name}_files"
        return [Document(str(path), _read(path, key)) for path in split_files(self, split)]


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
