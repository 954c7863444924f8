"""Log-probabilities of continuations of contexts, in batches.

A context with several continuations (multiple choice) is read once, into a cache, together with other contexts of the
same length: nothing is padded before a token that counts, so a batch computes what one context alone computes. Contexts
with one continuation get full forward passes, padded on the right under a mask; so does everything if the run's audit
found that cached decoding computes something else.

Shapes: C contexts, P tokens of each but the last, R continuations, T tokens of the longest, V vocabulary size.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import TrainingDiverged
from hylo.evaluation.probes.measure import Questions, answered, graded, logits_after

Score = tuple[float, bool]
"""Log-probability of a continuation in nats, and whether greedy decoding gives it."""


@dataclass(frozen=True)
class Pair:
    """A context and its continuation, as tokens; the context has at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)

    def last(self, tokens: int | None) -> "Pair":
        """The last tokens of the pair, of which at least one belongs to the context; None: all."""
        if tokens is None or len(self) <= tokens:
            return self
        whole = (*self.context, *self.continuation)[-tokens:]
        kept = max(1, len(whole) - len(self.continuation))
        return Pair(whole[:kept], whole[kept:])


@torch.no_grad()
def scores(
    model: AdaptedModel,
    pairs: Sequence[Pair],
    accelerator: Accelerator,
    *,
    cached: bool,
    rows: Callable[[int], int],
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Score]:
    """The score of each pair, in order. The model must be in evaluation mode.

    Args:
        cached: whether contexts may be read into a cache.
        rows: returns how many rows of a length one forward pass may have, at least one.
        on_done: called with the number of pairs after each pass.

    Raises:
        TrainingDiverged: a log-probability is not finite.
    """
    found: dict[int, Score] = {}
    for batch, shared in _batches(pairs, cached, rows):
        chosen = [pairs[index] for index in batch]
        answers = _after_contexts(model, chosen, accelerator) if shared else _whole(model, chosen, accelerator)
        for index, (exact, logprob) in zip(batch, answers, strict=True):
            if not np.isfinite(logprob):
                raise TrainingDiverged("the log-probability of an answer is not finite; try a lower learning rate")
            found[index] = (logprob, exact)
        on_done(len(batch))
    return [found[index] for index in range(len(pairs))]


def _batches(pairs: Sequence[Pair], cached: bool, rows: Callable[[int], int]) -> Iterator[tuple[list[int], bool]]:
    """Indices of the pairs of each pass, longest first, and whether their contexts are read once, into a cache."""
    siblings: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        siblings[pair.context].append(index)
    alone: list[int] = []
    by_length: dict[int, list[int]] = defaultdict(list)
    for context, members in siblings.items():
        if cached and len(members) > 1 and len(context) > 1:
            by_length[len(context)] += members
        else:
            alone += members
    groups = [(members, True) for members in by_length.values()]
    for members, shared in [*groups, (sorted(alone, key=lambda index: -len(pairs[index])), False)]:
        first = 0
        while first < len(members):
            longest = max(len(pairs[index]) for index in members[first:]) if shared else len(pairs[members[first]])
            taken = members[first : first + max(1, rows(longest))]
            yield taken, shared
            first += len(taken)


def _whole(model: AdaptedModel, pairs: Sequence[Pair], accelerator: Accelerator) -> list[tuple[bool, float]]:
    tails = [np.array([*pair.context, *pair.continuation], dtype=np.int32) for pair in pairs]
    counts = np.array([len(pair.continuation) for pair in pairs])
    questions = Questions(prefix=np.empty(0, np.int32), tails=tails, answer_tokens=counts)
    return answered(model, questions, accelerator, cached=False)


def _after_contexts(model: AdaptedModel, pairs: Sequence[Pair], accelerator: Accelerator) -> list[tuple[bool, float]]:
    """Contexts of one length: all but their last tokens are read once; the last one precedes each continuation."""
    contexts = list(dict.fromkeys(pair.context for pair in pairs))
    prefixes_CP = np.array(contexts, dtype=np.int32)[:, :-1]
    tails = [np.array([pair.context[-1], *pair.continuation], dtype=np.int32) for pair in pairs]
    owners = [contexts.index(pair.context) for pair in pairs]
    with accelerator.autocast():
        logits_RTV = logits_after(model, prefixes_CP, tails, owners)
    if logits_RTV is None:  # the model returns no cache
        return _whole(model, pairs, accelerator)
    ends = [len(pair.continuation) for pair in pairs]
    return [graded(*each) for each in zip(logits_RTV, tails, ends, strict=True)]
