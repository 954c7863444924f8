"""The interface of a text source: documents, in disjoint splits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from hylo.core.errors import problem
from hylo.core.schema import bounded

SHORTEST_CONTEXT = 4
"""Fewest tokens of a window."""


class Split(Enum):
    """Parts of a data set. No document is in more than one."""

    train = "trained on"
    validation = "for choosing settings; no reported number comes from it"
    test = "for reported numbers"


class Protocol(Enum):
    """What a sample consists of."""

    packed = "a window of the context length, cut from a document; no padding"
    lines = "a line of text, padded; to reproduce published numbers"


class Bos(Enum):
    """Whether a window begins with the tokenizer's beginning-of-text token."""

    auto = "if the tokenizer puts one in front of a text by itself"
    always = "always"
    never = "never"


@dataclass(frozen=True)
class Document:
    """A text as shipped, without cleaning."""

    name: str
    text: str


@dataclass(kw_only=True, slots=True)
class DataConfig(ABC):
    """The text and how it is cut into windows. Subclasses add their own fields."""

    TRAINING_ALONE: ClassVar[frozenset[str]] = frozenset({"loss_on_padding", "keep_blank_lines"})
    """Fields that cannot change the numbers of the base model."""

    name: str = MISSING
    """Short name used in tables and folder names."""
    context_length: int = bounded(256, ge=SHORTEST_CONTEXT)
    """Tokens per window, for training and evaluation. The first is context only: L tokens give L - 1 predictions."""
    stride: int | None = bounded(None, ge=1)
    """Tokens between the starts of evaluation windows, less than the context length: sliding windows. All but a
    document's first then predict only their last `stride` tokens; the others are context. None: no overlap. Training
    windows never overlap."""
    bos: Bos = Bos.auto
    """auto, always or never: put the beginning-of-text token first in every window. A model trained with one expects
    it; then every token of the text is predicted. auto: as the tokenizer does by itself."""
    eval_windows: int | None = bounded(32, ge=2)
    """Number of evaluation windows, a fixed random sample of the split's windows; None: all. Intervals need two."""
    eval_split: Split = Split.test
    """test, or validation for choosing settings."""
    protocol: Protocol = Protocol.packed
    """packed, or lines: one line of text per sample, truncated or padded with the end-of-text token to the context
    length. Lines of fewer than two tokens predict nothing and are left out."""
    loss_on_padding: bool = False
    """For lines: padding counts in the training loss, as when labels are a copy of the input; never in evaluation."""
    keep_blank_lines: bool = False
    """For lines: also train on lines of fewer than two tokens. Without loss on padding they only take up places in
    batches."""

    @abstractmethod
    def documents(self, split: Split) -> list[Document]:
        """Returns the documents of a split, in a fixed order.

        Raises:
            MissingDependency: the source cannot be reached; the message says what to do.
            ConfigError: the split has no documents.
        """


def data_problems(config: DataConfig) -> Iterator[str]:
    """Yields a message for each conflict between settings."""
    if config.stride is not None and config.stride >= config.context_length:
        allowed = f"1 to {config.context_length - 1}, less than data.context_length; null: windows without overlap"
        yield problem("data.stride", config.stride, allowed, f"data.stride={config.context_length // 2}")
    if config.stride is not None and config.protocol is Protocol.lines:
        allowed = "null where data.protocol=lines, whose samples are lines, not stretches of a document"
        yield problem("data.stride", config.stride, allowed, "data.stride=null, or data.protocol=packed")
    if config.protocol is Protocol.packed:
        for name in ("loss_on_padding", "keep_blank_lines"):
            if getattr(config, name):
                allowed = "false where data.protocol=packed, which pads nothing and has no lines"
                yield problem(f"data.{name}", True, allowed, f"data.protocol=lines, or data.{name}=false")
