"""Local text files. Each file is one document."""

from dataclasses import dataclass, field

from hylo.core.registry import register
from hylo.data.base import DataConfig, Document, Split
from hylo.data.files import read_text, split_files


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
        return [Document(str(path), read_text(path, key)) for path in split_files(self, split)]
