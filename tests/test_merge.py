"""Merging: a method is merged exactly into the plain model's weights, or refused with a reason and no change.

All parameters are perturbed: at step 0 most updates are zero, and a merge that drops them would pass.
"""

from pathlib import Path

import pytest
import torch
from adapters import (
    ARCHITECTURES,
    CONTEXT,
    adapt,
    assert_same_state,
    logits,
    matrix,
    method,
    perturb,
    perturbed,
    snapshot,
    tiny,
    tokens,
    values,
)
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.adapters.component import BuildContext
from hylo.adapters.low_rank import LowRankConfig
from hylo.core.errors import MergeRefused
from hylo.models.architecture import weight_OI

IDS = tokens(2, 12)
WEIGHTS_ONLY = {"none", "full", "lora", "rslora", "dora", "rslora_dora", "norms", "embeddings", "longlora"}
"""Methods that only change weights, so a refusal would be an error."""


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(architecture: str) -> PreTrainedModel:
    return tiny(architecture)


def _types(model: torch.nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


@matrix()
def test_every_method_merges_exactly_or_refuses_and_changes_nothing(base: PreTrainedModel, name: str):
    untuned, types, names = logits(base, IDS), _types(base), base.state_dict().keys()
    model = perturbed(base, method(name))
    tuned, before = logits(model, IDS), snapshot(model)
    refused = {slot: component for slot, component in model.slots() if component.merge_refusal()}
    assert not (refused and name in WEIGHTS_ONLY)
    if refused:
        with pytest.raises(MergeRefused) as caught:
            model.merge()
        for slot, component in refused.items():
            assert f"{slot}: {component.merge_refusal()}" in str(caught.value)
            with pytest.raises(MergeRefused, match="cannot be merged: "):
                component.merge(base)
        assert model.attached
        assert_same_state(model, before)
        assert torch.equal(logits(model, IDS), tuned)
        model.detach()
        assert torch.equal(logits(base, IDS), untuned)
    else:
        assert model.merge() is base
        assert (_types(base), base.state_dict().keys()) == (types, names)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())
        torch.testing.assert_close(logits(base, IDS), tuned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("magnitude", [False, True])
def test_merged_weights_are_the_formula_row_by_row(base: PreTrainedModel, magnitude: bool):
    """W' = m / n (W + s B A) in float64. Equal logits alone would hide a bias that is scaled, then scaled back."""
    before = snapshot(base)
    config = LowRankConfig(rank=3, alpha=7.0, magnitude=magnitude, target_modules=["all-linear"])
    model = perturbed(base, {"low_rank": config})
    tensors = {name: tensor.double() for name, tensor in values(model).items()}
    model.merge()
    targets = config.layers(BuildContext(base, CONTEXT, seed=0))
    for path in targets:
        layer = base.get_submodule(path)
        W = before[f"{path}.weight"].double()
        W = W.T if isinstance(layer, Conv1D) else W
        A, B = (tensors[f"low_rank.layers.{path}.{name}"] for name in "AB")
        expected = W + 7.0 / 3 * B @ A
        if magnitude:
            expected *= (tensors[f"low_rank.layers.{path}.magnitude"] / expected.norm(dim=1)).unsqueeze(1)
        torch.testing.assert_close(weight_OI(layer).double(), expected, rtol=1e-5, atol=1e-6)
    written = {f"{path}.weight" for path in targets}
    assert [n for n, t in base.state_dict().items() if n not in written and not torch.equal(t, before[n])] == []


def test_a_second_merge_and_one_after_detach_are_refused(base: PreTrainedModel):
    """Merged twice, the update would count twice."""
    model = perturbed(base, method("rslora"))
    merged = snapshot(model.merge())
    with pytest.raises(MergeRefused, match="already merged or detached"):
        model.merge()
    model.detach()
    assert_same_state(base, merged)
    other = perturbed(base, method("rslora"))
    other.detach()
    with pytest.raises(MergeRefused, match="already merged or detached"):
        other.merge()
    assert_same_state(base, merged)


def test_a_merged_model_is_one_of_transformers(base: PreTrainedModel, tmp_path: Path):
    model = perturbed(base, method("rslora_dora"))
    expected = logits(model, IDS)
    model.merge().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, IDS), expected, rtol=0, atol=1e-5)
    again = adapt(base, method("hylorada"))  # on top of the merged weights
    perturb(again)
    assert not torch.equal(logits(again, IDS), expected)


def test_weights_that_would_round_the_update_are_refused():
    """A sum in bfloat16 keeps eight bits: most of a small update would be silently lost."""
    base = tiny("llama").bfloat16()
    model = perturbed(base, method("lora"))
    with pytest.raises(MergeRefused, match=r"q_proj is torch.bfloat16.*\.float\(\)"):
        model.merge()
    model.float()
    expected = logits(model, IDS)
    torch.testing.assert_close(logits(model.merge(), IDS), expected, rtol=0, atol=1e-5)
