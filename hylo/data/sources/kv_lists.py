"""Key-value retrieval to train on: lists of facts, each followed by questions on them, in the wording of the probe.

A document is one list and then questions, at random depths, until it is longer than a window: `packed` cuts one window
from it, which begins with the list. How many tokens a text has is not known here, so its length is set in characters,
`characters_per_token` times the context length. The default of 4 suits tokenizers of English with words of their own:
those that split numbers into digits (SmolLM2, Llama 2, Qwen2) make 1.3 to 1.7 windows of it, those that keep parts of
numbers (GPT-2) 1.1 to 1.4, and what exceeds one is dropped. For a tokenizer of bytes set 1.1: otherwise later
windows hold questions on a list that is out of their sight.

Every token counts in the loss, as in any text, also what nobody can predict: the words and codes of the list (five
of the twelve tokens of a line with SmolLM2), and which fact is asked for. Their loss is the same for all methods up to
what can be learned of their frequencies; a perplexity on this data is mostly about them: read retrieval off the probe.

Words and codes are not those of the probe (hylo/data/kv/words.py, hylo/data/kv/text.py). Own design after Liu et al.
2023, arXiv 2307.03172.
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
"""Characters of a line of a list, about: words have three to eight letters."""
_LIST_SHARE = 0.4
"""Of a document's characters, at most for its list. Where digits are tokens that is two thirds of the window."""


@register("data", "kv_lists")
@dataclass(kw_only=True, slots=True)
class KvListsConfig(DataConfig):
    """How long lists are, and how many."""

    min_facts: int = bounded(4, ge=2, le=len(TRAINING_WORDS))
    """Fewest facts of a list."""
    max_facts: int | None = bounded(None, ge=2, le=len(TRAINING_WORDS))
    """Most facts of a list; every number from fewest to most is equally likely. None: as many as leave a third of a
    window for questions, which is one for 18 tokens."""
    train_documents: int = bounded(2_000, ge=1, le=1_000_000)
    """Documents to train on: a window each."""
    held_out_documents: int = bounded(100, ge=1, le=1_000_000)
    """Documents of validation, and as many of test."""
    characters_per_token: float = bounded(4.0, ge=1, le=10)
    """Of the text that the tokenizer divides least, so that no document is shorter than a window."""
    seed: int = bounded(0, ge=0)
    """Of the lists; a run's own seed has no part in it."""

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
            allowed = f"fewest facts up to most, at most {limit} with data.context_length={self.context_length}"
            needed = round(max(value, self.min_facts) * _FACT / _LIST_SHARE / self.characters_per_token) + 1
            raise ConfigError(problem(f"data.{key}", value, allowed, f"data.context_length={needed}, or fewer facts"))
        return most

    def _text(self, rng: np.random.Generator, facts: int) -> str:
        """A list, and questions on it in random order, every fact before any comes again."""
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
