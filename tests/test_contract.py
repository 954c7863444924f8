"""The contract of every method in conf/method/ on every architecture: what is trained, saving, detaching.

Methods are found by glob and distinguished only by their configs (`trains_base`, the slots they fill), never by name.
How adapted models read, pad and decode text is covered by test_contract_inference.py.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adapters import (
    ARCHITECTURES,
    CONTEXT,
    EVERY_METHOD_ON,
    METHODS,
    ON_EVERY_ARCHITECTURE,
    TRAINED,
    adapt,
    assert_same_state,
    causal_loss,
    declared_dead,
    logits,
    matrix,
    method,
    perturb,
    perturbed,
    snapshot,
    tiny,
    tokens,
    trained,
    trains_base,
    values,
)
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.component import AtStart
from hylo.adapters.model import AdaptedModel, adapted
from hylo.adapters.saved import SETTINGS, WEIGHTS, read_settings
from hylo.training.config import TrainerConfig
from hylo.training.loop import prepare_for_training
from hylo.training.optimizers.adamw import AdamWConfig
from hylo.training.step import make_optimizer

IDS = tokens(2, 12)
NEAR_KL = 1e-5
"""Bound on the KL divergence from the base model, in nats, if a component starts `near` it."""


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(architecture: str) -> PreTrainedModel:
    return tiny(architecture)


def _backward(model: AdaptedModel) -> None:
    causal_loss(model(input_ids=IDS).logits, IDS).backward()


def _kl(reference: Tensor, other: Tensor) -> float:
    """Largest KL divergence over positions, in nats."""
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).max())


def test_every_method_is_tried_on_three_architectures_by_ci():
    kept = [each for each in matrix().args[1] if "exhaustive" not in {mark.name for mark in each.marks}]
    counts = Counter(name for _, name in (each.values for each in kept))
    assert counts == {name: len(ARCHITECTURES) if name in ON_EVERY_ARCHITECTURE else 3 for name in METHODS}
    assert {each.values[0] for each in kept if each.marks} == {*ARCHITECTURES} - {*EVERY_METHOD_ON}


@matrix()
def test_trainable_set_is_what_is_declared(base: PreTrainedModel, name: str):
    own = {id(parameter) for parameter in base.parameters()}
    model = adapt(base, method(name))
    declared = {id(tensor) for tensor in trained(model).values()}
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == declared
    assert declared == own if trains_base(method(name)) else not declared & own
    assert model.parameter_counts()["trainable"] == sum(tensor.numel() for tensor in trained(model).values())
    assert all(tensor.dtype == torch.float32 for tensor in trained(model).values())


@matrix(*TRAINED)
def test_gradients_reach_every_declared_tensor_and_no_other(base: PreTrainedModel, name: str):
    """Perturbed, because at step 0 a sound method would fail: LoRA's B is zero and hides A."""
    model = perturbed(base, method(name))
    _backward(model)
    declared = trained(model)
    dead = [name for name, tensor in declared.items() if tensor.grad is None or not tensor.grad.abs().max() > 0]
    assert dead == declared_dead(model)
    ids = {id(tensor) for tensor in declared.values()}
    assert [n for n, p in model.named_parameters() if id(p) not in ids and p.grad is not None] == []


@matrix(*TRAINED)
def test_recomputed_activations_give_the_same_gradients(base: PreTrainedModel, name: str):
    """Gradient checkpointing reruns layers in the backward pass, after the forward pass and its hooks have ended."""
    model = perturbed(base, method(name)).train()
    torch.manual_seed(4)  # GPT-2 has its own dropout
    _backward(model)
    expected = {name: tensor.grad.clone() for name, tensor in trained(model).items() if tensor.grad is not None}
    model.zero_grad()
    prepare_for_training(model, TrainerConfig(gradient_checkpointing=True))
    torch.manual_seed(4)
    _backward(model)
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(trained(model)[name].grad, gradient, rtol=1e-5, atol=1e-6)


@matrix()
def test_identity_at_step_0(base: PreTrainedModel, name: str):
    """Exact, near or neither, as the components declare. Both sides use the same kernels, so they round alike."""
    untuned = adapt(base, {}, fused=not trains_base(method(name)))
    expected = logits(untuned, IDS)
    untuned.detach()
    model = adapt(base, method(name))
    start = logits(model, IDS)
    declared = {config.at_start for config in method(name).values()} | {AtStart.same}
    if declared == {AtStart.same}:
        torch.testing.assert_close(start, expected, rtol=0, atol=1e-6)
    else:
        assert (_kl(expected, start) > NEAR_KL) == (AtStart.apart in declared)
        assert not torch.equal(start, expected)
    perturb(model)
    assert (_kl(expected, logits(model, IDS)) > 100 * NEAR_KL) == (name in TRAINED)


