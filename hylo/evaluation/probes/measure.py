"""Asking a model: the answers' log-probability, and whether greedy decoding would give them.

All questions on a list begin alike. The list is read once, into a cache, which is then repeated for the questions: with
60 facts and five depths, 803 tokens are read instead of 3,715. Where the audit of the run found that the cache changes
the numbers (published pooling that sees later tokens), every question is a full pass.

Shapes: D questions on a list, P tokens that they share, T tokens of the longest rest, V words of the vocabulary.
"""

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import TrainingDiverged
from hylo.core.progress import Progress
from hylo.data.windows import model_inputs
from hylo.evaluation.probes.kv import Prompts
from hylo.evaluation.probes.score import ends_minus_middle


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    table: columns facts, list, depth (0 is the first fact), place (index of the fact), exact (1: greedy decoding gives
    the answer; else 0), answer_logprob (nats, the sum over the answer's tokens), answer_tokens; a row a question.
    seconds: wall time by number of facts.
    """

    table: pd.DataFrame
    seconds: dict[int, float]

    def section(self) -> dict[str, Any]:
        """By number of facts: accuracy (also by depth), mean log-probability by depth, the difference, seconds."""
        return {str(facts): self._measures(facts) for facts in self.seconds}

    def _measures(self, facts: int) -> dict[str, Any]:
        own: Any = self.table[self.table["facts"] == facts]
        by_depth = own.groupby("depth")[["exact", "answer_logprob"]].mean()
        accuracy = by_depth["exact"].to_numpy(dtype=float)
        return {
            "accuracy": float(accuracy.mean()),
            "ends_minus_middle": ends_minus_middle(accuracy),
            "accuracy_by_depth": accuracy.tolist(),
            "logprob_by_depth": by_depth["answer_logprob"].tolist(),
            "seconds": round(self.seconds[facts], 3),
        }


@torch.no_grad()
def ask(
    model: AdaptedModel, prompts: Sequence[Prompts], accelerator: Accelerator, *, cached: bool, label: str
) -> Answers:
    """Ask every question on every list.

    Arguments:
        cached: read each list once; False where cached decoding is not the full pass.

    Raises:
        TrainingDiverged: an answer's log-probability is not finite.
    """
    model.eval()
    rows: list[tuple[Any, ...]] = []
    seconds = dict.fromkeys([one.facts for one in prompts], 0.0)
    with Progress(label, len(prompts), visible=accelerator.is_main_process) as progress:
        for done, one in enumerate(prompts, 1):
            began = time.perf_counter()
            with accelerator.autocast():
                logits_DTV = (cached_logits if cached else full_logits)(model, one)
            for depth, (place, tail, tokens) in enumerate(zip(one.places, one.tails, one.answer_tokens, strict=True)):
                exact, logprob = graded(logits_DTV[depth], tail, tokens)
                if not np.isfinite(logprob):
                    raise TrainingDiverged(
                        f"the log-probability of an answer is not finite (list {one.number} of {one.facts} facts); "
                        f"try a lower learning rate"
                    )
                rows.append((one.facts, one.number, depth, int(place), int(exact), logprob, int(tokens)))
            seconds[one.facts] += time.perf_counter() - began
            progress.update(done)
    columns = ["facts", "list", "depth", "place", "exact", "answer_logprob", "answer_tokens"]
    table = pd.DataFrame(rows, columns=pd.Index(columns)).sort_values(columns[:3]).reset_index(drop=True)
    return Answers(table, seconds)


def graded(logits_TV: Tensor, tail: np.ndarray, tokens: int) -> tuple[bool, float]:
    """Whether every token of the answer is the likeliest given those before it, and their log-probability in nats.

    The first holds exactly where greedy decoding from the question gives the answer.
    """
    first = len(tail) - tokens
    answer = torch.from_numpy(tail[first:].astype(np.int64)).to(logits_TV.device)
    scores = logits_TV[first - 1 : len(tail) - 1].cpu().double()
    chosen = scores.log_softmax(-1).gather(1, answer.cpu()[:, None])
    return bool((scores.argmax(-1) == answer.cpu()).all()), float(chosen.sum())


def cached_logits(model: AdaptedModel, prompts: Prompts) -> Tensor:
    """Logits [D, T, V] of what follows the shared tokens, which are read once. Tails are padded on the right, where no
    token of theirs sees it."""
    device, count = model.base.device, len(prompts.tails)
    prefix = torch.from_numpy(prompts.prefix.astype(np.int64)).to(device)
    one_logit = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}  # the head is a fifth of the work
    cache = model(input_ids=prefix[None], use_cache=True, **one_logit).past_key_values
    cache.batch_repeat_interleave(count)
    tails = torch.from_numpy(_padded(prompts.tails).astype(np.int64)).to(device)
    return model(input_ids=tails, past_key_values=cache, use_cache=True).logits


def full_logits(model: AdaptedModel, prompts: Prompts) -> Tensor:
    """The same by passes over whole questions, padding masked."""
    whole = [np.concatenate([prompts.prefix, tail]) for tail in prompts.tails]
    inputs = model_inputs(_padded(whole), np.array([len(each) for each in whole]), model.base.device)
    return model(**inputs, use_cache=False).logits[:, len(prompts.prefix) :]


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several lengths as one array, the ends filled with each row's last token."""
    length = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, length - len(row)), mode="edge") for row in rows])


def _takes(model: AdaptedModel, argument: str) -> bool:
    return argument in inspect.signature(type(model.base).forward).parameters
