"""Log-probabilities of continuations: against a slow loop, and batched against one at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from adapters import adapt, method, perturb, tiny, tokens

from hylo.adapters.model import AdaptedModel
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.core.errors import TrainingDiverged
from hylo.evaluation.tasks.continuations import Pair, Score, scores


def pairs() -> list[Pair]:
    """Contexts of several lengths, two of the same; with four, two and one continuations, one of them greedy."""
    drawn = iter(tokens(60).tolist() * 4)

    def take(count: int) -> tuple[int, ...]:
        return tuple(next(drawn) for _ in range(count))

    contexts = {take(9): 3, take(5): 2, take(9): 3, take(7): 1, take(1): 2, take(12): 1}
    return [Pair(context, take(1 + place)) for context, count in contexts.items() for place in range(count)]


def asked(model: AdaptedModel, of: list[Pair], rows: int, *, cached: bool) -> list[Score]:
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    return scores(model, of, accelerator, cached=cached, rows=lambda length: rows)


@torch.no_grad()
def slowly(model: AdaptedModel, pair: Pair) -> Score:
    """Token by token, each from a full pass over everything before it."""
    total, greedy, seen = 0.0, True, list(pair.context)
    for token in pair.continuation:
        last = model(input_ids=torch.tensor([seen])).logits[0, -1].double().log_softmax(-1)
        total, greedy = total + float(last[token]), greedy and int(last.argmax()) == token
        seen.append(token)
    return total, greedy


@pytest.mark.parametrize("name", ["none", "hylorada", "landmark_attention", "peft_prefix"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_are_those_of_a_token_by_token_loop(architecture: str, name: str) -> None:
    """However many rows a pass has, and whether or not contexts are read once."""
    model = adapt(tiny(architecture), method(name))
    perturb(model)
    given = pairs()
    expected = [slowly(model, pair) for pair in given]
    for cached in (True, False):
        for rows in (1, 3, 50):
            found = asked(model, given, rows, cached=cached)
            np.testing.assert_allclose([each[0] for each in found], [each[0] for each in expected], atol=2e-5)
            assert [each[1] for each in found] == [each[1] for each in expected]


def test_a_greedy_continuation_is_recognised() -> None:
    model = adapt(tiny("llama"), {})
    context, said = tokens(6).tolist(), []
    for _ in range(3):
        with torch.no_grad():
            said.append(int(model(input_ids=torch.tensor([context + said])).logits[0, -1].argmax()))
    other = [*said[:2], (said[2] + 1) % 97]
    found = asked(model, [Pair(tuple(context), tuple(said)), Pair(tuple(context), tuple(other))], 8, cached=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_long_pairs_keep_their_end() -> None:
    pair = Pair((1, 2, 3, 4), (5, 6))
    assert pair.last(None) == pair.last(6) == pair
    assert pair.last(4) == Pair((3, 4), (5, 6))
    assert pair.last(2) == Pair((5,), (6,)), "at least one token of the context"


def test_a_leaking_method_is_read_without_its_batch_mates() -> None:
    """Published pooling looks at the whole sequence: padding and batch-mates must not count."""
    model = adapt(tiny("llama"), method("landmark_original", "method.landmark.pooling=sequence"))
    perturb(model)
    one, many = (asked(model, pairs(), rows, cached=False) for rows in (1, 50))
    np.testing.assert_allclose([each[0] for each in one], [each[0] for each in many], atol=2e-5)


def test_a_number_that_is_not_finite_is_refused() -> None:
    model = adapt(tiny("llama"), method("lora"))
    tensors: Any = model.adapter_state_dict()
    next(iter(tensors.values())).data.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="not finite"):
        asked(model, pairs(), 4, cached=True)