@matrix(*TRAINED)
def test_training_moves_all_that_is_trained_and_leaves_the_base_bit_equal(base: PreTrainedModel, name: str):
    before, expected = snapshot(base), logits(base, IDS)
    frozen = {} if trains_base(method(name)) else dict(base.named_parameters())
    with adapted(base, method(name), context_length=CONTEXT, seed=0) as model:
        optimizer = make_optimizer(model, TrainerConfig(optimizer=AdamWConfig(weight_decay=0.1)))
        optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert sorted(map(id, optimized)) == sorted(map(id, trained(model).values()))
        start, unmoved = values(model), declared_dead(model)
        model.train()
        for _ in range(2):  # the second step reaches tensors hidden by a zero, such as LoRA's A behind B
            optimizer.zero_grad()
            _backward(model)
            optimizer.step()
        assert [key for key, tensor in trained(model).items() if torch.equal(tensor, start[key])] == unmoved
        assert [key for key, parameter in frozen.items() if not torch.equal(parameter, before[key])] == []
    assert_same_state(base.eval(), before)
    assert torch.equal(logits(base, IDS), expected)


@matrix()
def test_detach_leaves_no_trace_and_attaching_again_gives_the_same_logits(base: PreTrainedModel, name: str):
    before, modules, untuned = snapshot(base), _modules(base), logits(base, IDS)
    model = perturbed(base, method(name))
    tuned, tensors = logits(model, IDS), values(model)
    assert model.detach() is base
    assert_same_state(base, before)
    assert _modules(base) == modules
    assert torch.equal(logits(base, IDS), untuned)

    again = adapt(base, method(name), seed=9)
    with torch.no_grad():
        for key, tensor in trained(again).items():
            tensor.copy_(tensors[key])
    assert torch.equal(logits(again, IDS), tuned)


@matrix()
def test_detach_gives_back_what_was_trainable_and_each_module_s_mode(base: PreTrainedModel, name: str):
    """A base model left frozen would silently train nothing. Modes differ by module, to catch a mix-up."""
    base.train().get_input_embeddings().eval()
    chosen = [index % 3 == 0 for index, _ in enumerate(base.parameters())]
    for parameter, trainable in zip(base.parameters(), chosen, strict=True):
        parameter.requires_grad_(trainable)
    modes = [module.training for module in base.modules()]
    for _ in range(2):
        model = adapt(base, method(name))
        model.detach()
        model.detach()  # the second call does nothing
        assert [parameter.requires_grad for parameter in base.parameters()] == chosen
        assert [module.training for module in base.modules()] == modes


def _modules(model: PreTrainedModel) -> dict[str, tuple[type, int]]:
    """Type and number of hooks of every module."""
    return {n: (type(m), len(m._forward_hooks) + len(m._forward_pre_hooks)) for n, m in model.named_modules()}


@matrix()
def test_saved_adapter_gives_bit_equal_logits_on_a_fresh_base(architecture: str, name: str, tmp_path: Path):
    model = perturbed(tiny(architecture), method(name))
    expected = logits(model, IDS)
    model.save(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {WEIGHTS, SETTINGS}

    components, context_length, *_ = read_settings(tmp_path / "adapter")
    assert (components, context_length) == (method(name), CONTEXT)
    fresh = adapt(tiny(architecture), components, seed=9)
    assert torch.equal(logits(fresh, IDS), expected) == (name not in TRAINED)
    fresh.load(tmp_path / "adapter")
    assert torch.equal(logits(fresh, IDS), expected)


@matrix()
def test_start_depends_on_the_seed_alone(base: PreTrainedModel, name: str):
    def start(seed: int, global_seed: int) -> dict[str, Tensor]:
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        with adapted(base, method(name), context_length=CONTEXT, seed=seed) as model:
            assert torch.equal(torch.get_rng_state(), state), "building drew from the global generator"
            return values(model)

    first, same, other = start(0, 1), start(0, 2), start(1, 1)
    assert [key for key in first if not torch.equal(first[key], same[key])] == []
    differing = [key for key in first if not torch.equal(first[key], other[key])]
    drawn = any(tensor.min() < tensor.max() for tensor in first.values())  # otherwise all start as constants
    from_weights = trains_base(method(name)) or any(
        getattr(config, "starts_from_weights", False) for config in method(name).values()
    )
    assert bool(differing) == (drawn and not from_weights)


def test_methods_that_share_a_tensor_share_its_first_draw(base: PreTrainedModel):
    """Otherwise a contrast of two methods would partly be one of two draws. With one generator, order would matter."""
    drawn: dict[tuple[str, torch.Size, object], dict[str, Tensor]] = {}
    for name in TRAINED:
        with adapted(base, method(name), context_length=CONTEXT, seed=3) as model:
            for key, tensor in values(model).items():
                config = method(name)[key.partition(".")[0]]
                chosen = [getattr(config, field, None) for field in ("init_a", "initial_scale")]
                initialiser = (*chosen, getattr(config, "kwargs", {}).get("init_lora_weights"))
                drawn.setdefault((key, tensor.shape, initialiser), {})[name] = tensor
    shared = {key: list(tensors.values()) for key, tensors in drawn.items() if len(tensors) > 1}
    assert any(tensors[0].std() > 0 for tensors in shared.values() if tensors[0].numel() > 1)
    assert [key for key, (first, *rest) in shared.items() if not all(torch.equal(first, other) for other in rest)] == []
    # Tensors of one method also get independent draws: two layers of the same shape start differently.
    ones = [tensors[0].flatten() for (key, *_), tensors in shared.items() if key.endswith(".A")]
    assert not any(torch.equal(a, b) for i, a in enumerate(ones) for b in ones[:i])
