"""Attention landmarks: every query also sees K learned keys and values, in every layer.

    out = softmax(q [K_L; k]^T / sqrt(D) + mask) [a V_L; v]

K_L, V_L [H, K, D]: a layer's keys and values, one set for each key/value head, before those of the text; a: one scalar
a layer on the values (`scale`). The landmarks have no position (keys of the text come here already rotated, K_L as it
is) and no mask hides them. Own design after the published HyLoRADA; learned keys and values at every layer are the
idea of prefix tuning (arXiv 2101.00190), which makes them by a network.

Step 0: K_L, V_L ~ N(0, 0.02^2) and a = 0.1. The values add next to nothing, but the keys take their share of the
softmax: a query whose logits to t + 1 tokens are all zero gives the landmarks K / (K + t + 1) of its attention and
shrinks what it reads by as much. So the model at step 0 is not the base model: the first tokens of a text move most,
later ones less. SmolLM2-135M on four windows of 256 tokens of a play goes from a perplexity of 40.4 to 49.3; the KL to
the base model is 5 nats at the first token, 0.65 at the ninth, 0.08 at the last and 0.24 on average.

How they enter the attention functions of transformers: hylo/adapters/attention_prefix.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.attention_prefix import AttentionPrefixes, prefix_problems, prepend
from hylo.adapters.component import AtStart, Component, ComponentConfig, Host, constant, normal
from hylo.models.architecture import decoder_layers, key_value_shape
from hylo.schema import bounded, register


@register("component")
@dataclass(kw_only=True, slots=True)
class AttentionConfig(ComponentConfig):
    """Landmarks in every attention."""

    at_start: ClassVar[AtStart] = AtStart.apart

    num_landmarks: int = bounded(4, ge=1)
    """K, the number of learned keys and values of a key/value head."""

    def problems(self, key: str, host: Host) -> Iterator[str]:
        yield from prefix_problems(key, "landmark_attention", host.model)

    def build(self, host: Host) -> "AttentionLandmark":
        return AttentionLandmark(self, host)

    def parameter_count(self, host: Host) -> int:
        heads, width = key_value_shape(host.model)
        return len(decoder_layers(host.model)) * (2 * heads * self.num_landmarks * width + 1)


class LayerLandmarks(nn.Module):
    """One layer's keys and values.

    Shapes: B batch, H key/value heads, K landmarks, T queries, S keys of the text, D width of a head.
    """

    def __init__(self, config: AttentionConfig, host: Host, index: int) -> None:
        super().__init__()
        heads, width = key_value_shape(host.model)
        shape = (heads, config.num_landmarks, width)
        self.keys = host.parameter(f"landmark.layers.{index}.keys", shape, normal(0.02))
        self.values = host.parameter(f"landmark.layers.{index}.values", shape, normal(0.02))
        self.scale = host.parameter(f"landmark.layers.{index}.scale", (), constant(0.1))

    def forward(self, key_BHSD: Tensor, value_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the landmarks, then those of the text."""
        return prepend(self.keys, key_BHSD), prepend(self.scale * self.values, value_BHSD)


class AttentionLandmark(Component):
    """The landmarks of all layers."""

    def __init__(self, config: AttentionConfig, host: Host) -> None:
        super().__init__()
        count = len(decoder_layers(host.model))
        self.layers = nn.ModuleList(LayerLandmarks(config, host, index) for index in range(count))
        self._prefixes = AttentionPrefixes(self.layers)

    def merge_refusal(self) -> str:
        return "its keys and values belong to no token, and no weight holds such"

    def attach(self, model: PreTrainedModel) -> None:
        self._prefixes.attach(model)

    def detach(self, model: PreTrainedModel) -> None:
        self._prefixes.detach(model)
