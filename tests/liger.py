"""Started by test_liger.py: losses and gradients with Liger's kernels, on a GPU or in Triton's interpreter.

The interpreter runs kernels on the CPU in numpy. It knows neither CUDA's own functions nor plain numbers as arguments,
which are replaced here.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapters import adapt, method, perturb, tiny, tokens, trained

import hylo.kernels.fastest
from hylo.kernels import liger, measured
from hylo.kernels.fastest import LIGER
from hylo.kernels.forwards import LIGER_KINDS, _liger_ffn
from hylo.kernels.linear_cross_entropy import linear_cross_entropy
from hylo.kernels.measured import Choices
from hylo.kernels.recognized import ffn_like, same


def interpret() -> None:
    """Let the interpreter run what Liger's kernels contain."""
    tl, interpreter = import_module("triton.language"), import_module("triton.runtime.interpreter")
    converted = interpreter._implicit_cvt

    def with_floats(value: Any) -> Any:
        if isinstance(value, float):
            return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
        return converted(value)

    def rsqrt(x: Any) -> Any:
        return tl.math.rsqrt(x)  # looked up when called: the interpreter replaces it

    def tanh(x: Any) -> Any:
        return 2 * tl.sigmoid(2 * x) - 1

    setattr(interpreter, "_implicit_cvt", with_floats)  # noqa: B010  a module has no such attribute by its type
    for name, function in (("rms_norm", rsqrt), ("cross_entropy", tanh), ("geglu", tanh)):
        setattr(import_module(f"liger_kernel.ops.{name}"), function.__name__, function)


def differences(architecture: str, name: str, folder: Path) -> dict[str, object]:
    """The kernels that were used, and the largest differences of losses and gradients from the reference kernels."""
    ids, targets = tokens(2, 12).to(device), tokens(2, 12, seed=5).to(device)
    targets[0, :3] = -100
    base: Any = tiny(architecture)
    base.to(device)
    model = adapt(base, method(name))
    perturb(model)
    assert model._fused
    kinds = sorted(model._fused.kinds & {*LIGER_KINDS})
    model.choose_kernels(Choices(folder, device), ids)
    losses, gradients = numbers(model, ids, targets)
    model.detach()
    reference = adapt(base, method(name), fused=False)
    perturb(reference)
    expected, slopes = numbers(reference, ids, targets)
    return {
        "kernels": model.kernels,
        "by Liger": kinds,
        "losses": float((losses - expected).abs().max()),
        "gradients": max(float((gradients[key] - slopes[key]).abs().max()) for key in slopes),
        "size": max(float(each.abs().max()) for each in slopes.values()),
    }


def numbers(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses [B, T], and the gradients of their weighted sum."""
    losses = model(input_ids=ids, targets=targets)
    (losses * torch.linspace(0.1, 1, losses.numel(), device=device).view(losses.shape)).sum().backward()
    return losses.detach(), {key: each.grad for key, each in trained(model).items() if each.grad is not None}


def loss_difference(softcap: float | None, *, biased: bool) -> float:
    """The largest difference from hylo's own losses and their gradient, relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)
    h, weight, bias, upstream = (
        torch.randn(size, generator=generator).to(device) for size in ((3, 7, 40), (90, 40), (90,), (3, 7))
    )
    targets = torch.randint(0, 90, (3, 7), generator=generator).to(device)
    targets[1, 2:4] = -100
    found = []
    for function in (linear_cross_entropy, liger.linear_cross_entropy):
        x = h.clone().requires_grad_()
        losses = function(x, weight, targets, bias=bias if biased else None, softcap=softcap)
        found.append((losses.detach(), *torch.autograd.grad(losses, x, upstream)))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if device.type == "cpu":
    interpret()
    liger.usable = lambda device: True
hylo.kernels.fastest.ENOUGH = 0
measured.chosen = lambda seconds: LIGER if LIGER in seconds else min(seconds)
folder, report = Path(sys.argv[1]), {}
for architecture in ("llama", "qwen2", "gemma", "gpt2"):
    for name in ("lora", "hylorada_dora"):
        report[f"{architecture} {name}"] = differences(architecture, name, folder)
exact: Any = tiny("llama")
exact.requires_grad_(False).to(device)
for layer in exact.model.layers:
    layer.mlp.act_fn = torch.nn.GELU()
report["FFNs with another activation"] = len([*same([layer.mlp for layer in exact.model.layers], ffn_like, _liger_ffn)])
for softcap in (None, 5.0):
    for biased in (False, True):
        report[f"loss {softcap} {biased}"] = loss_difference(softcap, biased=biased)
print(json.dumps(report))
