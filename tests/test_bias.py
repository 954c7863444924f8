"""Biases of linear layers: against a float64 loop, and against training the layers' own biases."""

from typing import Any

import numpy as np
import pytest
import torch
from adapters import (
    ARCHITECTURES,
    adapt,
    assert_same_state,
    causal_loss,
    context,
    logits,
    method,
    perturb,
    perturbed,
    snapshot,
    tiny,
    tokens,
    trained,
)
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from hylo.adapters.bias import BiasConfig
from hylo.adapters.low_rank import LowRankConfig
from hylo.adapters.model import AdaptedModel
from hylo.core.errors import ConfigError, MergeRefused
from hylo.models.targets import default_targets, target_layers

IDS = tokens(2, 12)
ALL = ["all-linear"]


def _name(path: str) -> str:
    return f"bias.b.{path}"


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_outputs_are_the_formula(architecture: str):
    """y = W x + b_0 + b, entry by entry in float64; layers are not square, and Conv1D stores W transposed."""
    base = tiny(architecture)
    model = perturbed(base, {"bias": BiasConfig(target_modules=ALL)})
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for path in target_layers(base, ALL):
        base.get_submodule(path).register_forward_hook(lambda m, args, y, p=path: seen.update({p: (args[0], y)}))
    logits(model, IDS)
    assert len(seen) == len(target_layers(base, ALL)) > 4
    for path, (x, y) in seen.items():
        layer: Any = base.get_submodule(path)
        W = layer.weight.detach().double().numpy()
        W = W.T if isinstance(layer, Conv1D) else W
        bias = trained(model)[_name(path)].detach().double().numpy().copy()
        if layer.bias is not None:
            bias += layer.bias.detach().double().numpy()
        for row, t in ((0, 0), (1, 11)):
            expected = [W[o] @ x[row, t].double().numpy() + bias[o] for o in range(len(W))]
            np.testing.assert_allclose(y[row, t].double().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox"])
def test_the_same_as_training_the_layer_s_own_bias(architecture: str):
    """If every target has a bias: the same logits from the same sum, and the same gradients."""
    base, own = tiny(architecture), tiny(architecture)
    model = perturbed(base, {"bias": BiasConfig(target_modules=ALL)}, fused=False)
    with torch.no_grad():
        for path, layer in target_layers(own, ALL).items():
            assert isinstance(layer.bias, Tensor)
            layer.bias.add_(trained(model)[_name(path)])
    outputs = [each(input_ids=IDS).logits for each in (model, own)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        causal_loss(output, IDS).backward()
    for path, layer in target_layers(own, ALL).items():
        assert isinstance(layer.bias, Tensor)
        torch.testing.assert_close(trained(model)[_name(path)].grad, layer.bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_targets_are_those_of_low_rank_updates(architecture: str):
    for targets in (None, ALL):
        layers = BiasConfig(target_modules=targets).layers(context(architecture))
        assert layers.keys() == LowRankConfig(target_modules=targets).layers(context(architecture)).keys()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("low_rank", ["lora", "dora"])
def test_beside_a_low_rank_update(low_rank: str, architecture: str):
    """Both change the same layers: the bias is added to the updated output and not scaled by a magnitude. The reference
    is the model with each target's bias changed by hand; the order of the slots makes no difference."""
    base = tiny(architecture)
    updates = method(low_rank)
    both: AdaptedModel = adapt(base, {"bias": BiasConfig(), **updates}, fused=False)
    perturb(both)
    tensors = {name: tensor.detach().clone() for name, tensor in trained(both).items()}
    tuned = logits(both, IDS)
    both.detach()
    for order in ({"bias": BiasConfig(), **updates}, {**updates, "bias": BiasConfig()}):
        again = adapt(base, order)
        again.load_adapter_state_dict(tensors, "the test")
        torch.testing.assert_close(logits(again, IDS), tuned, rtol=1e-5, atol=1e-5)
        again.detach()
    with torch.no_grad():
        for path, layer in target_layers(base, default_targets(base)).items():
            bias = tensors[_name(path)]
            own: Any = layer.bias
            layer.bias = torch.nn.Parameter(bias if own is None else own + bias)
    alone = adapt(base, updates, fused=False)
    alone.load_adapter_state_dict(
        {name: tensor for name, tensor in tensors.items() if not name.startswith("bias.")}, "the test"
    )
    torch.testing.assert_close(logits(alone, IDS), tuned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize("beside", [{}, method("dora")])
def test_merges_where_every_target_has_a_bias(architecture: str, beside: dict[str, Any]):
    base = tiny(architecture)
    before, names = snapshot(base), list(base.state_dict())
    model = perturbed(base, {"bias": BiasConfig(), **beside})
    tuned = logits(model, IDS)
    assert model.merge() is base
    assert list(base.state_dict()) == names
    torch.testing.assert_close(logits(base, IDS), tuned, rtol=0, atol=1e-5)
    moved = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, before[name])}
    biases = {f"{path}.bias" for path in target_layers(base, default_targets(base))}
    assert moved == biases | ({name.replace(".bias", ".weight") for name in biases} if beside else set())


def test_a_merge_that_a_saved_model_would_lose_is_refused():
    """Qwen2 has biases for q, k and v but not o: the first three alone can be merged."""
    base = tiny("qwen2")
    before = snapshot(base)
    model = perturbed(base, {"bias": BiasConfig()})
    with pytest.raises(MergeRefused, match="o_proj has no bias to add to"):
        model.merge()
    model.detach()
    assert_same_state(base, before)
    model = perturbed(base, {"bias": BiasConfig(target_modules=["q_proj", "k_proj", "v_proj"])})
    tuned = logits(model, IDS)
    torch.testing.assert_close(logits(model.merge(), IDS), tuned, rtol=0, atol=1e-5)
    half = tiny("gpt2").bfloat16()
    with pytest.raises(MergeRefused, match=r"bias of .*c_attn is torch.bfloat16.*\.float\(\)"):
        perturbed(half, {"bias": BiasConfig()}).merge()


@pytest.mark.parametrize("targets", [["wq"], []])
def test_targets_that_match_nothing_are_refused(targets: list[str]):
    with pytest.raises(ConfigError, match=r"method.bias.target_modules = (.|\n)*k_proj(.|\n)*all-linear"):
        adapt(tiny("llama"), {"bias": BiasConfig(target_modules=targets)})
