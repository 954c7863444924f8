"""Bias: a trained bias on the output of each target layer, and nothing else (BitFit).

    y = W x + b_0 + b

b_0 [out]: the layer's own bias, if any, frozen; b [out]: trained and zero at step 0, so the model starts exactly at the
base model. If a layer has a bias, training b is equivalent to training that bias (arXiv 2106.10199, section 3); layers
without one, such as all of Llama's, get one, which is common practice for BitFit on such models. The parameter count is
the sum of the targets' output widths. The paper trains the biases of all layers and norms; here only those of the
targets, by default the same as for the low-rank update: query, key, value and output projections of attention. A key
bias that is not followed by rotary embeddings (GPT-2, OPT) shifts all scores of a query equally and has no effect.

Merged: b_0' = b_0 + b, if the layer has a b_0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hylo.adapters.component import SEPARATOR, BuildContext, Component, ComponentConfig, zeros
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.models.architecture import layer_shape
from hylo.models.targets import target_layers


@register("component", "bias")
@dataclass(kw_only=True, slots=True)
class BiasConfig(ComponentConfig):
    """Which layers get a trained bias."""

    target_modules: list[str] | None = None
    """Names (or path suffixes) of the layers; [all-linear]: every linear layer except the output head and those that
    score experts; None: query, key, value and output of attention; on GPT-2 c_attn and both c_proj."""

    def layers(self, context: BuildContext) -> dict[str, nn.Module]:
        """The target layers by path."""
        return target_layers(context.model, self.target_modules)

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        try:
            self.layers(context)
        except ValueError as error:
            fix = f"{key}.target_modules=[all-linear]"
            yield problem(f"{key}.target_modules", self.target_modules, str(error), fix)

    def build(self, context: BuildContext) -> "Bias":
        return Bias(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        return sum(layer_shape(layer)[1] for layer in self.layers(context).values())


class Bias(Component):
    """The biases of all target layers.

    Each is added by a hook, so it also applies when another component has replaced the base model's layer.
    """

    def __init__(self, config: BiasConfig, context: BuildContext) -> None:
        super().__init__()
        self._layers: dict[str, Any] = config.layers(context)
        self.b = nn.ParameterDict(
            {
                path.replace(".", SEPARATOR): context.parameter(f"bias.{path}.b", (layer_shape(layer)[1],), zeros)
                for path, layer in self._layers.items()
            }
        )
        self._hooks: list[RemovableHandle] = []

    def attach(self, model: PreTrainedModel) -> None:
        for path, b_O in self.b.items():

            def add(module: nn.Module, args: object, y_BTO: Tensor, b_O: Tensor = b_O) -> Tensor:
                return y_BTO + b_O.to(y_BTO.dtype)

            layer = model.get_submodule(path.replace(SEPARATOR, "."))
            self._hooks.append(layer.register_forward_hook(add))

    def detach(self, model: PreTrainedModel) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def target_paths(self) -> list[str]:
        return list(self._layers)

    def merge_refusal(self) -> str | None:
        for path, layer in self._layers.items():
            if layer.bias is None:
                return f"{path} has no bias to add to, and a model saved with one would lose it when it is loaded again"
            if (dtype := layer.bias.dtype).itemsize < 4:
                return f"the bias of {path} is {dtype}, which would round the sum; convert the model with .float()"
        return None

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> None:
        if self.merge_refusal() is not None:
            super().merge(model)
        for path, layer in self._layers.items():
            layer.bias.add_(self.b[path.replace(".", SEPARATOR)])
        self.detach(model)
