"""Any local text files. One file is one document."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hylo.data.base import DataConfig, Document, Split
from hylo.errors import ConfigError, problem
from hylo.schema import register


@register("data")
@dataclass(kw_only=True, slots=True)
class TextFilesConfig(DataConfig):
    """Files of each split, as paths or glob patterns relative to where train.py is started."""

    train_files: list[str] = field(default_factory=list)
    """Files to train on."""
    validation_files: list[str] = field(default_factory=list)
    """Files for choosing settings."""
    test_files: list[str] = field(default_factory=list)
    """Files that reported numbers come from."""

    def documents(self, split: Split) -> list[Document]:
        files = {each: self._files(each) for each in Split}
        for other in Split:
            if other is not split and (both := set(files[split]) & set(files[other])):
                raise ConfigError(
                    problem(
                        f"data.{split.name}_files",
                        str(min(both)),
                        f"files not in data.{other.name}_files",
                        "name each once",
                    )
                )
        return [Document(str(path), path.read_text(encoding="utf-8")) for path in files[split]]

    def _files(self, split: Split) -> list[Path]:
        return [path for pattern in getattr(self, f"{split.name}_files") for path in self._matches(pattern, split)]

    def _matches(self, pattern: str, split: Split) -> Iterator[Path]:
        path = Path(pattern).expanduser()
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        matches = sorted(match for match in anchor.glob(str(path.relative_to(anchor))) if match.is_file())
        if not matches:
            key = f"data.{split.name}_files"
            raise ConfigError(
                problem(
                    key,
                    pattern,
                    "a text file, or a pattern that matches some",
                    "check the path from here: " + str(Path.cwd()),
                )
            )
        yield from matches
