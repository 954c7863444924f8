"""Trained norms: a change of the scale, and of the shift if there is one, of every norm of the decoder.

    y = norm(x) (g + D_g) + (b + D_b)        D_g, D_b [d], zero at step 0

With the embeddings, what LongLoRA trains beside LoRA to extend the context ("LoRA+" in arXiv 2309.12307, section 3.3).
The parameter count is the number of scales and shifts. Here D is trained rather than g and b themselves, as described
in hylo/adapters/deltas.py. Merged: g' = g + D_g, b' = b + D_b.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hylo.adapters.component import BuildContext, ComponentConfig
from hylo.adapters.deltas import Deltas
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.models.architecture import decoder


@register("component", "norms")
@dataclass(kw_only=True, slots=True)
class NormsConfig(ComponentConfig):
    """No settings except the learning-rate multiplier."""

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        if not norm_tensors(context.model):
            allowed = f"a model whose norms have a scale; {type(context.model).__name__} has none"
            yield problem(key, "norms", allowed, f"{key}=null")

    def build(self, context: BuildContext) -> Deltas:
        return Deltas(norm_tensors(context.model), context)

    def parameter_count(self, context: BuildContext) -> int:
        return sum(context.model.get_parameter(path).numel() for path in norm_tensors(context.model))


def norm_tensors(model: PreTrainedModel) -> dict[str, list[str]]:
    """Scale and shift of every norm in the decoder by path, each with the path of its norm: modules whose class says
    that they are norms and that have no other parts."""
    inside = {id(module) for module in decoder(model).modules()}
    norms = {path: module for path, module in model.named_modules() if id(module) in inside and _is_norm(module)}
    return {f"{path}.{name}": [path] for path, norm in norms.items() for name, _ in norm.named_parameters()}


def _is_norm(module: nn.Module) -> bool:
    vectors = all(parameter.dim() == 1 for parameter in module.parameters())
    return "norm" in type(module).__name__.lower() and not [*module.children()] and vectors
