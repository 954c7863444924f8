"""What every choice of `probe` is, and what runs need of one: its questions, and their answers by a model.

A probe is asked of a complete run, whose adapter is read from its record. It is no part of the run's fingerprint; its
own settings and code are its fingerprint (hylo/runs/fingerprint.py), by which answers are found again.
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
class ProbeChoice(ABC):  # noqa: B024  `none` is one, and asks nothing
    """A choice of `probe`."""


@dataclass(kw_only=True, slots=True)
class ProbeConfig(ProbeChoice):
    """Settings of a probe that asks something. Subclasses add their own."""

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Settings that contradict each other, as text."""

    @abstractmethod
    def too_long(self, allowed: str, otherwise: str) -> str:
        """The problem of questions that are too long, as text: which setting has them shorter, or `otherwise`."""

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase) -> "Probe":
        """The probe with its questions in a model's tokens. They depend on nothing of a run, so all cells and seeds are
        asked the same."""


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    table: a row a question; the record's probe.parquet. section: numbers that the record's section `probe` gets.
    said: lines for the terminal.
    """

    table: pd.DataFrame
    section: dict[str, Any]
    said: list[str]


class Probe(ABC):
    """Questions in a model's tokens."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest question with its answer: the model's context must hold it."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens that the model reads to answer all, about."""

    @abstractmethod
    def ask(self, model: AdaptedModel, accelerator: Accelerator, *, cached: bool, label: str) -> Answers:
        """Ask every question.

        Arguments:
            cached: what questions share may be read once, into a cache; False where the audit found that cached
                decoding is not the full pass.
            label: what the progress bar calls the run.

        Raises:
            TrainingDiverged: an answer is no finite number.
        """
