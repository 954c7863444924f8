"""Attention landmarks: in every layer, every query also attends to K learned keys and values.

    joint       out = softmax(q [K_L; k]^T / sqrt(D) + mask) [a V_L; v]
    separate    out = softmax(q k^T / sqrt(D) + mask) v + a softmax(q K_L^T / sqrt(D)) V_L

K_L, V_L [H, K, D]: a layer's keys and values, one set per key/value head; a (`scale`): one scalar per layer on the
values. The landmarks have no position (keys of the text arrive here already rotated, K_L is not) and are never masked.
Own design after the published HyLoRADA; learned keys and values in every layer come from prefix tuning (arXiv
2101.00190), which generates them by a network. The separate softmax comes from zero-initialized attention
(LLaMA-Adapter, arXiv 2303.16199, section 3.2), which gates each head by tanh of a scalar; here a is one scalar per
layer, applied without tanh.

Step 0: K_L, V_L ~ N(0, 0.02^2) and a = `initial_scale`, 0.1 by default. With a joint softmax this is not the base
model, not even for a = 0: the values then add nothing, but the keys still take their share of the softmax. A query
whose logits to t + 1 tokens are all zero gives the landmarks K / (K + t + 1) of its attention and scales down what it
reads from the text accordingly. The effect is large at the first tokens of a text and fades with t; perplexity at step
0 is clearly above the base model's. With a separate softmax the text loses nothing: for a = 0 the model is exactly the
base model, for a = 0.1 it is close to it. With a = 0, no gradient reaches K_L and V_L in the first step; they move from
the second step on.

hylo/adapters/attention_prefix.py connects them to transformers' attention functions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.attention_functions import ATTENTION_FUNCTIONS
from hylo.adapters.attention_prefix import AttentionPrefixes, beside, prefix_problems, prepend
from hylo.adapters.component import AtStart, BuildContext, Component, ComponentConfig, constant, normal
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.models.architecture import decoder_layers, key_value_shape


class Softmax(Enum):
    """How landmarks share a query's attention with the text. Users type the member names."""

    joint = "one softmax over both: the landmarks take attention from the text"
    separate = "a softmax of their own, whose result is added: the text keeps all of its attention"


FAINT = 0.1
"""Largest initial scale at which landmarks with a separate softmax start near the base model."""


@register("component", "landmark_attention")
@dataclass(kw_only=True, slots=True)
class AttentionConfig(ComponentConfig):
    """Landmarks in every attention module."""

    occupies: ClassVar[str | None] = ATTENTION_FUNCTIONS

    num_landmarks: int = bounded(4, ge=1)
    """K, the number of learned keys and values per key/value head."""
    softmax: Softmax = Softmax.joint
    """joint: one over landmarks and text; separate: one for the landmarks alone, which takes nothing from the text."""
    initial_scale: float = bounded(0.1, ge=0)
    """Initial value of a. With softmax=separate and 0, the model at step 0 is exactly the base model."""

    @property
    def at_start(self) -> AtStart:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How close the model is to the base model at step 0."""
        if self.softmax is Softmax.joint or self.initial_scale > FAINT:
            return AtStart.apart
        return AtStart.near if self.initial_scale else AtStart.same

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        yield from prefix_problems(key, "landmark_attention", context.model)

    def build(self, context: BuildContext) -> "AttentionLandmark":
        return AttentionLandmark(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        heads, width = key_value_shape(context.model)
        return len(decoder_layers(context.model)) * (2 * heads * self.num_landmarks * width + 1)


class LayerLandmarks(nn.Module):
    """One layer's keys and values.

    Shapes: B batch, H key/value heads, K landmarks, T queries, S keys of the text, D head width.
    """

    def __init__(self, config: AttentionConfig, context: BuildContext, index: int) -> None:
        super().__init__()
        heads, width = key_value_shape(context.model)
        shape = (heads, config.num_landmarks, width)
        self.keys = context.parameter(f"landmark.layers.{index}.keys", shape, normal(0.02))
        self.values = context.parameter(f"landmark.layers.{index}.values", shape, normal(0.02))
        self.scale = context.parameter(f"landmark.layers.{index}.scale", (), constant(config.initial_scale))
        self.softmax = config.softmax

    def forward(self, key_BHSD: Tensor, value_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the landmarks, followed by those of the text if the softmax is joint."""
        extend = prepend if self.softmax is Softmax.joint else beside
        return extend(self.keys, key_BHSD), extend(self.scale * self.values, value_BHSD)


class AttentionLandmark(Component):
    """The landmarks of all layers."""

    def __init__(self, config: AttentionConfig, context: BuildContext) -> None:
        super().__init__()
        count = len(decoder_layers(context.model))
        self.layers = nn.ModuleList(LayerLandmarks(config, context, index) for index in range(count))
        self._prefixes = AttentionPrefixes(
            self.layers, joint=config.softmax is Softmax.joint, positions=context.positions
        )

    def merge_refusal(self) -> str:
        return "its keys and values belong to no token, so no weight can hold them"

    def attach(self, model: PreTrainedModel) -> None:
        self._prefixes.attach(model)

    def detach(self, model: PreTrainedModel) -> None:
        self._prefixes.detach(model)
