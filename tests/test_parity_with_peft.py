"""LoRA, rank-stabilized LoRA and DoRA match the `peft` library: same weights, outputs and gradients."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters import ARCHITECTURES, adapt, context, perturbed, tiny, tokens, trained
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.low_rank import InitA, LowRankConfig, LowRankLayer, Scaling
from hylo.adapters.model import AdaptedModel
from hylo.models.architecture import weight_OI
from hylo.models.targets import ALL_LINEAR, default_targets

IDS = tokens(2, 12)
FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"scaling": Scaling.rank_stabilized},
    "dora": {"magnitude": True},
    "rslora_dora": {"scaling": Scaling.rank_stabilized, "magnitude": True},
}
TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}
TENSORS = {
    "A": "lora_A.default.weight",
    "B": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
}
# peft 0.21.2 reads a property that transformers 5.23.0 calls deprecated (November 2026).
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def _peft(base: PreTrainedModel, config: LowRankConfig, targets: list[str] | str) -> nn.Module:
    """The same method from peft on a copy of the model."""
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        use_rslora=config.scaling is Scaling.rank_stabilized,
        use_dora=config.magnitude,
        target_modules=targets,
        fan_in_fan_out=base.config.model_type == "gpt2",
        lora_dropout=config.dropout,
    )
    return get_peft_model(copy.deepcopy(base), settings)


def _pairs(model: AdaptedModel, peft_model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Our tensor and peft's, by our name; only the tensor names differ, not the module paths."""
    theirs = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    pairs = {}
    for name, tensor in trained(model).items():
        path, _, kind = name.removeprefix("low_rank.layers.").rpartition(".")
        pairs[name] = (tensor, theirs.pop(f"base_model.model.{path}.{TENSORS[kind]}"))
    assert not theirs, "peft trains tensors that ours does not"
    return pairs


@pytest.mark.parametrize("architecture", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients(form: str, architecture: str):
    """In float32, as in runs. Perturbed, including magnitude and biases, and on non-square matrices: at step 0
    W + s B A equals W and the magnitude equals the norm it is divided by, so a column norm, a missing scale in the norm
    or a scaled bias would pass."""
    config = LowRankConfig(rank=4, alpha=6.0, target_modules=TARGETS[architecture], **FORMS[form])
    base = tiny(architecture)
    theirs = _peft(base, config, TARGETS[architecture]).eval()
    ours = perturbed(base, {"low_rank": config})
    pairs = _pairs(ours, theirs)
    with torch.no_grad():
        for mine, other in pairs.values():
            other.copy_(mine)

    outputs = [model(input_ids=IDS).logits for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    for output in outputs:
        F.cross_entropy(output.flatten(0, 1), IDS.flatten()).backward()
    for mine, other in pairs.values():
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", TARGETS)
def test_a_fresh_adapter_starts_as_pefts(architecture: str):
    """B at zero, the magnitude at the row norms, A of the same uniform distribution: within 1 / sqrt(in)."""
    config = LowRankConfig(magnitude=True, target_modules=TARGETS[architecture])
    base = tiny(architecture)
    theirs = _peft(base, config, TARGETS[architecture])
    for name, (mine, other) in _pairs(adapt(base, {"low_rank": config}), theirs).items():
        if name.endswith(".A"):
            end = mine.shape[1] ** -0.5
            for tensor in (mine, other):
                assert 0.95 * end < tensor.detach().abs().max() <= end
                assert tensor.detach().std() == pytest.approx(end / 3**0.5, rel=0.15)
        else:
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_orthogonal_start():
    model = adapt(tiny("llama"), {"low_rank": LowRankConfig(init_a=InitA.orthogonal)})
    for name, tensor in trained(model).items():
        if name.endswith(".A"):
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(8), rtol=0, atol=1e-5)


def test_the_norm_is_a_constant_in_backward():
    """DoRA, section 4.3. Outputs cannot show it; nor can gradients at step 0, for most losses."""
    base = tiny("gpt2")
    config = LowRankConfig(magnitude=True, target_modules=["c_fc"])
    perturbed(base, {"low_rank": config})
    layer = base.get_submodule("transformer.h.0.mlp.c_fc")
    assert isinstance(layer, LowRankLayer)
    assert layer.magnitude is not None
    own = [layer.A, layer.B, layer.magnitude]
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    layer(x).sin().sum().backward()

    def gradients(constant: bool) -> tuple[Tensor, ...]:
        A, B, m = (parameter.detach().double().requires_grad_() for parameter in own)
        full_OI = weight_OI(layer.base).double() + config.scale * B @ A
        norm_O = full_OI.norm(dim=1)
        y = F.linear(x.double(), full_OI) * m / (norm_O.detach() if constant else norm_O) + layer.base.bias
        return torch.autograd.grad(y.sin().sum(), [A, B, m])

    for parameter, expected in zip(own, gradients(constant=True), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-5, atol=1e-5)
    for parameter, other in zip(own[:2], gradients(constant=False), strict=False):
        assert parameter.grad is not None
        assert (parameter.grad - other).norm() > 0.1 * other.norm()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("everything", [False, True], ids=["default", "all-linear"])
def test_targets_are_those_of_peft(architecture: str, everything: bool):
    """The defaults, passed to peft by name, and peft's own all-linear: the same layers, without the output head."""
    base = tiny(architecture)
    ours = LowRankConfig(target_modules=[ALL_LINEAR] if everything else None).layers(context(architecture))
    theirs = _peft(base, LowRankConfig(), ALL_LINEAR if everything else default_targets(base))
    names = {name.removeprefix("base_model.model.") for name, _ in theirs.named_parameters() if "lora_A" in name}
    assert set(ours) == {name.partition(".lora_A")[0] for name in names}
    # by default, and with the layers of the FFN (that of GPT-2 has one among the defaults)
    a_layer = {"gpt2": (3, 4), "gpt_neox": (2, 4), "opt": (4, 6)}.get(architecture, (4, 7))
    assert len(ours) == 2 * a_layer[everything]
