"""Kernels of Liger (arXiv 2410.10989), a library of Triton kernels, for norms, gated FFNs and the loss on a GPU.

Candidates beside our own, chosen where a measurement prefers them (hylo/kernels/fastest.py). The package is the extra
`liger` in pyproject.toml; without it, or on a CPU, it is no candidate.

Shapes: D hidden size, F inner width, V words of the vocabulary.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from hylo.core.devices import compute_dtype

_GATED = {
    "SiLU": "liger_swiglu",
    "SiLUActivation": "liger_swiglu",
    "GELUTanh": "liger_geglu",
    "NewGELUActivation": "liger_geglu",
}
"""The library's function by the class of the activation. It has GELU by tanh alone."""


def usable(device: torch.device) -> bool:
    """Whether the kernels can run: the package is installed, and the device is a GPU."""
    return device.type == "cuda" and find_spec("liger_kernel") is not None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, *, shift: float) -> Tensor:
    """y [..., D] for x [..., D] and the scale `shift + weight_D`, with the rounding of Llama's norms or, with a shift,
    of Gemma's."""
    rounding = "gemma" if shift else "llama"
    # Not in place: the gradient that it would overwrite may be needed elsewhere, such as by a residual connection.
    return _functions().liger_rms_norm(x, weight_D.detach(), eps, shift, rounding, False)


def gated(gate: Tensor, up: Tensor, activation: nn.Module) -> Tensor:
    """act(gate) * up, [..., F].

    Raises:
        KeyError: there is no kernel for the activation.
    """
    return getattr(_functions(), _GATED[type(activation).__name__])(gate, up)


def linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """As hylo.kernels.linear_cross_entropy: the losses [...] of targets [...] for h [..., D] and weight [V, D].

    The backward pass computes the logits again.
    """
    h = h.to(compute_dtype(h)).flatten(0, -2)
    losses = _functions().liger_fused_linear_cross_entropy(
        h, weight, targets.flatten(), bias=bias, reduction="none", softcap=softcap
    )
    return losses.view(targets.shape)


@cache
def _functions() -> Any:
    """The library's functions. Imported late: that takes seconds."""
    return import_module("liger_kernel.transformers.functional")
