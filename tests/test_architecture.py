"""Module lookup in every architecture listed in the tables."""

import copy
from typing import Any

import pytest
import torch
from adapters import (
    CONFIGS,
    CONTEXT,
    adapt,
    assert_same_state,
    logits,
    method,
    perturbed,
    snapshot,
    tiny,
    tokens,
)
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.core.errors import ConfigError
from hylo.models.architecture import final_norm, hidden_size, layer_shape, model_context_length, weight_OI
from hylo.models.targets import ALL_LINEAR, default_targets, target_layers


def _model(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture]).eval()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_final_norm_is_what_the_head_reads(architecture: str):
    """Not the first norm found by name, which is inside the first layer."""
    model = _model(architecture)
    seen: list[Any] = []
    head = model.get_output_embeddings()
    assert head is not None
    final_norm(model).register_forward_hook(lambda module, args, output: seen.append(output))
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(model, tokens(1, 4))
    normed, read = seen
    assert torch.equal(normed, read)
    assert read.shape[-1] == hidden_size(model) == 48
    assert model_context_length(model) == 2 * CONTEXT


@pytest.mark.parametrize("architecture", CONFIGS)
def test_default_targets_are_the_projections_of_attention(architecture: str):
    """Every linear layer of attention; on GPT-2 the published name c_proj also matches one in the FFN."""
    model = _model(architecture)
    targets = default_targets(model)
    everything = target_layers(model, [ALL_LINEAR])
    chosen = target_layers(model, targets)
    assert {path for path in everything if "attn" in path or "attention" in path} <= set(chosen)
    assert {path.rpartition(".")[2] for path in chosen} == set(targets)
    assert any("mlp" in path for path in chosen) == (architecture == "gpt2")
    assert model.get_output_embeddings() not in everything.values()
    assert all(model.get_submodule(path) is layer for path, layer in everything.items())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_components_work_on_every_architecture_that_a_table_names(architecture: str):
    """The part of the contract that depends on the architecture: all components, no lookahead, no trace left behind."""
    base = _model(architecture)
    ids, mask = tokens(1, 10), torch.tensor([[0] * 3 + [1] * 7])
    before = logits(base, ids)
    model = perturbed(base, method("hylorada_dora"))
    after = logits(model, ids)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(model, ids[:, :6]), after[:, :6], rtol=0, atol=1e-6)
    alone = logits(model, ids[:, 3:])
    torch.testing.assert_close(logits(model, ids, attention_mask=mask)[:, 3:], alone, rtol=0, atol=2e-5)
    assert torch.equal(logits(model.detach(), ids), before)


def test_a_model_without_a_final_norm_is_refused_before_anything_is_attached():
    """OPT-350M norms after each layer. A sweep shares the base model, so half a method must not stay attached."""
    config = copy.copy(CONFIGS["opt"])
    config.do_layer_norm_before = False
    base = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="OPTForCausalLM has no final norm"):
        final_norm(base)
    before, expected = snapshot(base), logits(base, tokens(1, 4))
    with pytest.raises(ConfigError, match="landmark"):
        adapt(base, method("hylorada"))
    assert_same_state(base, before)
    assert torch.equal(logits(base, tokens(1, 4)), expected)


def test_targets_match_whole_names_or_path_endings():
    model = tiny("llama")
    assert set(target_layers(model, ["v_proj"])) == {f"model.layers.{i}.self_attn.v_proj" for i in range(2)}
    assert set(target_layers(model, ["1.self_attn.v_proj"])) == {"model.layers.1.self_attn.v_proj"}
    assert set(target_layers(model, ["model.layers.0.mlp.up_proj"])) == {"model.layers.0.mlp.up_proj"}
    for target in ("proj", "self_attn", "embed_tokens", ".*v_proj", "model.layers.2.self_attn.v_proj"):
        with pytest.raises(
            ValueError, match="matches no linear layer of LlamaForCausalLM; it has down_proj, gate_proj"
        ):
            target_layers(model, ["v_proj", target])


def test_conv1d_stores_its_weight_transposed():
    linear, conv = nn.Linear(3, 5), Conv1D(5, 3)
    assert layer_shape(linear) == layer_shape(conv) == (3, 5)
    assert weight_OI(linear).shape == weight_OI(conv).shape == (5, 3)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x @ weight_OI(conv).T + conv.bias, conv(x))
