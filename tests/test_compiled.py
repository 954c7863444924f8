"""torch.compile as a switch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters import adapt, logits, method, perturb, tiny, tokens
from launch import composed

import hylo.training.config
from hylo.kernels.compiled import can_compile, compiled_layers
from hylo.training.config import kernel_problems


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's own compiler, seen in 2.13 (November 2026)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the same
def test_compiled_layers_are_the_plain_ones():
    """Losses and gradients agree; afterwards the model is restored, and no layer stays compiled."""
    base = tiny("llama")
    model = adapt(base, method("rslora_dora"), fused=False)
    perturb(model)
    expected = model(input_ids=tokens(2, 12), targets=tokens(2, 12, seed=5))
    expected.sum().backward()
    gradients = {
        name: tensor.grad.clone() for name, tensor in model.adapter_state_dict().items() if tensor.grad is not None
    }
    model.zero_grad()
    with compiled_layers(base):
        losses = model(input_ids=tokens(2, 12), targets=tokens(2, 12, seed=5))
        losses.sum().backward()
        assert all(layer._compiled_call_impl is not None for layer in base.model.layers)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.adapter_state_dict()[name].grad, gradient, rtol=1e-3, atol=1e-4)
    assert all(layer._compiled_call_impl is None for layer in base.model.layers)
    assert torch.isfinite(logits(model, tokens(1, 8))).all()


def test_calls_with_a_cache_are_not_compiled(monkeypatch: pytest.MonkeyPatch):
    """Each layer's cache would be a specialization of its own, and after eight of them torch stops compiling: an audit
    before training was enough to get there."""
    compiled_calls: list[int] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (compiled_calls.append(1), function(*args, **kwargs))[1]

    base, ids = tiny("llama"), tokens(2, 12)
    expected = base(input_ids=ids, use_cache=False).logits
    monkeypatch.setattr("hylo.kernels.compiled.torch.compile", counting)
    with compiled_layers(base):
        cached = base(input_ids=ids, use_cache=True).logits
        assert not compiled_calls
        uncached = base(input_ids=ids, use_cache=False).logits
        assert len(compiled_calls) == len(base.model.layers)
    torch.testing.assert_close(cached, expected)
    torch.testing.assert_close(uncached, expected)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    config = composed("model=tiny_llama", "trainer.kernels=compiled").trainer
    monkeypatch.setattr(hylo.training.config, "can_compile", lambda: False)
    (text,) = kernel_problems(config)
    assert "trainer.kernels=fused" in text
    assert not list(kernel_problems(composed("model=tiny_llama").trainer))
