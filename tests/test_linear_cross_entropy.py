"""Cross-entropy without logits against torch's, and the supported output heads."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters import ARCHITECTURES, adapt, method, perturb, tiny, tokens
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel

import hylo.kernels.linear_cross_entropy as fused
from hylo.kernels.head import OutputHead, token_losses
from hylo.kernels.linear_cross_entropy import linear_cross_entropy


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both dimensions, the last ones not full."""
    monkeypatch.setattr(fused, "TOKENS", 5)
    monkeypatch.setattr(fused, "WORDS", 7)


def made(dtype: torch.dtype, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [2, 9, 6], a head of 31 words with bias, targets of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 9, 6, generator=generator, dtype=dtype) * spread
    weight, bias = (torch.randn(31, *shape, generator=generator, dtype=dtype) for shape in ((6,), ()))
    targets = torch.randint(31, (2, 9), generator=generator)
    targets[0, 3:6] = -100
    return h.requires_grad_(), weight, bias, targets


def reference(h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None) -> Tensor:
    logits = F.linear(h, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


@pytest.mark.parametrize("spread", [1.0, 60.0])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_torchs(dtype: torch.dtype, biased: bool, softcap: float | None, spread: float):
    """Including logits in the hundreds: without the running maximum, exponentials would overflow float32."""
    h, weight, bias, targets = made(dtype, spread)
    own_bias = bias if biased else None
    nll = linear_cross_entropy(h, weight, targets, bias=own_bias, softcap=softcap)
    expected = reference(h, weight, own_bias, targets, softcap)
    assert nll.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(nll, expected, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(nll.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    (ours,), (theirs,) = torch.autograd.grad(nll, h, upstream), torch.autograd.grad(expected, h, upstream)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=10 * tolerance)


def test_gradcheck():
    h, weight, bias, targets = made(torch.float64)
    assert torch.autograd.gradcheck(lambda x: linear_cross_entropy(x, weight, targets, bias=bias, softcap=4.0), h)


def test_without_a_gradient_none_is_formed(monkeypatch: pytest.MonkeyPatch):
    """Evaluation needs half of the matrix products: softmax times W is only for the gradient."""
    h, weight, _, targets = made(torch.float32)
    monkeypatch.setattr(fused, "_added", None)
    with torch.no_grad():
        nll = linear_cross_entropy(h, weight, targets)
    torch.testing.assert_close(nll, reference(h, weight, None, targets, None), rtol=1e-5, atol=1e-5)


def test_nothing_but_ignored_targets():
    h, weight, _, targets = made(torch.float32)
    nll = linear_cross_entropy(h, weight, torch.full_like(targets, -100))
    nll.sum().backward()
    assert not nll.any()
    assert h.grad is not None
    assert not h.grad.any()


def test_logits_of_all_tokens_are_never_made():
    """The largest tensor saved for the backward pass has the size of h, whatever the vocabulary."""
    h, weight, _, targets = made(torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        linear_cross_entropy(h, weight, targets)
    assert kept
    assert max(kept) <= h.numel()


def test_a_trained_head_is_refused():
    h, weight, _, targets = made(torch.float32)
    with pytest.raises(ValueError, match="freeze its weight"):
        linear_cross_entropy(h, weight.requires_grad_(), targets)


# --- heads of models ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_of_a_model_are_those_of_its_logits(architecture: str):
    """Tied and untied heads; component hooks see the same forward pass as for logits."""
    model = adapt(tiny(architecture), method("landmark_pa"))
    perturb(model)
    ids, targets = tokens(2, 12), tokens(2, 12, seed=4)
    assert model.losses_without_logits
    expected = token_losses(model(input_ids=ids).logits, targets)
    torch.testing.assert_close(model(input_ids=ids, targets=targets), expected, rtol=1e-4, atol=1e-4)


def softcapped(cap: float | None) -> PreTrainedModel:
    """A tiny Gemma 2 whose logits reach the nonlinear range of its softcap."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = Gemma2Config(**sizes, num_key_value_heads=2, head_dim=8, vocab_size=97, final_logit_softcapping=cap)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.requires_grad_(False)


def test_a_softcap_that_small_logits_hardly_show_is_honoured():
    """Judged by its logits alone, the head would pass for one without a softcap."""
    head = OutputHead(softcapped(1000.0))
    assert head.declined is None
    assert head._softcap == 1000.0


def test_a_softcapped_head_is_honoured():
    model = softcapped(2.0)
    head, ids, targets = OutputHead(model), tokens(2, 12), tokens(2, 12, seed=4)
    assert head.declined is None
    logits = model(input_ids=ids).logits
    assert logits.abs().max() > 1.5, "the softcap bends these logits"
    torch.testing.assert_close(head.losses(targets, input_ids=ids), token_losses(logits, targets), rtol=1e-4, atol=1e-4)


def test_a_head_whose_logits_are_changed_otherwise_is_declined(monkeypatch: pytest.MonkeyPatch):
    base = tiny("llama").requires_grad_(False)
    own = type(base).forward

    def scaled(self: nn.Module, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(type(base), "forward", scaled)
    head, ids, targets = OutputHead(base), tokens(2, 12), tokens(2, 12, seed=4)
    assert head.declined == "LlamaForCausalLM changes its logits after the output head"
    torch.testing.assert_close(head.losses(targets, input_ids=ids), token_losses(base(input_ids=ids).logits, targets))


def test_a_head_that_is_trained_gets_its_gradient():
    """Full fine-tuning: the loss is computed from logits."""
    model = adapt(tiny("qwen2"), method("full"))
    model(input_ids=tokens(2, 12), targets=tokens(2, 12, seed=4)).sum().backward()
    gradient = model.base.lm_head.weight.grad
    assert gradient is not None
    assert gradient.any()
