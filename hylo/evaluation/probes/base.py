"""The interface of a probe: its config, its questions, and a model's answers.

A probe is asked of a complete run, whose adapter is read from its record. It is not part of the run's fingerprint: its
own settings and code form a separate one (hylo/runs/fingerprint.py), by which recorded answers are found.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel


@dataclass(kw_only=True, slots=True)
class ProbeChoice(ABC):  # noqa: B024  `none` has nothing to implement
    """A choice of `probe`."""


@dataclass(kw_only=True, slots=True)
class ProbeConfig(ProbeChoice):
    """Settings of a probe. Subclasses add their own."""

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Yields a message for each conflict between settings."""

    @abstractmethod
    def too_long(self, allowed: str, otherwise: str) -> str:
        """The message for questions that are too long; the fix is a setting that shortens them, or `otherwise`."""

    def content(self) -> str:
        """What the answers depend on beyond settings and code, such as the content of files; part of the fingerprint.

        Raises:
            ConfigError, MissingDependency: as in `build`.
        """
        return ""

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase) -> "Probe":
        """Returns the probe with its questions as tokens.

        Questions do not depend on the run, so all cells and seeds get the same ones.

        Raises:
            ConfigError: a setting names something that does not exist or cannot be asked.
            MissingDependency: the questions' data, or a library, is not available.
        """


@dataclass(frozen=True)
class Answers:
    """A model's answers.

    Attributes:
        table: one row per question; becomes the record's probe.parquet.
        section: numbers for the record's section `probe`.
        said: lines to print.
    """

    table: pd.DataFrame
    section: dict[str, Any]
    said: list[str]


class Probe(ABC):
    """Questions as tokens of a model's tokenizer."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest question with its answer; it must fit the model's context."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Approximate number of tokens that the model reads to answer all questions."""

    @abstractmethod
    def ask(self, model: AdaptedModel, accelerator: Accelerator, *, cached: bool, label: str) -> Answers:
        """Asks every question.

        Args:
            cached: a prefix shared by questions may be read once, into a cache; False if the audit found that cached
                decoding differs from the full forward pass.
            label: name of the run in the progress bar.

        Raises:
            TrainingDiverged: the log-probability of an answer is not finite.
        """
