"""The retrieval probe: a fact in a list is asked for, at several depths of the list.

Its wording is that of hylo/data/kv/text.py. A model that is lost in the middle answers where the fact is the first or
the last of the list, and fails in between. Lists depend on the probe's own seed and on nothing of the run, so all
cells and seeds are asked the same; more lists are those of a smaller probe and further ones. Key-value retrieval after
Liu et al. 2023, arXiv 2307.03172.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import Document
from hylo.data.kv.text import PROBE_CODES, draw, list_of_facts, question
from hylo.data.kv.words import PROBE_WORDS
from hylo.data.tokens import tokenize
from hylo.evaluation.probes.base import ProbeConfig


@register("probe", "kv")
@dataclass(kw_only=True, slots=True)
class KvProbeConfig(ProbeConfig):
    """How many facts, depths and lists."""

    facts: list[int] = field(default_factory=lambda: [8, 24, 60])
    """Facts of a list, each number a measure of its own: at least as many as depths, at most as many as words."""
    depths: int = bounded(5, ge=3, le=len(PROBE_WORDS))
    """Places of the fact that is asked for, in equal steps from the first fact to the last."""
    lists: int = bounded(20, ge=2, le=1_000)
    """Lists for each number of facts. Every depth of a list is asked for."""
    seed: int = bounded(0, ge=0)
    """Of the lists: words, codes and their order."""


@dataclass(frozen=True)
class Prompts:
    """The questions on one list, D of them, as tokens.

    facts: of the list. number: of the list among those of as many facts. places: [D], the index of the fact asked for.
    prefix: [P] int32, what all D begin with. tails: D arrays [T_d] int32, what follows; they end with the answer.
    answer_tokens: [D], tokens of the answer.
    """

    facts: int
    number: int
    places: np.ndarray
    prefix: np.ndarray
    tails: list[np.ndarray]
    answer_tokens: np.ndarray

    @property
    def longest(self) -> int:
        """Tokens of the longest question with its list and answer."""
        return len(self.prefix) + max(len(tail) for tail in self.tails)

    @property
    def tokens(self) -> int:
        """Tokens that are read where the list is read once."""
        return len(self.prefix) + sum(len(tail) for tail in self.tails)


def setting_problems(config: KvProbeConfig) -> Iterator[str]:
    """Numbers of facts that make no list or no measure, as text."""
    low, high = config.depths, len(PROBE_WORDS)
    if not config.facts or len(set(config.facts)) < len(config.facts):
        yield problem("probe.facts", config.facts, "one or more numbers, each once", "probe.facts=[8,24,60]")
    for count in config.facts:
        if not low <= count <= high:
            allowed = f"{low} (probe.depths) to {high} (words there are)"
            yield problem("probe.facts", count, allowed, f"probe.facts=[{min(max(count, low), high)}]")


def depth_places(facts: int, depths: int) -> np.ndarray:
    """The index of the fact asked for at each depth, [D]: from the first to the last."""
    return np.linspace(0, facts - 1, depths).round().astype(int)


def make_prompts(config: KvProbeConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompts]:
    """All lists in the order in which they are asked: one of each number of facts, then the next of each.

    A text is tokenised as a whole, with its answer, and a token belongs to the answer if any of its characters does: so
    the tokens are those that the tokenizer makes of such a text, wherever it puts the space before a number.
    """
    order = [(number, facts) for number in range(config.lists) for facts in config.facts]
    documents: list[Document] = []
    for number, facts in order:
        rng = np.random.default_rng([config.seed, facts, number])
        words, codes = draw(rng, PROBE_WORDS, PROBE_CODES, facts)
        text = list_of_facts(words, codes)
        for place in depth_places(facts, config.depths):
            documents.append(Document(f"{facts}-{number}-{place}", text + question(words[place], codes[place])))
    tokenized = tokenize(documents, tokenizer)
    prompts = []
    for index, (number, facts) in enumerate(order):
        own = slice(index * config.depths, (index + 1) * config.depths)
        before = [len(document.text[:-4].encode()) for document in documents[own]]  # a code has four digits
        ids = [each.ids for each in tokenized[own]]
        answers = [int((each.byte_ends > start).sum()) for each, start in zip(tokenized[own], before, strict=True)]
        shared = _shared(ids, answers)
        tails = [each[shared:] for each in ids]
        places = depth_places(facts, config.depths)
        prompts.append(Prompts(facts, number, places, ids[0][:shared], tails, np.array(answers)))
    return prompts


def _shared(ids: list[np.ndarray], answers: list[int]) -> int:
    """Tokens at the start that all have in common, leaving to each at least one before its answer."""
    most = min(len(each) - answer - 1 for each, answer in zip(ids, answers, strict=True))
    heads = np.stack([each[:most] for each in ids])
    same = (heads == heads[0]).all(axis=0)
    return most if same.all() else int(np.argmin(same))
