"""Prompts and answers, or chat messages, from local files: JSON lines (.jsonl), JSON (.json) or parquet."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from pyarrow import ArrowException

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.data.base import Document, Split
from hylo.data.conversations import ConversationConfig, Row, conversations
from hylo.data.files import split_files


@register("data", "instruction_files")
@dataclass(kw_only=True, slots=True)
class InstructionFilesConfig(ConversationConfig):
    """Files of each split, as paths or glob patterns relative to the working directory."""

    train_files: list[str] = field(default_factory=list)
    """Files to train on."""
    validation_files: list[str] = field(default_factory=list)
    """Files for choosing settings."""
    test_files: list[str] = field(default_factory=list)
    """Files used for reported numbers."""

    def documents(self, split: Split) -> list[Document]:
        rows = (row for path in split_files(self, split) for row in _rows(path, f"data.{split.name}_files"))
        return conversations(rows, self, split)


def _rows(path: Path, key: str) -> Iterator[Row]:
    """A file's rows, each named by its place."""
    readers = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}
    if path.suffix not in readers:
        fix = f"convert it to one of {', '.join(readers)}"
        raise ConfigError(problem(key, str(path), f"a file of {', '.join(readers)}", fix))
    try:
        for number, row in enumerate(readers[path.suffix](path), start=1):
            if not isinstance(row, dict):
                allowed = "rows of named columns (JSON objects)"
                raise ConfigError(problem(key, f"{path}, row {number}", allowed, "correct the row"))
            yield f"{path}:{number}", row
    except ConfigError:
        raise
    except (OSError, ValueError, ArrowException) as error:
        raise ConfigError(problem(key, str(path), f"a readable file ({error})", "correct or convert it")) from error


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error


def _json(path: Path) -> list[Any]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("it holds no list of rows")
    return rows


def _parquet(path: Path) -> Iterator[Any]:
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()
