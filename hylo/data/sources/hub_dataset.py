"""A data set from the Hugging Face hub, or a local folder in the same format, loaded with `datasets`."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from omegaconf import MISSING

from hylo.core.errors import ConfigError, MissingDependency, problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import DataConfig, Document, Protocol, Split


@register("data", "hub_dataset")
@dataclass(kw_only=True, slots=True)
class HubDatasetConfig(DataConfig):
    """The data set, its text column, and what counts as a document."""

    repo: str = MISSING
    """owner/name on the hub, or the path of a local folder in the same format (parquet, JSON lines, text)."""
    subset: str | None = None
    """Configuration of the data set, if it has several."""
    revision: str | None = None
    """Branch, tag or commit; None: main."""
    text_column: str = "text"
    """Column that holds the text."""
    document_start: str | None = None
    """Regular expression for the row that begins a document; it has to be the first row or follow a blank one. The rows
    of a document are joined. None: every row is a document."""
    splits: dict[str, str] = field(default_factory=lambda: {split.name: split.name for split in Split})
    """The data set's split for each of ours; slices such as train[:90%] are allowed."""
    max_documents: int | None = bounded(None, ge=1)
    """Number of documents taken from the start of each split, streamed unless the split is a slice; None: all."""

    def documents(self, split: Split) -> list[Document]:
        documents = self._joined(self._rows(split)) if self.document_start else self._single(self._rows(split), split)
        taken = list(islice(documents, self.max_documents))
        if not taken:
            fix = "check data.splits, data.text_column and data.document_start"
            raise ConfigError(
                problem(f"data.splits.{split.name}", self.splits[split.name], "a split with documents", fix)
            )
        return taken

    def _rows(self, split: Split) -> Iterator[str]:
        import datasets

        theirs = self._split_of(split)
        with self._explained():
            rows: Any = datasets.load_dataset(
                os.path.expanduser(self.repo),
                self.subset,
                split=theirs,
                revision=self.revision,
                streaming=self.max_documents is not None and "[" not in theirs,  # streams cannot be sliced
            )
        columns = (rows.features or {}).items()
        texts = [name for name, kind in columns if isinstance(kind, datasets.Value) and "string" in kind.dtype]
        if self.text_column not in texts:
            allowed = f"a text column ({', '.join(texts) or 'there is none'})"
            raise ConfigError(problem("data.text_column", self.text_column, allowed, "name the column with the text"))
        with self._explained():
            for row in rows:
                yield row[self.text_column] or ""

    def _split_of(self, split: Split) -> str:
        """The data set's split for one of ours; no two of ours may share one."""
        key, theirs = f"data.splits.{split.name}", self.splits.get(split.name)
        if theirs is None:
            raise ConfigError(problem(key, None, "a split of the data set, or a slice of one", f"+{key}={split.name}"))
        for name, other in self.splits.items():
            if other == theirs and name != split.name:
                fix = "slice one split, for example train[:90%] and train[90%:]"
                raise ConfigError(problem(key, theirs, f"a different split from data.splits.{name}", fix))
        return theirs

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns errors of `datasets` into ones a user can act on."""
        from datasets.exceptions import DatasetGenerationError

        try:
            yield
        except (HfHubHTTPError, OSError) as error:
            raise MissingDependency(
                f"data.repo = {self.repo!r} cannot be fetched from the Hugging Face hub: {_first_line(error)}\n"
                f"    With network: check the name, `hf auth login` for gated data, and unset HF_HUB_OFFLINE.\n"
                f"    Without network: data=shakespeare needs none; data=text reads local files; "
                f"data.repo=<folder> reads a local copy."
            ) from error
        except (ValueError, RuntimeError, StopIteration, DatasetGenerationError) as error:
            allowed = f"a data set that loads ({_first_line(error.__cause__ or error)})"
            fix = "check data.repo, data.subset and data.splits"
            raise ConfigError(problem("data.repo", self.repo, allowed, fix)) from error

    def _single(self, rows: Iterable[str], split: Split) -> Iterator[Document]:
        blank = self.keep_blank_lines and split is Split.train
        return (Document(f"row-{index}", text) for index, text in enumerate(rows) if text.strip() or blank)

    def _joined(self, rows: Iterable[str]) -> Iterator[Document]:
        assert self.document_start is not None
        try:
            start = re.compile(self.document_start)
        except re.error as error:
            allowed = f"a regular expression ({error})"
            raise ConfigError(problem("data.document_start", self.document_start, allowed, "correct it")) from error
        lines: list[str] = []
        count = 0
        for line in rows:
            after_blank = not lines or not lines[-1].strip()
            if after_blank and start.search(line) and any(each.strip() for each in lines):
                yield Document(f"document-{count}", self._text(lines))
                lines, count = [], count + 1
            lines.append(line)
        if any(line.strip() for line in lines):
            yield Document(f"document-{count}", self._text(lines))

    def _text(self, rows: list[str]) -> str:
        """Joins rows. If lines are samples, each row stays a line: blank rows come without a line ending."""
        if self.protocol is Protocol.lines:
            return "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)
        return "".join(rows)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
