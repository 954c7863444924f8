"""The fused functions against plain formulas: values, gradients, and supported models."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters import TRAINED, adapt, matrix, method, perturb, tiny, tokens, trained
from torch import Tensor, nn

from benchmarks.families.tiny import tiny_model
from hylo.kernels.forwards import FusedForwards, SharedInput
from hylo.kernels.gated_ffn import gated_ffn
from hylo.kernels.product import add_product, product, product_added, summed_product
from hylo.kernels.projection import Projection, Update, project
from hylo.kernels.rms_norm import rms_norm

FUSED = ["gemma", "llama", "mistral", "qwen2"]
"""Architectures with RMS norms and gated FFNs."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def leaf(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return random(*shape, seed=seed, dtype=dtype).requires_grad_()


# --- products ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_products(dtype: torch.dtype, transposed: bool):
    """oneDNN in float32, torch.mm in float64; a transposed view as weight (Conv1D) is read without copying."""
    x, bias = random(7, 5, seed=0).to(dtype), random(3, seed=1).to(dtype)
    W = (random(5, 3, seed=2).T if transposed else random(3, 5, seed=2)).to(dtype)
    total = random(7, 3, seed=3).to(dtype)
    expected = (x.double() @ W.double().T, total.double().clone())
    close: Any = torch.testing.assert_close
    close(product(x, W).double(), expected[0], rtol=1e-5, atol=1e-5)
    close(product(x, W, bias).double(), expected[0] + bias.double(), rtol=1e-5, atol=1e-5)
    close(product_added(x, W, total.clone()).double(), sum(expected), rtol=1e-5, atol=1e-5)
    close(summed_product(x, total).double(), x.double().T @ expected[1], rtol=1e-5, atol=1e-5)
    add_product(total, x, W)
    close(total.double(), sum(expected), rtol=1e-5, atol=1e-5)


# --- projections ---


def plain(projection: Projection, x: Tensor) -> Tensor:
    """The formula in the module's docstring, differentiated by torch's autograd."""
    weight: Any = projection.weight
    y, update = x @ weight.T, projection.update
    if update is not None:
        z = x @ update.A.T * update.scale
        z = z if update.gate is None else z * update.gate.unsqueeze(-1)
        y = y + z @ update.B.T
        y = y if update.ratio is None else y * update.ratio
    return y if projection.bias is None else y + projection.bias


def projection(
    fan_in: int, fan_out: int, seed: int, *, rank: int = 3, gate: Tensor | None = None, ratio: bool = False, bias: bool
) -> Projection:
    """A float64 projection with every tensor perturbed; the weight is a transposed view for odd seeds."""
    weight = random(fan_in, fan_out, seed=seed).T if seed % 2 else random(fan_out, fan_in, seed=seed)
    update = Update(
        A=leaf(rank, fan_in, seed=seed + 100),
        B=leaf(fan_out, rank, seed=seed + 200),
        scale=1.7,
        gate=gate,
        ratio=leaf(fan_out, seed=seed + 300) if ratio else None,
    )
    return Projection(weight=weight, bias=random(fan_out, seed=seed + 400) if bias else None, update=update)


def leaves(*projections: Projection) -> list[Tensor]:
    updates = [each.update for each in projections if each.update is not None]
    found = [tensor for u in updates for tensor in (u.A, u.B, u.gate, u.ratio) if tensor is not None]
    return list({id(tensor): tensor for tensor in found}.values())


