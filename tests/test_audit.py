"""The audit: sound methods pass, every published flaw that breaks a property is caught, every check can fail.

The components that break one property each add a bias to the output of the final norm.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters import (
    CONTEXT,
    adapt,
    causal_loss,
    matrix,
    method,
    snapshot,
    tiny,
    tokens,
    trained,
    values,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.component import BuildContext, Component, ComponentConfig, zeros
from hylo.adapters.model import AdaptedModel, Method
from hylo.audit import Audit, Finding, Status, untouched_logits
from hylo.models.architecture import final_norm, hidden_size
from hylo.training.config import TrainerConfig
from hylo.training.optimizers.adamw import AdamWConfig
from hylo.training.step import make_optimizer

IDS = tokens(2, 20)
BEFORE = {
    "identity_at_start", "causality", "cached_decoding", "padding", "dead_tensors", "frozen_tensors",
    "parameter_count", "adapted_share", "bucket_occupancy",
}  # fmt: skip
AFTER = {"unmoved_tensors", "deterministic_evaluation"}


def started(components: Method, architecture: str = "llama") -> tuple[Audit, AdaptedModel]:
    """An audit of the method before its first step."""
    base = tiny(architecture)
    base_logits = untouched_logits(base, IDS)
    model = adapt(base, components)
    return Audit(model, IDS, base_logits, seed=0), model


def learn(model: AdaptedModel, steps: int = 3, left_out: str = "") -> None:
    """A few steps of training; a tensor can be left out of the optimizer."""
    optimizer = make_optimizer(model, TrainerConfig(optimizer=AdamWConfig()))
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not trained(model).get(left_out)]
    for _ in range(steps):
        model.zero_grad()
        causal_loss(model(input_ids=IDS).logits, IDS).backward()
        optimizer.step()


def audited(components: Method, architecture: str = "llama") -> dict[str, Finding]:
    """All findings of the method, trained for a few steps."""
    audit, model = started(components, architecture)
    audit.before_training()
    if components:
        learn(model)
    audit.after_training()
    return {finding.check: finding for finding in audit.findings}


def breaks(components: Method) -> set[str]:
    """Checks that the method declares it fails."""
    return set().union(*(config.breaks for config in components.values()))


def failed(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.status is Status.failed}


@matrix()
def test_every_method_passes_but_for_the_flaws_it_declares(architecture: str, name: str):
    findings = audited(method(name), architecture)
    assert set(findings) == BEFORE | AFTER
    assert failed(findings) == breaks(method(name))


PUBLISHED = {
    ("landmark_original", "method.landmark.pooling=sequence"): {"causality"},
    ("landmark_per_layer", "method.landmark.pooling=sequence"): {"causality"},
    ("landmark_pa", "method.landmark.bucketing=uniform method.landmark.max_position=32768"): {"bucket_occupancy"},
    ("rslora_dora_pb", "method.position_bias.bucketing=uniform method.position_bias.max_position=32768"): {
        "bucket_occupancy"
    },
    ("landmark_learnable", "method.landmark.temperature=0.1"): {"bucket_occupancy"},
    ("rslora_dora_pb", "method.position_bias.receives_positions=false"): {"dead_tensors", "unmoved_tensors"},
    ("dora", "method.low_rank.magnitude_start=ones"): {"identity_at_start"},
    ("rslora", "method.low_rank.init_a=orthogonal"): set(),
    ("rslora", "method.low_rank.dropout=0.05"): set(),
}
"""Published behaviours and the checks they fail."""


@pytest.mark.parametrize(("chosen", "broken"), PUBLISHED.items())
def test_published_flaws_are_caught(chosen: tuple[str, str], broken: set[str]):
    """Pooling over the sequence also changes cached decoding, but not always by more than rounding."""
    name, overrides = chosen
    components = method(name, *overrides.split())
    assert broken <= failed(audited(components)) <= breaks(components) | broken
    assert broken or not breaks(components)


@dataclass(kw_only=True, slots=True)
class BiasConfig(ComponentConfig):
    """A bias after the final norm, computed from (bias, normed states, whether the model is training)."""

    make: Callable[[nn.Parameter, Tensor, PreTrainedModel], Tensor]
    off_by: int = 0

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        yield from ()

    def build(self, context: BuildContext) -> "Bias":
        return Bias(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        return CONTEXT * hidden_size(context.model) + self.off_by


class Bias(Component):
    """One row per index in the forward pass, [CONTEXT, D]."""

    def __init__(self, config: BiasConfig, context: BuildContext) -> None:
        super().__init__()
        self.rows = context.parameter("bias.rows", (CONTEXT, hidden_size(context.model)), zeros)
        self._make = config.make

    def attach(self, model: PreTrainedModel) -> None:
        def after_norm(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + self._make(self.rows, output, model)

        self._hook = final_norm(model).register_forward_hook(after_norm)

    def detach(self, model: PreTrainedModel) -> None:
        self._hook.remove()


def same_everywhere(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    return rows.sum(0)


def place_in_the_pass(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    """Counts from 0 in every forward pass, like the published landmarks: wrong from the second cached token on."""
    return rows[: h.shape[1]]


def next_token(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    return rows.sum(0) * F.pad(h[:, 1:], (0, 0, 0, 1))


def batch_mates(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    return rows.sum(0) * h.mean(0, keepdim=True)


def always_dropping(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    return F.dropout(rows.sum(0) + 0 * h, 0.5, training=True)


def no_rows(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    return h.new_zeros(())


def shifted(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    return rows.sum(0) + 1


def not_a_number(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    return rows.sum(0) / rows.square().sum().detach()  # 0 / 0 at step 0


def thawing(rows: Tensor, h: Tensor, model: PreTrainedModel) -> Tensor:
    weight = next(model.parameters())
    return rows.sum(0) + 0 * weight.requires_grad_(True).sum()


@pytest.mark.parametrize(
    ("make", "broken"),
    [
        (same_everywhere, set()),
        (place_in_the_pass, {"cached_decoding", "padding"}),
        (next_token, {"causality", "cached_decoding"}),
        (batch_mates, {"padding"}),
        (no_rows, {"dead_tensors", "unmoved_tensors"}),
        (shifted, {"identity_at_start"}),
        (not_a_number, {"identity_at_start", "deterministic_evaluation"}),  # a NaN equals nothing
        (thawing, {"frozen_tensors"}),
    ],
)
def test_each_check_can_fail(make: Callable[..., Tensor], broken: set[str]):
    findings = audited(method("lora") | {"bias": BiasConfig(make=make)})
    assert failed(findings) == broken


def test_dropout_in_evaluation_is_caught():
    assert "deterministic_evaluation" in failed(audited(method("lora") | {"bias": BiasConfig(make=always_dropping)}))


def test_a_count_off_the_formula_is_caught():
    findings = audited(method("lora") | {"bias": BiasConfig(make=same_everywhere, off_by=1)})
    assert failed(findings) == {"parameter_count"}
    assert findings["parameter_count"].names == ("bias (1,536, not 1,537)",)


def test_a_tensor_that_is_not_in_the_optimizer_is_caught():
    """Its gradient is fine, so the audit before training cannot catch it."""
    audit, model = started(method("dora"))
    audit.before_training()
    name = next(name for name in trained(model) if name.endswith("magnitude"))
    learn(model, left_out=name)
    audit.after_training()
    assert audit.failed == ["unmoved_tensors"]
    assert audit.findings[-2].names == (name,)


def test_boundaries_that_left_the_window_are_caught():
    """They may in training: then all positions share a bucket, and the component no longer adapts to the position."""
    audit, model = started(method("landmark_learnable"))
    audit.before_training()
    assert audit.failed == []
    learn(model)
    boundaries = next(tensor for name, tensor in trained(model).items() if name.endswith("beta"))
    with torch.no_grad():
        boundaries.add_(2.0)
    audit.after_training()
    assert audit.failed == ["bucket_occupancy"]
    count = len(boundaries) + 1
    assert audit.findings[-1].detail.startswith(f"after training, landmark: 1 of {count} buckets hold a position of")


@pytest.mark.parametrize("name", ["hylorada_dora_learnable", "full"])
def test_the_audit_leaves_no_trace(name: str):
    audit, model = started(method(name))
    model.train()
    before, start, modes = snapshot(model), values(model), [module.training for module in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    audit.before_training()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, start[key]) for key, tensor in trained(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_short_window_is_enough():
    """The smallest context that a run may have."""
    base = tiny("gpt2")
    ids = IDS[:1, :4]
    audit = Audit(adapt(base, method("hylorada")), ids, untouched_logits(tiny("gpt2"), ids), seed=0)
    audit.before_training()
    assert audit.failed == []
