"""Trained norms: a change of the scale, and of the shift if there is one, of every norm of the decoder.

    y = norm(x) (g + D_g) + (b + D_b)        D_g, D_b [d], zero at step 0

With the embeddings, what LongLoRA trains beside LoRA to extend the context ("LoRA+" in arXiv 2309.12307, section 3.3).
The parameter count is the number of scales and shifts. Here D is trained rather than g and b themselves, as described
in hylo/adapters/deltas.py. Merged: g' = g + D_g, b' = b + D_b.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from hylo.adapters.deltas import DeltasConfig
from hylo.core.registry import register
from hylo.models.architecture import decoder


@register("component", "norms")
@dataclass(kw_only=True, slots=True)
class NormsConfig(DeltasConfig):
    """No settings except the learning-rate multiplier."""

    what: ClassVar[str] = "norms that have a scale"

    def tensors(self, model: PreTrainedModel) -> dict[str, list[str]]:
        """Scale and shift of every norm in the decoder: modules whose class says that they are norms and that have no
        other parts."""
        inside = {id(module) for module in decoder(model).modules()}
        norms = {path: module for path, module in model.named_modules() if id(module) in inside and _is_norm(module)}
        return {f"{path}.{name}": [path] for path, norm in norms.items() for name, _ in norm.named_parameters()}


def _is_norm(module: nn.Module) -> bool:
    vectors = all(parameter.dim() == 1 for parameter in module.parameters())
    return "norm" in type(module).__name__.lower() and not [*module.children()] and vectors
