"""What a source of text provides: documents, in splits that share none."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from hylo.schema import bounded


class Split(Enum):
    """Parts of a data set. No document is in two of them."""

    train = "trained on"
    validation = "for choosing settings; no reported number comes from it"
    test = "for reported numbers"


@dataclass(frozen=True)
class Document:
    """A text as shipped: no cleaning."""

    name: str
    text: str


@dataclass(kw_only=True, slots=True)
class DataConfig(ABC):
    """Which text, and how it is cut into windows. Subclasses add their own fields."""

    name: str = MISSING
    """Short name for tables and folders."""
    context_length: int = bounded(256, ge=4)
    """Tokens a window, for training and evaluation. The first is context only: L tokens give L - 1 predictions."""
    eval_windows: int | None = bounded(32, ge=1)
    """Evaluation windows, a fixed random sample of the split's windows; None: all of them."""
    eval_split: Split = Split.test
    """test, or validation for choosing settings."""

    @abstractmethod
    def documents(self, split: Split) -> list[Document]:
        """The documents of a split, in a fixed order.

        Raises:
            MissingDependency: the source cannot be reached; the message says what to do.
            ConfigError: the split has no documents.
        """
