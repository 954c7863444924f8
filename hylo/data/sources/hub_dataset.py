"""A data set from the Hugging Face hub, or a local folder in the same format, loaded with `datasets`."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from omegaconf import MISSING

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import DataConfig, Document, Split
from hylo.data.hub import Repository, split_of


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
    of a document are joined as lines. None: every row is a document."""
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

        theirs = split_of(self.splits, split.name)
        repository = Repository(repo=self.repo, subset=self.subset, revision=self.revision)
        rows = repository.rows(theirs, streamed=self.max_documents is not None)
        columns = (rows.features or {}).items()
        texts = [name for name, kind in columns if isinstance(kind, datasets.Value) and "string" in kind.dtype]
        if self.text_column not in texts:
            allowed = f"a text column ({', '.join(texts) or 'there is none'})"
            raise ConfigError(problem("data.text_column", self.text_column, allowed, "name the column with the text"))
        with repository.explained():
            for row in rows:
                yield row[self.text_column] or ""

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
                yield Document(f"document-{count}", _joined_lines(lines))
                lines, count = [], count + 1
            lines.append(line)
        if any(line.strip() for line in lines):
            yield Document(f"document-{count}", _joined_lines(lines))


def _joined_lines(rows: list[str]) -> str:
    """The rows as lines: those without a line end get one."""
    return "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)
