"""The retrieval probe: asks for facts at several depths of a list.

The wording is that of hylo/data/kv/text.py. A model that is lost in the middle answers correctly if the fact is the
first or last of the list, and fails in between. Lists depend only on the probe's own seed, not on the run, so all cells
and seeds get the same questions; increasing `lists` keeps the existing ones. Each list is read only once for all of its
questions: with 60 facts and five depths, 803 tokens are read instead of 3,715. Key-value retrieval after Liu et al.
2023, arXiv 2307.03172.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.kv.text import PROBE_CODES, draw, list_of_facts, question
from hylo.data.kv.words import PROBE_WORDS
from hylo.evaluation.probes.base import ProbeConfig
from hylo.evaluation.probes.depths import DepthProbe, Text, prompts_of
from hylo.evaluation.probes.score import GRIDS


@register("probe", "kv")
@dataclass(kw_only=True, slots=True)
class KvProbeConfig(ProbeConfig):
    """Number of facts, depths and lists."""

    facts: list[int] = field(default_factory=lambda: [8, 24, 60])
    """Facts per list, each number measured separately: at least `depths`, at most the number of words."""
    depths: int = bounded(5, ge=3, le=len(PROBE_WORDS))
    """Number of positions to ask for, evenly spaced from the first fact to the last."""
    lists: int = bounded(20, ge=2, le=1_000)
    """Lists for each number of facts. Every list is asked at every depth."""
    seed: int = bounded(0, ge=0)
    """Seed of the lists: words, codes and their order."""

    def problems(self) -> Iterator[str]:
        """Yields a message for each invalid number of facts."""
        low, high = self.depths, len(PROBE_WORDS)
        if not self.facts or len(set(self.facts)) < len(self.facts):
            yield problem("probe.facts", self.facts, "one or more numbers, each once", "probe.facts=[8,24,60]")
        for count in self.facts:
            if not low <= count <= high:
                allowed = f"{low} (probe.depths) to {high} (words there are)"
                yield problem("probe.facts", count, allowed, f"probe.facts=[{min(max(count, low), high)}]")

    def too_long(self, allowed: str, otherwise: str) -> str:
        return problem("probe.facts", self.facts, allowed, f"fewer facts, or {otherwise}")

    def build(self, tokenizer: PreTrainedTokenizerBase) -> DepthProbe:
        return DepthProbe(GRIDS["kv"], prompts_of([*self._lists()], tokenizer))

    def _lists(self) -> Iterator[Text]:
        """All lists in the order of asking: one for each number of facts, then the next for each."""
        for number in range(self.lists):
            for facts in self.facts:
                rng = np.random.default_rng([self.seed, facts, number])
                words, codes = draw(rng, PROBE_WORDS, PROBE_CODES, facts)
                text, places = list_of_facts(words, codes), depth_places(facts, self.depths).tolist()
                questions = [text + question(words[place], codes[place]) for place in places]
                yield Text(facts, number, places, questions, [str(codes[place]) for place in places])


def depth_places(facts: int, depths: int) -> np.ndarray:
    """Index of the fact asked for at each depth, [D], from the first fact to the last."""
    return np.linspace(0, facts - 1, depths).round().astype(int)
