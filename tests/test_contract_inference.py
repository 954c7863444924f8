"""The contract of every method in conf/method/ for inference: causality, and the same result however text is fed.

All parameters are perturbed: at step 0 most components have no effect, and these tests would pass trivially.
"""

from typing import Any

import pytest
import torch
from adapters import logits, matrix, method, perturbed, tiny, tokens
from torch import Tensor

from hylo.adapters.model import AdaptedModel

LENGTHS = (5, 12, 9)
TEXTS = [tokens(1, length, seed=length) for length in LENGTHS]
NEW_TOKENS = 6
ROUNDING = 1e-4
"""Tolerance for float32 logits up to 6. An off-by-one position changes them at least 30 times as much."""


pytestmark = matrix()


@pytest.fixture(scope="module")
def model(architecture: str, name: str) -> AdaptedModel:
    return perturbed(tiny(architecture), method(name))


@pytest.fixture
def causal(model: AdaptedModel) -> AdaptedModel:
    """The model, if every component declares that it sees no later token."""
    if any("causality" in config.breaks for config in model.method.values()):
        pytest.skip("declares that it leaks")
    return model


def _left_padded(texts: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """One batch of texts and its attention mask."""
    length = max(text.shape[1] for text in texts)
    rows = [torch.nn.functional.pad(text, (length - text.shape[1], 0), value=pad) for text in texts]
    masks = [torch.arange(length) >= length - text.shape[1] for text in texts]
    return torch.cat(rows), torch.stack(masks).long()


@torch.no_grad()
def _step_by_step(model: AdaptedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits from decoding one token at a time with the cache."""
    cache, steps = None, []
    for t in range(ids.shape[1]):
        given = {} if mask is None else {"attention_mask": mask[:, : t + 1]}
        output = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True, **given)
        cache = output.past_key_values
        steps.append(output.logits)
    return torch.cat(steps, dim=1)


def _greedy(model: AdaptedModel, ids: Tensor) -> Tensor:
    """Greedy continuation by full forward passes without a cache."""
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, logits(model, ids, use_cache=False)[:, -1:].argmax(-1)], dim=1)
    return ids


def _generate(model: AdaptedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The same with the base model's own `generate`."""
    generate: Any = model.base.generate
    return generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


def test_causality(causal: AdaptedModel):
    ids = tokens(2, 12)
    before = logits(causal, ids)
    for t in (1, 7, 11):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 97
        after = logits(causal, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        assert ((after[:, t:] - before[:, t:]).abs().amax(-1) > 1e-4).all(), f"token {t} changes nothing after it"


def test_left_padding_and_batch_mates_change_nothing(model: AdaptedModel):
    """No position_ids are given. Rotary attention alone would pass: it only sees distances, which padding preserves."""
    alone = [logits(model, text) for text in TEXTS]
    for pad in (0, 96):
        ids, mask = _left_padded(TEXTS, pad)
        together = logits(model, ids, attention_mask=mask)
        for row, expected in enumerate(alone):
            found = together[row : row + 1, -expected.shape[1] :]
            torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_batch_mates_change_nothing(model: AdaptedModel):
    ids = tokens(3, 12)
    torch.testing.assert_close(logits(model, ids)[1:2], logits(model, ids[1:2]), rtol=0, atol=ROUNDING)


def test_decoding_with_the_cache_equals_the_full_pass(causal: AdaptedModel):
    """Positions must continue from the cache: counted from 0 at each token, RoPE is right but components are wrong."""
    ids = tokens(2, 12)
    torch.testing.assert_close(_step_by_step(causal, ids), logits(causal, ids), rtol=0, atol=ROUNDING)


def test_decoding_a_left_padded_batch_equals_each_text_alone(causal: AdaptedModel):
    ids, mask = _left_padded(TEXTS, pad=0)
    stepped = _step_by_step(causal, ids, mask)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(
            stepped[row : row + 1, -text.shape[1] :], logits(causal, text), rtol=0, atol=ROUNDING
        )


def test_generate_equals_a_loop_of_full_passes(causal: AdaptedModel):
    ids, mask = _left_padded(TEXTS, pad=0)
    together = _generate(causal, ids, mask)
    for row, text in enumerate(TEXTS):
        expected = _greedy(causal, text)
        assert torch.equal(_generate(causal, text, torch.ones_like(text)), expected)
        assert torch.equal(together[row : row + 1, -expected.shape[1] :], expected)


def test_evaluation_is_deterministic(model: AdaptedModel):
    ids = tokens(2, 12)
    assert torch.equal(logits(model, ids), logits(model, ids))
