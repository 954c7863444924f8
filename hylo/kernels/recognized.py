"""Which modules of a model a fused forward may replace: by their structure, and by a trial on random input."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hylo.core.devices import trial

_FFN = ("gate_proj", "up_proj", "down_proj", "act_fn")
_EPSILONS = ("variance_epsilon", "eps", "norm_eps")


def own(module: nn.Module, *args: Any) -> Any:
    """What the module's class computes."""
    return type(module).forward(module, *args)


def same(
    modules: Sequence[nn.Module], like: Callable[[Any], int | None], fused: Callable[..., Tensor]
) -> Iterator[nn.Module]:
    """The modules whose class computes what the fused forward does.

    Args:
        modules: the candidates.
        like: returns the input width of a module with the right structure, else None.
        fused: the fused forward.
    """
    agreed: dict[type, bool] = {}
    for module in modules:
        width = like(module)
        if width is None:
            continue
        if type(module) not in agreed:
            agreed[type(module)] = _agree(module, fused, width)
        if agreed[type(module)]:
            yield module


@torch.no_grad()
def _agree(module: nn.Module, fused: Callable[..., Tensor], width: int) -> bool:
    weight = next(module.parameters())
    assert not weight.requires_grad, "a trained module keeps its own forward, so there is nothing to try"
    x = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0)).to(weight.device)
    x = x.to(weight.dtype) if weight.is_floating_point() else x  # packed weights take any
    # Under autocast a norm held in float32 gets narrow input, which shows where it rounds.
    inputs = [x, x.bfloat16()] if norm_like(module) else [x]
    with trial():
        return all(_close(own(module, each), fused(module, each)) for each in inputs)
    return False


def _close(y: Tensor, other: Tensor) -> bool:
    """To less than a rounding of a narrow type: one that is made earlier or later is another function."""
    return y.dtype == other.dtype and torch.allclose(y, other, rtol=1e-3, atol=1e-4 * float(y.abs().max()))


def norm_like(module: Any) -> int | None:
    """The width of a module that has the parts of a root-mean-square norm; None: it does not."""
    weight = getattr(module, "weight", None)
    is_norm = "norm" in type(module).__name__.lower() and not isinstance(module, nn.LayerNorm)
    if (
        not is_norm
        or not isinstance(weight, nn.Parameter)
        or weight.dim() != 1
        or getattr(module, "bias", None) is not None
    ):
        return None
    return len(weight) if epsilon(module) is not None else None


def epsilon(norm: Any) -> Any:
    """The number that a norm adds to the mean square; None: it has none of the usual names."""
    return next((value for name in _EPSILONS if (value := getattr(norm, name, None)) is not None), None)


def ffn_like(module: Any) -> int | None:
    """The input width of a module that has the parts of a gated FFN; None: it does not."""
    parts = [getattr(module, name, None) for name in _FFN]
    if not all(isinstance(part, nn.Module) for part in parts) or len(list(module.children())) != len(_FFN):
        return None
    return parts[0].in_features if isinstance(parts[0], nn.Linear) else None
