"""The retrieval probe: asks for facts at several depths of a list.

The wording is that of hylo/data/kv/text.py. A model that is lost in the middle answers correctly if the fact is the
first or last of the list, and fails in between. Lists depend only on the probe's own seed, not on the run, so all cells
and seeds get the same questions; increasing `lists` keeps the existing ones. Each list is read only once for all of its
questions: with 60 facts and five depths, 803 tokens are read instead of 3,715. Key-value retrieval after Liu et al.
2023, arXiv 2307.03172.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import TrainingDiverged, problem
from hylo.core.progress import Progress
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.kv.text import PROBE_CODES, draw, list_of_facts, question
from hylo.data.kv.words import PROBE_WORDS
from hylo.evaluation.probes.base import Answers, Probe, ProbeConfig
from hylo.evaluation.probes.measure import Questions, answered, tokens_of
from hylo.evaluation.probes.score import COLUMNS, ends_minus_middle


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

    def build(self, tokenizer: PreTrainedTokenizerBase) -> "KvProbe":
        return KvProbe(make_prompts(self, tokenizer))


@dataclass(frozen=True, kw_only=True)
class Prompts(Questions):
    """The questions about one list, one per depth.

    Attributes:
        facts: number of facts in the list.
        number: index of the list among those with as many facts.
        places: [D], index of the fact asked for.
    """

    facts: int
    number: int
    places: np.ndarray


class KvProbe(Probe):
    """All lists, in the order of asking."""

    def __init__(self, prompts: Sequence[Prompts]) -> None:
        self.prompts = prompts

    @property
    def longest(self) -> int:
        return max(one.longest for one in self.prompts)

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.prompts)

    def ask(self, model: AdaptedModel, accelerator: Accelerator, *, cached: bool, label: str) -> Answers:
        model.eval()
        rows: list[tuple[Any, ...]] = []
        seconds = dict.fromkeys([one.facts for one in self.prompts], 0.0)
        with Progress(label, len(self.prompts), visible=accelerator.is_main_process) as progress:
            for done, one in enumerate(self.prompts, 1):
                began = time.perf_counter()
                answers = answered(model, one, accelerator, cached=cached)
                for depth, (exact, logprob) in enumerate(answers):
                    if not np.isfinite(logprob):
                        raise TrainingDiverged(
                            f"the log-probability of an answer is not finite (list {one.number} of {one.facts} facts); "
                            f"try a lower learning rate"
                        )
                    place, tokens = int(one.places[depth]), int(one.answer_tokens[depth])
                    rows.append((one.facts, one.number, depth, place, int(exact), logprob, tokens))
                seconds[one.facts] += time.perf_counter() - began
                progress.update(done)
        table = pd.DataFrame(rows, columns=pd.Index(COLUMNS)).sort_values(COLUMNS[:3]).reset_index(drop=True)
        found = {str(facts): _measures(table, facts, each) for facts, each in seconds.items()}
        return Answers(table, {"facts": found}, [_in_words(facts, each) for facts, each in found.items()])


def _measures(table: pd.DataFrame, facts: int, seconds: float) -> dict[str, Any]:
    """Accuracy (overall and by depth), mean log-probability by depth, `ends_minus_middle`, wall time."""
    own: Any = table[table["facts"] == facts]
    by_depth = own.groupby("depth")[["exact", "answer_logprob"]].mean()
    accuracy = by_depth["exact"].to_numpy(dtype=float)
    return {
        "accuracy": float(accuracy.mean()),
        "ends_minus_middle": ends_minus_middle(accuracy),
        "accuracy_by_depth": accuracy.tolist(),
        "logprob_by_depth": by_depth["answer_logprob"].tolist(),
        "seconds": round(seconds, 3),
    }


def _in_words(facts: str, found: dict[str, Any]) -> str:
    return f"{facts} facts: accuracy by depth {' '.join(f'{share:.2f}' for share in found['accuracy_by_depth'])}"


def depth_places(facts: int, depths: int) -> np.ndarray:
    """Index of the fact asked for at each depth, [D], from the first fact to the last."""
    return np.linspace(0, facts - 1, depths).round().astype(int)


def make_prompts(config: KvProbeConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompts]:
    """All lists in the order of asking: one for each number of facts, then the next for each."""
    order = [(number, facts) for number in range(config.lists) for facts in config.facts]
    texts: list[str] = []
    answers: list[str] = []
    for number, facts in order:
        rng = np.random.default_rng([config.seed, facts, number])
        words, codes = draw(rng, PROBE_WORDS, PROBE_CODES, facts)
        text = list_of_facts(words, codes)
        for place in depth_places(facts, config.depths):
            texts.append(text + question(words[place], codes[place]))
            answers.append(str(codes[place]))
    ids, counts = tokens_of(texts, answers, tokenizer)
    prompts = []
    for index, (number, facts) in enumerate(order):
        own = slice(index * config.depths, (index + 1) * config.depths)
        shared = _shared(ids[own], counts[own])
        prompts.append(
            Prompts(
                facts=facts,
                number=number,
                places=depth_places(facts, config.depths),
                prefix=ids[own][0][:shared],
                tails=[each[shared:] for each in ids[own]],
                answer_tokens=np.array(counts[own]),
            )
        )
    return prompts


def _shared(ids: list[np.ndarray], answers: list[int]) -> int:
    """Length of the common prefix, which leaves each question at least one token before its answer."""
    most = min(len(each) - answer - 1 for each, answer in zip(ids, answers, strict=True))
    heads = np.stack([each[:most] for each in ids])
    same = (heads == heads[0]).all(axis=0)
    return most if same.all() else int(np.argmin(same))
