"""Starts of the `peft` library's LoRA that move a part of each layer's weight into A and B, where it is trained.

    y = (W - s B0 A0) x + s B A x        A, B start at A0 [r, in], B0 [out, r]

    PiSSA    W = U S V^T    B0 = U_r (S_r / s)^(1/2), A0 = (S_r / s)^(1/2) V_r^T    arXiv 2404.02948, section 3
    OLoRA    W = Q R        B0 = Q_r, A0 = R_r                                       arXiv 2406.01775, section 3

_r: the r largest singular values, the first r columns of Q, the first r rows of R. At step 0 the layer is W up to
rounding, whatever A0 and B0 are.

The library changes the weights of the layers that it is given. Here these are copies: the base model's own layers stand
aside while the adapter is attached, untouched, and come back when it leaves. What W lacks follows from A0 and B0,
which are computed from W alone, by the library, when the layers are made. They are an adapter's start
(hylo/adapters/start.py). The function is also that of a LoRA of twice the rank on W: [B, -B0] [A; A0].
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.models.architecture import ALL_LINEAR, layer_shape, target_layers, weight_OI


@contextmanager
def copied_layers(model: PreTrainedModel) -> Iterator[None]:
    """Copies of all linear layers, with weights of their own, stand in for them in the block."""
    originals = target_layers(model, [ALL_LINEAR])
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
    """Refuse a rank that a weight cannot have.

    Raises:
        ValueError: it is larger than the smaller side of a layer's weight.
    """
    for path, layer in layers.items():
        limit = min(layer_shape(model.get_submodule(path)))
        if (rank := layer.r[adapter]) > limit:
            raise ValueError(f"r is {rank} and the smaller side of the weight of {path} {limit}")


class TakenPart:
    """What a layer's weight lacks: s B0 A0, which A and B start at.

    Arguments:
        layer: the library's layer as it starts, on a copy of the base model's.
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
        """Leave the copy with W - s B0 A0, W being the original's weight."""
        W_OI = weight_OI(original)
        A, B = self.A.to(W_OI.device), self.B.to(W_OI.device)
        weight_OI(self._copy).copy_(W_OI.float() - self.scale * (B @ A))

    def replace(self, A: Tensor, B: Tensor, original: nn.Module) -> None:
        """Take away another part."""
        self.A, self.B = A.float(), B.float()
        self.take_away(original)

    @torch.no_grad()
    def give_back(self, original: nn.Module) -> None:
        """Write the copy's weight, into which an update was merged, into the original."""
        weight_OI(original).copy_(weight_OI(self._copy))

    def follow(self, original: nn.Module) -> None:
        """Move the original, which stood aside, to where the copy is, in its type."""
        original.to(self._copy.weight.device, self._copy.weight.dtype)


def start_of(parts: Mapping[str, TakenPart]) -> dict[str, Tensor]:
    """A0 and B0 by name, of parts by the path of their layers."""
    return {f"{path}.{name}": getattr(part, name) for path, part in parts.items() for name in ("A", "B")}
