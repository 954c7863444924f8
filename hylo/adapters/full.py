"""Full fine-tuning: every parameter of the base model is trained. An upper reference for comparisons, not an adapter.

The weights are copied on attach and restored on detach, so the cells of a sweep can share the base model as with any
other method.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from hylo.adapters.component import SEPARATOR, BuildContext, Component, ComponentConfig
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.models.weights import is_quantized


@register("component", "full")
@dataclass(kw_only=True, slots=True)
class FullConfig(ComponentConfig):
    """No settings except the learning-rate multiplier."""

    exclusive: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        model, fix = context.model, "model.dtype=float32 model.quantization=none"
        if any(map(is_quantized, model.modules())):
            yield problem(key, "full", "only on weights that are not quantized, which cannot be trained", fix)
        elif narrow := {p.dtype for p in model.parameters() if p.dtype.itemsize < 4}:
            allowed = f"only on float32 weights, not {narrow.pop()}: most steps are smaller than their spacing"
            yield problem(key, "full", allowed, fix)

    def build(self, context: BuildContext) -> "Full":
        return Full(context)

    def parameter_count(self, context: BuildContext) -> int:
        return sum(parameter.numel() for parameter in context.model.parameters())


class Full(Component):
    """The base model's own parameters; tied ones are counted once."""

    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        for name, parameter in context.model.named_parameters():
            self.register_parameter(name.replace(".", SEPARATOR), parameter)
        self._pretrained: dict[str, torch.Tensor] = {}

    def attach(self, model: PreTrainedModel) -> None:
        self._pretrained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    @torch.no_grad()
    def detach(self, model: PreTrainedModel) -> None:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.copy_(self._pretrained[name])
        self._pretrained = {}

    def merge_refusal(self) -> None:
        return None

    def merge(self, model: PreTrainedModel) -> None:
        for parameter in model.parameters():
            parameter.grad = None
        self._pretrained = {}
