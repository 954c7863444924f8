"""Initializations of the `peft` library's LoRA that move a part of each layer's weight into the trainable A and B.

    y = (W - s B0 A0) x + s B A x        A, B start at A0 [r, in], B0 [out, r]

    PiSSA    W = U S V^T    B0 = U_r (S_r / s)^(1/2), A0 = (S_r / s)^(1/2) V_r^T    arXiv 2404.02948, section 3
    OLoRA    W = Q R        B0 = Q_r, A0 = R_r                                       arXiv 2406.01775, section 3

_r: the r largest singular values, the first r columns of Q, the first r rows of R. At step 0 the layer is W up to
rounding, whatever A0 and B0 are.

The library changes the weights of the layers it is given. Here these are copies: the base model's own layers are set
aside unchanged while the adapter is attached and restored on detach. The part subtracted from W follows from A0 and B0,
which the library computes from W alone when the layers are built; they are stored as the adapter's start
(hylo/adapters/start.py). The layer is equivalent to a LoRA of twice the rank on W: [B, -B0] [A; A0].
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.models.architecture import layer_shape, weight_OI
from hylo.models.targets import linear_layers


@contextmanager
def copied_layers(model: PreTrainedModel) -> Iterator[None]:
    """Replaces all linear layers by copies with their own weights for the duration of the block."""
    originals = linear_layers(model)
    for path, module in originals.items():
        bias: Any = module.bias
        twin = copy.deepcopy(module, {} if bias is None else {id(bias): bias})
        twin.weight.requires_grad_(False)
        model.set_submodule(path, twin)
    try:
        yield
    finally:
        for path, module in originals.items():
            model.set_submodule(path, module)


def check_ranks(layers: Mapping[str, Any], adapter: str, model: PreTrainedModel) -> None:
    """Check that the rank is possible for every weight.

    Raises:
        ValueError: it is larger than the smaller side of a layer's weight.
    """
    for path, layer in layers.items():
        limit = min(layer_shape(model.get_submodule(path)))
        if (rank := layer.r[adapter]) > limit:
            raise ValueError(f"r is {rank}, but the smaller side of the weight of {path} is {limit}")


class TakenPart:
    """The part s B0 A0 subtracted from a layer's weight; A0 and B0 are the initial A and B.

    Args:
        layer: the library's newly initialized layer, on a copy of the base model's.
        adapter: the library's name for the adapter.
        original: the base model's layer.
    """

    def __init__(self, layer: Any, adapter: str, original: nn.Module) -> None:
        self.A, self.B = (part[adapter].weight.detach().clone() for part in (layer.lora_A, layer.lora_B))
        self.scale: float = layer.scaling[adapter]
        self._copy: Any = layer.get_base_layer()
        self.take_away(original)

    @torch.no_grad()
    def take_away(self, original: nn.Module) -> None:
        """Set the copy's weight to W - s B0 A0, where W is the original's weight."""
        W_OI = weight_OI(original)
        A, B = self.A.to(W_OI.device), self.B.to(W_OI.device)
        weight_OI(self._copy).copy_(W_OI.float() - self.scale * (B @ A))

    def replace(self, A: Tensor, B: Tensor, original: nn.Module) -> None:
        """Subtract another part instead."""
        self.A, self.B = A.float(), B.float()
        self.take_away(original)

    @torch.no_grad()
    def give_back(self, original: nn.Module) -> None:
        """Copy the weight, after an update was merged into it, to the original."""
        weight_OI(original).copy_(weight_OI(self._copy))

    def follow(self, original: nn.Module) -> None:
        """Move the original, which was set aside, to the copy's device and dtype."""
        original.to(self._copy.weight.device, self._copy.weight.dtype)


def start_of(parts: Mapping[str, TakenPart]) -> dict[str, Tensor]:
    """A0 and B0 of all parts by name; `parts` is keyed by layer path."""
    return {f"{path}.{name}": getattr(part, name) for path, part in parts.items() for name in ("A", "B")}
