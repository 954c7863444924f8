"""A data set of the Hugging Face hub, or a local folder in the hub's format, through `datasets`."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import MISSING

from hylo.data.base import DataConfig, Document, Split
from hylo.errors import ConfigError, MissingDependency, problem
from hylo.schema import bounded, register


@register("data")
@dataclass(kw_only=True, slots=True)
class HubDatasetConfig(DataConfig):
    """Which data set, which column, and what a document is in it."""

    repo: str = MISSING
    """owner/name on the hub, or the path of a local folder in the same format (parquet, JSON lines, text)."""
    subset: str | None = None
    """Configuration of the data set, where it has several."""
    revision: str | None = None
    """Branch, tag or commit; None: main."""
    text_column: str = "text"
    """Column that holds the text."""
    document_start: str | None = None
    """Regular expression of the row that begins a document (rows are then joined); None: every row is a document."""
    splits: dict[str, str] = field(default_factory=lambda: {split.name: split.name for split in Split})
    """The data set's split for each of ours; slices such as train[:90%] are allowed."""
    max_documents: int | None = bounded(None, ge=1)
    """Documents taken from the start of each split, read as a stream; None: all."""

    def documents(self, split: Split) -> list[Document]:
        documents = self._joined(self._rows(split)) if self.document_start else self._single(self._rows(split))
        taken = list(islice(documents, self.max_documents))
        if not taken:
            fix = "check data.splits, data.text_column and data.document_start"
            raise ConfigError(
                problem(f"data.splits.{split.name}", self.splits[split.name], "a split with documents", fix)
            )
        return taken

    def _rows(self, split: Split) -> Iterator[str]:
        try:
            rows: Any = datasets.load_dataset(
                self.repo,
                self.subset,
                split=self.splits[split.name],
                revision=self.revision,
                streaming=self.max_documents is not None,
            )
        except (ValueError, DatasetGenerationError) as error:
            fix = "check data.repo, data.subset and data.splits"
            raise ConfigError(problem("data.repo", self.repo, f"a data set that loads ({error})", fix)) from error
        except (HfHubHTTPError, OSError) as error:
            raise MissingDependency(
                f"data.repo = {self.repo!r} cannot be fetched from the Hugging Face hub: {str(error).splitlines()[0]}\n"
                f"    With network: check the name, `hf auth login` for gated data, and unset HF_HUB_OFFLINE.\n"
                f"    Without network: data=shakespeare needs none; data=text reads local files; "
                f"data.repo=<folder> reads a local copy."
            ) from error
        if self.text_column not in (rows.column_names or ()):
            allowed = f"one of {', '.join(rows.column_names or ())}"
            raise ConfigError(problem("data.text_column", self.text_column, allowed, "name the column with the text"))
        return (row[self.text_column] for row in rows)

    def _single(self, rows: Iterable[str]) -> Iterator[Document]:
        return (Document(f"row-{index}", text) for index, text in enumerate(rows) if text.strip())

    def _joined(self, rows: Iterable[str]) -> Iterator[Document]:
        assert self.document_start is not None
        start, lines, count = re.compile(self.document_start), [], 0
        for line in rows:
            if start.search(line) and lines:
                yield Document(f"document-{count}", "".join(lines))
                lines, count = [], count + 1
            lines.append(line)
        if lines:
            yield Document(f"document-{count}", "".join(lines))
