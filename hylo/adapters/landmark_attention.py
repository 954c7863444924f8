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

The landmarks enter through the attention functions of transformers: each attention module gets a copy of its config
that selects a function registered here, which extends the keys, values and mask and calls the one selected before.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hylo.adapters.component import AtStart, Component, ComponentConfig, Host, constant, normal
from hylo.errors import problem
from hylo.models.architecture import attention_modules, decoder_layers, key_value_shape
from hylo.schema import bounded, register

_LANDMARKS: WeakKeyDictionary[nn.Module, "LayerLandmarks"] = WeakKeyDictionary()
"""The landmarks of each attention module that has some: an attention function is told the module and nothing more."""


@register("component")
@dataclass(kw_only=True, slots=True)
class AttentionConfig(ComponentConfig):
    """Landmarks in every attention."""

    at_start: ClassVar[AtStart] = AtStart.apart

    num_landmarks: int = bounded(4, ge=1)
    """K, the number of learned keys and values of a key/value head."""

    def problems(self, key: str, host: Host) -> Iterator[str]:
        try:
            modules = attention_modules(host.model)
        except ValueError as error:
            yield problem(
                key, "landmark_attention", f"a model that takes an attention function; {error}", f"{key}=null"
            )
            return
        if (used := _implementation(modules[0])) not in _EXTENDED:
            allowed = f"a model loaded with attn_implementation {' or '.join(_EXTENDED)}, not {used}"
            yield problem(key, "landmark_attention", allowed, "model.set_attn_implementation('sdpa')")

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
        return _prepend(self.keys, key_BHSD), _prepend(self.scale * self.values, value_BHSD)


class AttentionLandmark(Component):
    """The landmarks of all layers."""

    def __init__(self, config: AttentionConfig, host: Host) -> None:
        super().__init__()
        count = len(decoder_layers(host.model))
        self.layers = nn.ModuleList(LayerLandmarks(config, host, index) for index in range(count))
        self._configs: list[Any] = []

    def merge_refusal(self) -> str:
        return "its keys and values belong to no token, and no weight holds such"

    def attach(self, model: PreTrainedModel) -> None:
        modules = attention_modules(model)
        self._configs = [module.config for module in modules]
        for landmarks, module in zip(self.layers, modules, strict=True):
            assert isinstance(landmarks, LayerLandmarks)
            _LANDMARKS[module] = landmarks
            config: Any = copy.copy(module.config)
            config._attn_implementation = _EXTENDED[_implementation(module)]
            module.config = config

    def detach(self, model: PreTrainedModel) -> None:
        for module, config in zip(attention_modules(model), self._configs, strict=True):
            module.config = config
            del _LANDMARKS[module]


def _implementation(attention: nn.Module) -> str:
    config: Any = attention.config
    return config._attn_implementation


def _prepend(landmarks_HKD: Tensor, text_BHSD: Tensor) -> Tensor:
    landmarks = landmarks_HKD.to(text_BHSD.dtype).expand(text_BHSD.shape[0], -1, -1, -1)
    return torch.cat([landmarks, text_BHSD], dim=2)


def _extended_mask(mask: Tensor | None, K: int, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The mask with K columns more, which hide nothing, before those of the text. None: all is visible."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        if queries == 1 or not causal:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()  # torch's meaning of is_causal
    return F.pad(mask, (K, 0), value=mask.dtype == torch.bool)  # True shows in a bool mask, 0 in one that is added


def _added(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The mask as eager attention reads it: added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def _extend(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function of that name, with landmarks."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        landmarks = _LANDMARKS[module]
        K = landmarks.keys.shape[1]
        causal = getattr(module, "is_causal", True) if kwargs.get("is_causal") is None else kwargs["is_causal"]
        mask = _extended_mask(attention_mask, K, query, key, causal)
        # The model makes its masks for the attention that its own config names, which may have changed since.
        mask = _added(mask, query) if implementation == "eager" else mask
        output, weights = _original(implementation, module)(module, query, *landmarks(key, value), mask, **kwargs)
        return output, None if weights is None else weights[..., K:]  # as many columns as the text has tokens

    return attend


def _original(implementation: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the module would call: eager attention is not registered but lives beside the module."""
    eager = getattr(inspect.getmodule(type(module)), "eager_attention_forward", None)
    assert eager is not None or implementation != "eager", f"{type(module).__name__} has no eager attention function"
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)  # pyright: ignore[reportArgumentType]


_EXTENDED = {name: f"landmark_attention_{name}" for name in ("sdpa", "eager")}
"""The registered name of an attention function with landmarks, by that of the function alone."""

for _name, _registered in _EXTENDED.items():
    AttentionInterface.register(_registered, _extend(_name))
