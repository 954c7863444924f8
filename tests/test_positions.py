"""The true position of every token, however the model is called."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adapters import tiny, tokens
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hylo.adapters.positions import Positions


@pytest.fixture(params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@pytest.fixture
def positions(base: PreTrainedModel) -> Iterator[Positions]:
    followed = Positions()
    handle = followed.follow(base)
    yield followed
    handle.remove()


@torch.no_grad()
def _pass(base: PreTrainedModel, length: int, **kwargs: Any) -> Any:
    return base(input_ids=tokens(2, length), **kwargs)


def test_unknown_before_the_first_pass():
    with pytest.raises(AssertionError, match="only inside a forward pass"):
        _ = Positions().current


def test_counted_from_zero_without_a_mask(base: PreTrainedModel, positions: Positions):
    _pass(base, 5)
    assert positions.current.tolist() == [[0, 1, 2, 3, 4]]
    assert positions.current.dtype == torch.int64


def test_input_embeddings_count_like_tokens(base: PreTrainedModel, positions: Positions):
    with torch.no_grad():
        base(inputs_embeds=torch.zeros(2, 3, 48))
    assert positions.current.tolist() == [[0, 1, 2]]


def test_input_ids_may_be_given_by_place_and_nothing_else(base: PreTrainedModel, positions: Positions):
    """A positional mask would be overlooked, and with it the padding."""
    with torch.no_grad():
        base(tokens(1, 4))
        assert positions.current.tolist() == [[0, 1, 2, 3]]
        with pytest.raises(TypeError, match="by keyword"):
            base(tokens(1, 4), torch.ones(1, 4))


def test_given_position_ids_win(base: PreTrainedModel, positions: Positions):
    """Also over the mask and the cache."""
    given = torch.tensor([[7, 8, 9], [3, 3, 4]])
    _pass(base, 3, position_ids=given, attention_mask=torch.ones(2, 3, dtype=torch.long))
    assert torch.equal(positions.current, given)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
def test_left_padding_does_not_count(base: PreTrainedModel, positions: Positions, dtype: torch.dtype):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).to(dtype)
    _pass(base, 5, attention_mask=mask)
    assert positions.current[0, 2:].tolist() == [0, 1, 2]
    assert positions.current[1].tolist() == [0, 1, 2, 3, 4]
    assert (positions.current >= 0).all()  # padding gets a valid position for lookup


def test_masks_by_kind_of_layer_are_counted_as_the_model_counts():
    """Hybrid models take a dict of four-dimensional masks. Without position_ids the model itself counts from 0."""
    model, followed = tiny("qwen2"), Positions()
    followed.follow(model)
    expected = _pass(model, 4).logits
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    torch.testing.assert_close(_pass(model, 4, attention_mask={"full_attention": mask}).logits, expected)
    assert followed.current.tolist() == [[0, 1, 2, 3]]
    assert followed.real is not None
    assert followed.real.all()


def test_right_padding_leaves_the_text_alone(base: PreTrainedModel, positions: Positions):
    _pass(base, 4, attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
    assert positions.current[0, :2].tolist() == [0, 1]
    assert positions.current[1].tolist() == [0, 1, 2, 3]


def test_the_cache_goes_on_where_it_ended(base: PreTrainedModel, positions: Positions):
    """With a prefill of several tokens, and several tokens after it."""
    cache = _pass(base, 4, use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    cache = _pass(base, 1, past_key_values=cache, use_cache=True).past_key_values
    assert positions.current.tolist() == [[4]]
    _pass(base, 3, past_key_values=cache, use_cache=True)
    assert positions.current.tolist() == [[5, 6, 7]]
    _pass(base, 2, past_key_values=DynamicCache(config=base.config), use_cache=True)
    assert positions.current.tolist() == [[0, 1]]


def test_the_cache_of_a_left_padded_batch(base: PreTrainedModel, positions: Positions):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    cache = _pass(base, 4, attention_mask=mask[:, :4], use_cache=True).past_key_values
    _pass(base, 2, attention_mask=mask, past_key_values=cache, use_cache=True)
    assert positions.current.tolist() == [[2, 3], [4, 5]]


def _seen_by_the_model(base: PreTrainedModel, **kwargs: Any) -> Tensor | None:
    """The position_ids that the model itself receives."""
    seen: list[Tensor | None] = []

    def last(module: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        seen.append(given.get("position_ids"))

    handle = base.register_forward_pre_hook(last, with_kwargs=True)
    _pass(base, 4, **kwargs)
    handle.remove()
    return seen[0]


def test_the_model_is_told_what_was_read_from_the_mask_and_nothing_else(base: PreTrainedModel, positions: Positions):
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert _seen_by_the_model(base) is None
    assert _seen_by_the_model(base, attention_mask=mask) is positions.current
    given = torch.arange(4).unsqueeze(0) + 2
    assert _seen_by_the_model(base, position_ids=given) is given


def test_the_base_model_alone_shifts_left_padded_text(base: PreTrainedModel):
    """The reason for passing positions: GPT-2 counts padding. Rotary models are unaffected and would hide that."""
    ids, text = tokens(1, 6), tokens(1, 6)[:, 2:]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])

    def distance() -> float:
        with torch.no_grad():
            padded = base(input_ids=ids, attention_mask=mask).logits[:, 2:]
            return float((padded - base(input_ids=text).logits).abs().max())

    untold = distance()
    handle = Positions().follow(base)
    told = distance()
    handle.remove()
    assert told < 1e-5
    assert (untold > 0.1) == (base.config.model_type == "gpt2")
    assert distance() == untold, "the hook outlived its handle"
