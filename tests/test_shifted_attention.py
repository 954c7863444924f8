"""Shifted sparse attention against a dense mask written out query by query, and what it must not do."""

import copy
import re
from typing import Any

import pytest
import torch
from adapters import CONFIGS, CONTEXT, adapt, context, logits, method, tiny, tokens
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from hylo.adapters.landmarks.attention import AttentionConfig
from hylo.adapters.model import AdaptedModel, method_problems
from hylo.adapters.shifted_attention import ShiftedAttentionConfig
from hylo.core.errors import ConfigError

SIZE, LENGTH = 8, 29
SIZES = pytest.mark.parametrize("size", [SIZE, 5])


def sees(head: int, heads: int, i: int, j: int, size: int) -> bool:
    """Whether query i reads key j."""
    shift = size // 2 if head >= heads // 2 else 0
    return j <= i and (i + shift) // size == (j + shift) // size


def dense(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention in float64 under the whole mask, one query at a time."""
    heads, length = query.shape[1], query.shape[2]
    output = torch.zeros_like(query)
    for head in range(heads):
        own = head // (heads // key.shape[1])
        for i in range(length):
            seen = [j for j in range(length) if sees(head, heads, i, j, module.config.reference_size)]
            scores = (key[:, own, seen].double() @ query[:, head, i, :, None].double())[..., 0] * scaling
            shares = scores.softmax(-1)[:, None]
            output[:, head, i] = (shares @ value[:, own, seen].double())[:, 0].to(output.dtype)
    return output.transpose(1, 2), None


AttentionInterface.register("dense_reference", dense)


def without_dropout(architecture: str, **changes: Any) -> PreTrainedModel:
    """A tiny model whose training mode draws nothing, with every tensor perturbed."""
    model = tiny(architecture)
    if changes:
        config = copy.deepcopy(CONFIGS[architecture])
        config.update(changes)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def shifted(base: PreTrainedModel, size: int) -> AdaptedModel:
    return adapt(base, {"shifted_attention": ShiftedAttentionConfig(group_size=size)}, fused=False)


@SIZES
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("gpt2", {}), ("llama", {}), ("llama", {"num_attention_heads": 3, "num_key_value_heads": 1})],
    ids=["gpt2", "llama", "odd heads"],
)
def test_equals_a_dense_mask(architecture: str, changes: dict[str, Any], implementation: str, size: int):
    """Logits in training mode, rotary and learned positions, grouped and odd heads, and texts of no whole number of
    groups; the groups' size changes them."""
    base, ids = without_dropout(architecture, **changes), tokens(2, LENGTH)
    base.set_attn_implementation("dense_reference")
    base.config.reference_size = size
    expected = logits(base.train(), ids)
    base.set_attn_implementation(implementation)
    model = shifted(base, size)
    torch.testing.assert_close(logits(model.train(), ids), expected, rtol=1e-4, atol=1e-4)
    full = logits(model.eval(), ids)
    assert not torch.allclose(full, expected, atol=1e-2)
    model.detach()
    assert torch.equal(logits(base.eval(), ids), full), "outside of training it is the base model"


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_no_token_sees_a_later_one(architecture: str):
    """In the paper's pseudocode the first half group of the shifted heads reads the last one."""
    model, ids = shifted(without_dropout(architecture), SIZE).train(), tokens(1, LENGTH)
    before = logits(model, ids)
    for t in (1, SIZE // 2, SIZE, LENGTH - 1):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 97
        after = logits(model, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-4


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral"])
def test_masks_apply_within_groups(architecture: str, implementation: str):
    """Padding on the right changes nothing, and padding itself has finite numbers; Mistral has a mask of its own."""
    base = without_dropout(architecture)
    base.set_attn_implementation(implementation)
    model = shifted(base, SIZE).train()
    texts = [tokens(1, length, seed=length) for length in (13, 29)]
    alone = [logits(model, text) for text in texts]
    ids = torch.cat([nn.functional.pad(texts[0], (0, 16)), texts[1]])
    mask = torch.ones_like(ids)
    mask[0, 13:] = 0
    together = logits(model, ids, attention_mask=mask)
    assert together.isfinite().all()
    torch.testing.assert_close(together[:1, :13], alone[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(together[1:], alone[1], rtol=0, atol=1e-4)
    left = logits(model, ids.flip(1), attention_mask=mask.flip(1))
    assert left.isfinite().all(), "a row of padding alone"


def test_decoding_in_training_mode_reads_the_whole_cache():
    model, ids = shifted(without_dropout("llama"), SIZE), tokens(1, 20)
    expected = logits(model.eval(), ids)[:, -1:]
    cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    model.train()
    torch.testing.assert_close(logits(model, ids[:, -1:], past_key_values=cache), expected, rtol=1e-4, atol=1e-4)


def test_group_sizes_and_conflicts_are_refused():
    (said,) = method_problems({"shifted_attention": ShiftedAttentionConfig(group_size=CONTEXT)}, context("llama"))
    assert "group_size = 32" in said
    both = {"landmark": AttentionConfig(), "shifted_attention": ShiftedAttentionConfig()}
    for order in (both, dict(reversed(both.items()))):
        with pytest.raises(ConfigError, match="both change the attention functions") as caught:
            AdaptedModel(tiny("llama"), order, context_length=CONTEXT, seed=0)
        first, second = order
        assert re.search(rf"method.{second}=null, or method.{first}=null", str(caught.value))


def test_by_default_a_quarter_of_the_context():
    assert ShiftedAttentionConfig().size(context("llama")) == CONTEXT // 4
    assert method("longlora")["shifted_attention"] == ShiftedAttentionConfig()
