"""Training text for key-value retrieval: lists of facts followed by questions about them, in the probe's wording.

A document is one list followed by questions at random depths until it is longer than a window: `packed` cuts one window
from it, which begins with the list. The number of tokens is not known here, so the length is set in characters, as
`characters_per_token` times the context length. The default of 4 suits English tokenizers with whole-word tokens: a
document makes 1.3 to 1.7 windows if they split numbers into digits (SmolLM2, Llama 2, Qwen2) and 1.1 to 1.4 if they
keep parts of numbers (GPT-2); the excess is dropped. For byte tokenizers set 1.1: otherwise later windows hold
questions about a list that they do not contain.

Every token counts in the loss, as in any text, including what cannot be predicted: the words and codes of the list
(five of the twelve tokens per line with SmolLM2), and which fact is asked for. Their loss is the same for all methods
apart from what can be learned about their frequencies. Perplexity on this data mostly reflects them; judge retrieval by
the probe.

Words and codes differ from those of the probe (hylo/data/kv/words.py, hylo/data/kv/text.py). Own design after Liu et
al. 2023, arXiv 2307.03172.
"""

from dataclasses import dataclass

import numpy as np

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import DataConfig, Document, Split
from hylo.data.kv.text import TRAINING_CODES, draw, fact, list_of_facts, question
from hylo.data.kv.words import TRAINING_WORDS

_FACT = len(fact("12345", 1234)) + 2
"""Approximate characters per line of a list: words have three to eight letters."""
_LIST_SHARE = 0.4
"""Maximum share of a document's characters for its list: two thirds of the window if every digit is a token."""


@register("data", "kv_lists")
@dataclass(kw_only=True, slots=True)
class KvListsConfig(DataConfig):
    """Length and number of lists."""

    min_facts: int = bounded(4, ge=2, le=len(TRAINING_WORDS))
    """Minimum number of facts per list."""
    max_facts: int | None = bounded(None, ge=2, le=len(TRAINING_WORDS))
    """Maximum number of facts per list; every number from minimum to maximum is equally likely. None: as many as leave
    a third of a window for questions, which is one per 18 tokens."""
    train_documents: int = bounded(2_000, ge=1, le=1_000_000)
    """Training documents, one window each."""
    held_out_documents: int = bounded(100, ge=1, le=1_000_000)
    """Validation documents, and as many test documents."""
    characters_per_token: float = bounded(4.0, ge=1, le=10)
    """Upper bound for the tokenizer on this text, so that no document is shorter than a window."""
    seed: int = bounded(0, ge=0)
    """Seed of the lists; independent of the run's seed."""

    def documents(self, split: Split) -> list[Document]:
        most = self._most_facts()
        count = self.train_documents if split is Split.train else self.held_out_documents
        streams = [np.random.default_rng([self.seed, list(Split).index(split), number]) for number in range(count)]
        return [
            Document(f"{split.name}-{number}", self._text(rng, int(rng.integers(self.min_facts, most + 1))))
            for number, rng in enumerate(streams)
        ]

    @property
    def _characters(self) -> int:
        return round(self.context_length * self.characters_per_token)

    def _most_facts(self) -> int:
        limit = min(int(_LIST_SHARE * self._characters / _FACT), len(TRAINING_WORDS))
        most = limit if self.max_facts is None else self.max_facts
        if not self.min_facts <= most <= limit:
            key, value = ("min_facts", self.min_facts) if self.min_facts > most else ("max_facts", most)
            allowed = f"min_facts <= max_facts, at most {limit} with data.context_length={self.context_length}"
            needed = round(max(value, self.min_facts) * _FACT / _LIST_SHARE / self.characters_per_token) + 1
            raise ConfigError(problem(f"data.{key}", value, allowed, f"data.context_length={needed}, or fewer facts"))
        return most

    def _text(self, rng: np.random.Generator, facts: int) -> str:
        """A list and questions about it in random order; every fact is asked for once before any repeats."""
        words, codes = draw(rng, TRAINING_WORDS, TRAINING_CODES, facts)
        parts = [list_of_facts(words, codes)]
        length = len(parts[0])
        while length < self._characters:
            for place in rng.permutation(facts):
                parts.append(f"{question(words[place], codes[place])}.\n")
                length += len(parts[-1])
                if length >= self._characters:
                    break
        return "".join(parts)
