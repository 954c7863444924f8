"""Prompts and answers, or chat messages, of a data set on the Hugging Face hub."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from hylo.core.cache import text_hash
from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import Document, Split
from hylo.data.conversations import ConversationConfig, Row, conversations
from hylo.data.hub import Repository, split_of


@register("data", "hub_instructions")
@dataclass(kw_only=True, slots=True)
class HubInstructionsConfig(ConversationConfig):
    """The data set and its splits."""

    repo: str = MISSING
    """owner/name on the hub, or the path of a local folder in the same format (parquet, JSON lines)."""
    subset: str | None = None
    """Configuration of the data set, if it has several."""
    revision: str | None = None
    """Branch, tag or commit; None: main."""
    splits: dict[str, str] = field(default_factory=lambda: {split.name: split.name for split in Split})
    """The data set's split for each of ours; slices such as train[:90%] and sums such as train+validation are
    allowed."""
    split_by: str | None = None
    """Column by whose value a row goes to a split of ours, where the data set has none: all rows with one value go to
    the same one (rows that rephrase one question, messages of one tree). None: `splits` alone decides."""
    held_out: float = bounded(0.02, gt=0, le=0.25)
    """With split_by: share of the values for validation, and as many for test."""
    max_documents: int | None = bounded(None, ge=1)
    """Number of conversations taken from the start of each split; None: all."""

    def documents(self, split: Split) -> list[Document]:
        taken = conversations(self._rows(split), self, split, most=self.max_documents)
        if not taken:
            fix = "check data.splits, data.split_by and data.where"
            raise ConfigError(
                problem(f"data.splits.{split.name}", self.splits[split.name], "a split with conversations", fix)
            )
        return taken

    def _rows(self, split: Split) -> Iterator[Row]:
        theirs = split_of(self.splits, split.name, shared=self.split_by is not None)
        repository = Repository(repo=self.repo, subset=self.subset, revision=self.revision)
        streamed = self.max_documents is not None and self.id_column is None  # trees need all rows anyway
        rows = repository.rows(theirs, streamed=streamed)
        with repository.explained():
            for number, row in enumerate(rows):
                if self.split_by is None or self._split_of(row) is split:
                    yield f"row-{number}", row

    def _split_of(self, row: dict[str, Any]) -> Split:
        if self.split_by not in row:
            allowed = f"a column of the data ({', '.join(row)})"
            raise ConfigError(problem("data.split_by", self.split_by, allowed, "name the column, or null"))
        value = str(row[self.split_by])
        place = int(text_hash(value)[:12], 16) / 16**12
        return Split.test if place < self.held_out else Split.validation if place < 2 * self.held_out else Split.train