def assert_same_function(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients for a random upstream gradient, in float64."""
    upstream = [random(*each.shape, seed=9 + index) for index, each in enumerate(expected)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(found, inputs, upstream)
    theirs = torch.autograd.grad(expected, inputs, upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize("gated", [None, (1, 4), (2, 4)])
def test_siblings_are_their_formulas(ratio: bool, gated: tuple[int, int] | None):
    """Different widths and ranks, one without update, one gate for two, to detect wrong slices of the ranks."""
    gate = None if gated is None else leaf(*gated, seed=50)
    siblings = [
        projection(6, 7, seed=0, gate=gate, ratio=ratio, bias=True),
        Projection(weight=random(5, 6, seed=11)),
        projection(6, 4, seed=1, rank=2, gate=gate, ratio=ratio, bias=False),
    ]
    x = leaf(2, 4, 6, seed=60)
    found, expected = project(siblings, x), tuple(plain(each, x) for each in siblings)
    assert_same_function(found, expected, [x, *leaves(*siblings)])


def test_projection_gradcheck():
    """Against finite differences, independent of the plain formula."""
    gate = leaf(1, 4, seed=50)
    own = projection(6, 5, seed=3, gate=gate, ratio=True, bias=True)
    inputs = (leaf(2, 4, 6, seed=60), *leaves(own))

    def outputs(x: Tensor, A: Tensor, B: Tensor, gate: Tensor, ratio: Tensor) -> Tensor:
        update = Update(A=A, B=B, scale=1.7, gate=gate, ratio=ratio)
        return project([Projection(weight=own.weight, bias=own.bias, update=update)], x)[0]

    assert torch.autograd.gradcheck(outputs, inputs)


def test_no_gradient_is_formed_for_an_input_that_needs_none():
    """The first layer's input comes from frozen embeddings."""
    own = projection(6, 5, seed=3, bias=False)
    y = project([own], random(2, 4, 6, seed=1))[0]
    y.sum().backward()
    assert own.update is not None
    assert own.update.A.grad is not None
    weight: Any = own.weight
    assert weight.grad is None


@pytest.mark.parametrize("activation", [F.silu, F.gelu, F.relu, nn.Identity()])
@pytest.mark.parametrize("ratio", [False, True])
def test_gated_ffn_is_its_formula(activation: Any, ratio: bool):
    """An activation may return its own input, which must not be overwritten: it is kept for the backward pass."""
    gate = leaf(1, 4, seed=50)
    gate_proj, up_proj, down_proj = (
        projection(6, 9, seed=0, gate=gate, ratio=ratio, bias=True),
        projection(6, 9, seed=1, gate=gate, ratio=ratio, bias=False),
        projection(9, 6, seed=2, gate=gate, ratio=ratio, bias=True),
    )
    x = leaf(2, 4, 6, seed=60)
    expected = plain(down_proj, activation(plain(gate_proj, x)) * plain(up_proj, x))
    found = gated_ffn(gate_proj, up_proj, down_proj, activation, x)
    assert_same_function((found,), (expected,), [x, *leaves(gate_proj, up_proj, down_proj)])


def test_rms_norm_is_torchs():
    x, weight = leaf(2, 3, 8, seed=0), random(8, seed=1)
    assert_same_function((rms_norm(x, weight, 1e-5),), (F.rms_norm(x, (8,), weight, 1e-5),), [x])


# --- models ---


@matrix()
def test_fused_and_plain_agree(architecture: str, name: str):
    """Losses and all gradients of every method, with padding, for both kernels on the same model."""
    ids, targets = tokens(2, 12), tokens(2, 12, seed=5)
    targets[0, 8:], targets[:, 0] = -100, -100
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    base, results = tiny(architecture), []
    for fused in (False, True):
        model = adapt(base, method(name), fused=fused)
        perturb(model)
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(3)  # for dropout in the published configuration and in peft's networks
            losses = model(input_ids=ids, attention_mask=mask, targets=targets)
        assert losses.shape == targets.shape
        assert (losses[targets == -100] == 0).all()
        if name in TRAINED:
            losses.sum().backward()
        results.append((losses.detach(), {n: t.grad for n, t in trained(model).items() if t.grad is not None}))
        model.zero_grad()
        model.detach()
    (plain_losses, plain_gradients), (losses, gradients) = results
    torch.testing.assert_close(losses, plain_losses, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == plain_gradients.keys()
    largest = max((float(gradient.abs().max()) for gradient in plain_gradients.values()), default=0.0)
    for key, gradient in gradients.items():
        # The gradient of a tensor without effect (a key bias without rotation) is rounding noise.
        scale = max(float(plain_gradients[key].abs().max()), 1e-3 * largest)
        torch.testing.assert_close(gradient, plain_gradients[key], rtol=1e-3, atol=2e-4 * scale, msg=key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", FUSED)
def test_norms_and_ffns_are_recognised(architecture: str, dtype: torch.dtype):
    """Both norms of every layer and the final one; an unrecognised class would silently lose the benefit of fusing."""
    base: Any = tiny(architecture)
    base.to(dtype)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    given = [type(module).__name__ for _, module, _ in FusedForwards(base)._forwards]
    assert sum("Norm" in name for name in given) == 5
    assert sum("MLP" in name for name in given) == 2


FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("family", "held", "dtype"),
    [
        *itertools.product(("gemma", "llama", "flex_olmo"), (FP32, BF16), (BF16,)),
        *itertools.product(("gemma", "llama"), (FP32, FP16), (FP16,)),
    ],
)
def test_a_norm_rounds_when_the_model_does(family: str, held: torch.dtype, dtype: torch.dtype):
    """Gemma (which scales by 1 + w) and FlexOlmo scale before they round, Llama afterwards; in a narrow type these are
    different functions. So are they under autocast, which hands a norm held in float32 narrow input."""
    base: Any = tiny_model(family)
    base.to(held).requires_grad_(False)
    norm = base.model.norm
    width = len(norm.weight)
    norm.weight.copy_(norm.weight + 0.3 * random(width, seed=0))
    (fused,) = (fused for _, module, fused in FusedForwards(base)._forwards if module is norm)
    x = leaf(4, width, seed=1, dtype=dtype)
    own, y = type(norm).forward(norm, x), fused(norm, x)
    assert torch.equal(y, own)
    dy = random(4, width, seed=2, dtype=dtype)
    expected, found = (torch.autograd.grad(each, x, dy)[0].float() for each in (own, y))
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * torch.finfo(dtype).eps * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_that_computes_something_else_keeps_its_forward(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Same attributes, different function: recognised by structure alone, it would be replaced."""
    base: Any = tiny("llama")
    base.to(dtype)
    mlp = type(base.model.layers[0].mlp)
    monkeypatch.setattr(
        mlp, "forward", lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))
    )
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    assert not [module for _, module, _ in FusedForwards(base)._forwards if isinstance(module, mlp)]


def test_a_hook_on_a_linear_layer_runs():
    """Fused siblings and FFNs bypass their layers, but must call a layer that has a hook."""
    base, seen = tiny("llama"), []
    model = adapt(base, method("lora", "method.low_rank.target_modules=[all-linear]"))
    expected = model(input_ids=tokens(1, 8)).logits
    for path in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj"):
        base.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(model(input_ids=tokens(1, 8)).logits, expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2


def test_siblings_share_only_the_same_input():
    """k of a different tensor is computed from that tensor, even if an equal one was seen before."""
    layers = [nn.Linear(4, 3, bias=False).requires_grad_(False), nn.Linear(4, 2, bias=False).requires_grad_(False)]
    group, x = SharedInput(layers), random(1, 4, seed=0, dtype=torch.float32)
    other = random(1, 4, seed=1, dtype=torch.float32)
    first, second = group.output(layers[0], x), group.output(layers[1], other)
    torch.testing.assert_close(first, layers[0](x))
    torch.testing.assert_close(second, layers[1](other))


def test_a_copy_of_a_model_computes_with_its_own_tensors():
    model = adapt(tiny("llama"), method("hylorada"))
    twin = copy.deepcopy(model)
    expected = model(input_ids=tokens(1, 8)).logits.detach()
    perturb(model)
    torch.testing.assert_close(twin(input_ids=tokens(1, 8)).logits, expected, rtol=0, atol=0)


def test_nothing_is_left_behind():
    base = tiny("llama")
    before = {name: set(vars(module)) for name, module in base.named_modules()}
    model = adapt(base, method("hylorada"))
    model(input_ids=tokens(1, 8), targets=tokens(1, 8))
    assert any(set(vars(module)) != before[name] for name, module in base.named_modules() if name in before)
    model.detach()
    assert {name: set(vars(module)) for name, module in base.named_modules()} == before


def test_bfloat16_autocast_keeps_adapters_in_float32():
    """Both kernels under autocast agree within bfloat16 precision; gradients are float32."""
    losses = {}
    for fused in (False, True):
        model = adapt(tiny("llama"), method("hylorada_dora"), fused=fused)
        perturb(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens(2, 12), targets=tokens(2, 12, seed=5))
        loss.mean().backward()
        assert loss.dtype == torch.float32
        assert {t.grad.dtype for t in trained(model).values() if t.grad is not None} == {torch.float32}
        losses[fused] = loss.detach()
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.05)
