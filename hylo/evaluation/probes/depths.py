"""Retrieval probes: facts are asked for at several depths of a text, which is read once for all of its questions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import TrainingDiverged
from hylo.core.progress import Progress
from hylo.evaluation.probes.base import Answers, Probe
from hylo.evaluation.probes.measure import Questions, answered, tokens_of
from hylo.evaluation.probes.score import Grid, ends_minus_middle


@dataclass(frozen=True)
class Text:
    """A text and the questions about it.

    Attributes:
        length: in the unit of the grid.
        number: of the text among those of its length.
        places: [D], where the facts stand that are asked for, in the unit of the length, from 0.
        questions: D whole texts, each with a question and its answer at the end.
        answers: D answers.
    """

    length: int
    number: int
    places: Sequence[int]
    questions: list[str]
    answers: list[str]


@dataclass(frozen=True, kw_only=True)
class Prompts(Questions):
    """The questions about one text, one per depth; as in `Text`."""

    length: int
    number: int
    places: np.ndarray


class DepthProbe(Probe):
    """All texts, in the order of asking."""

    def __init__(self, grid: Grid, prompts: Sequence[Prompts]) -> None:
        self.grid, self.prompts = grid, prompts

    @property
    def longest(self) -> int:
        return max(one.longest for one in self.prompts)

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.prompts)

    def ask(self, model: AdaptedModel, accelerator: Accelerator, *, cached: bool, label: str) -> Answers:
        model.eval()
        rows: list[tuple[Any, ...]] = []
        seconds = dict.fromkeys([one.length for one in self.prompts], 0.0)
        with Progress(label, len(self.prompts), visible=accelerator.is_main_process) as progress:
            for done, one in enumerate(self.prompts, 1):
                began = time.perf_counter()
                answers = answered(model, one, accelerator, cached=cached)
                for depth, (exact, logprob) in enumerate(answers):
                    if not np.isfinite(logprob):
                        raise TrainingDiverged(
                            f"the log-probability of an answer is not finite ({self.grid.text} {one.number} of "
                            f"{one.length} {self.grid.length}); try a lower learning rate"
                        )
                    place, tokens = int(one.places[depth]), int(one.answer_tokens[depth])
                    rows.append((one.length, one.number, depth, place, int(exact), logprob, tokens))
                seconds[one.length] += time.perf_counter() - began
                progress.update(done)
        columns = self.grid.columns
        table = pd.DataFrame(rows, columns=pd.Index(columns)).sort_values(columns[:3]).reset_index(drop=True)
        found = {str(length): self._measures(table, length, each) for length, each in seconds.items()}
        return Answers(table, {self.grid.length: found}, [self._in_words(*each) for each in found.items()])

    def _measures(self, table: pd.DataFrame, length: int, seconds: float) -> dict[str, Any]:
        """Accuracy (overall and by depth), mean log-probability by depth, `ends_minus_middle`, wall time."""
        own: Any = table[table[self.grid.length] == length]
        by_depth = own.groupby("depth")[["exact", "answer_logprob"]].mean()
        accuracy = by_depth["exact"].to_numpy(dtype=float)
        return {
            "accuracy": float(accuracy.mean()),
            "ends_minus_middle": ends_minus_middle(accuracy),
            "accuracy_by_depth": accuracy.tolist(),
            "logprob_by_depth": by_depth["answer_logprob"].tolist(),
            "seconds": round(seconds, 3),
        }

    def _in_words(self, length: str, found: dict[str, Any]) -> str:
        shares = " ".join(f"{share:.2f}" for share in found["accuracy_by_depth"])
        return f"{int(length):,} {self.grid.length}: accuracy by depth {shares}"


def prompts_of(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase) -> list[Prompts]:
    """The questions about texts as tokens."""
    questions = [question for text in texts for question in text.questions]
    ids, counts = tokens_of(questions, [answer for text in texts for answer in text.answers], tokenizer)
    prompts, start = [], 0
    for text in texts:
        own = slice(start, start := start + len(text.questions))
        shared = _shared(ids[own], counts[own])
        prompts.append(
            Prompts(
                length=text.length,
                number=text.number,
                places=np.array(text.places),
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
