"""Per-layer landmarks: each layer's FFN output attends to that layer's own learned vectors.

    out = h + a (w L)        w = softmax(h L^T / sqrt(d))

h: the FFN's output before the residual is added. Each layer has its own L [K, d] ~ N(0, 0.02^2) and scalar a, which
starts at 0.05, so the model at step 0 is close to the base model but not equal to it. With `share=layers` all layers
share one L and each keeps its own a: K d + layers parameters instead of layers (K d + 1). Each token computes its own
weights w (`token`); `sequence`, as published, uses the mean over the real tokens of the pass, which leaks later tokens
into earlier ones. Own design after the published HyLoRADA, which also hooked submodules of the FFN.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hylo.adapters.component import AtStart, BuildContext, Component, ComponentConfig, constant, normal
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.models.architecture import decoder_layers, ffn_modules, hidden_size


class Choice(Enum):
    """What determines the weights of the landmarks. Users type the member names."""

    token = "the token itself"
    sequence = "the mean over all tokens of the pass: leaks"


class Share(Enum):
    """What layers share. Users type the member names."""

    none = "nothing: each layer has its own vectors"
    layers = "the vectors; each layer has its own scalar"


@register("component", "landmark_per_layer")
@dataclass(kw_only=True, slots=True)
class PerLayerConfig(ComponentConfig):
    """Landmarks at every FFN."""

    at_start: ClassVar[AtStart] = AtStart.near

    num_landmarks: int = bounded(4, ge=1)
    """K, the number of learned vectors per layer."""
    pooling: Choice = Choice.token
    """token, or sequence as published, which leaks later tokens."""
    share: Share = Share.none
    """none, or layers: one L for all layers. The scalar a is never shared."""

    @property
    def breaks(self) -> frozenset[str]:
        return frozenset({"causality", "cached_decoding"} if self.pooling is Choice.sequence else ())

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        try:
            ffn_modules(context.model)
        except ValueError as error:
            yield problem(key, "landmark_per_layer", f"a model with an FFN in every layer; {error}", f"{key}=null")

    def build(self, context: BuildContext) -> "PerLayerLandmark":
        return PerLayerLandmark(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        layers = len(decoder_layers(context.model))
        return (1 if self.share is Share.layers else layers) * self.num_landmarks * hidden_size(context.model) + layers


class LayerLandmarks(nn.Module):
    """One layer's landmarks; L may be shared by all layers.

    Shapes: B batch, T tokens, D hidden size, K landmarks.
    """

    def __init__(self, config: PerLayerConfig, context: BuildContext, index: int, shared: nn.Parameter | None) -> None:
        super().__init__()
        self.L = _vectors(config, context, f"landmark.layers.{index}.L") if shared is None else shared
        self.a = context.parameter(f"landmark.layers.{index}.a", (), constant(0.05))
        self.pooling, self.index = config.pooling, index
        self._positions = context.positions

    def forward(self, h: Tensor) -> Tensor:
        """Adds the landmarks to h [B, T, D], or [B T, D] where the architecture flattens the batch for its FFN."""
        chooses = h.float() if self.pooling is Choice.token else self.mean(h.float())
        w = F.softmax(F.linear(chooses.to(self.L.dtype), self.L) / math.sqrt(self.L.shape[-1]), dim=-1)
        self._positions.read("landmark weights", w, self.index)
        return h + (w @ (self.a * self.L)).to(h.dtype)

    def mean(self, h: Tensor) -> Tensor:
        """Mean over the real tokens of each text, expanded to the shape of h."""
        h_BTD = h.reshape(-1, self._positions.current.shape[-1], h.shape[-1])
        real = self._positions.real
        counts_BT1 = h_BTD.new_ones(h_BTD.shape[:2]).unsqueeze(-1) if real is None else real.unsqueeze(-1).to(h.dtype)
        mean_B1D = (h_BTD * counts_BT1).sum(1, keepdim=True) / counts_BT1.sum(1, keepdim=True).clamp(min=1)
        return mean_B1D.expand_as(h_BTD).reshape(h.shape)


class PerLayerLandmark(Component):
    """The landmarks of all layers."""

    def __init__(self, config: PerLayerConfig, context: BuildContext) -> None:
        super().__init__()
        count = len(decoder_layers(context.model))
        # Set before the layers: a shared tensor goes by the first name registered.
        self.L = _vectors(config, context, "landmark.L") if config.share is Share.layers else None
        self.layers = nn.ModuleList(LayerLandmarks(config, context, index, self.L) for index in range(count))
        self._hooks: list[RemovableHandle] = []

    def merge_refusal(self) -> str:
        return "what it adds depends on the text, which no weight can express"

    def attach(self, model: PreTrainedModel) -> None:
        for landmarks, ffn in zip(self.layers, ffn_modules(model), strict=True):

            def after_ffn(module: nn.Module, args: object, output: Any, landmarks: nn.Module = landmarks) -> Any:
                if isinstance(output, tuple):  # mixture-of-experts FFNs also return router scores
                    return landmarks(output[0]), *output[1:]
                return landmarks(output)

            self._hooks.append(ffn.register_forward_hook(after_ffn))

    def detach(self, model: PreTrainedModel) -> None:
        assert self._hooks, "detach follows attach"
        for hook in self._hooks:
            hook.remove()


def _vectors(config: PerLayerConfig, context: BuildContext, name: str) -> nn.Parameter:
    """L, [K, D]."""
    return context.parameter(name, (config.num_landmarks, hidden_size(context.model)), normal(0.02))
