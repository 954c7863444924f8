"""Injects learned keys and values into every attention module, before or beside those of the text.

    before (joint)    out = softmax(q [K_P; k]^T / sqrt(D) + mask) [V_P; v]
    beside            out = softmax(q k^T / sqrt(D) + mask) v + softmax(q K_P^T / sqrt(D)) V_P

A function registered here (hylo/adapters/attention_functions.py) extends the keys, values and mask and calls the
model's own, or calls it twice and adds the results. The prefix is never masked and is not part of the cache: masks,
positions and cached decoding of the text are unaffected.

Shapes: B batch, H key/value heads, P prefix tokens, T queries, S keys of the text, D head width.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from hylo.adapters.attention_functions import (
    WRAPPED,
    SelectedFunctions,
    additive,
    function_problems,
    own_function,
)
from hylo.adapters.positions import Positions
from hylo.core.errors import ConfigError, problem
from hylo.models.architecture import key_value_shape

Prefix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a layer's keys and values, [B, H, S, D] each, to those of prefix and text, [B, H, P + S, D], if joint; otherwise
to those of the prefix alone, [B, H, P, D]."""


@dataclass(frozen=True)
class _OfModule:
    """What one attention module is extended by."""

    prefix: Prefix
    joint: bool
    layer: int
    positions: Positions | None


_PREFIXES: WeakKeyDictionary[nn.Module, _OfModule] = WeakKeyDictionary()
"""Attention functions only get the module, so prefixes are looked up by module."""


class AttentionPrefixes:
    """One prefix per layer, attachable to a model.

    Args:
        joint: prefix and text share one softmax; otherwise each has its own, and the results are added.
        positions: whose listener is told of the attention to the prefix; None: nobody is.
    """

    def __init__(self, prefixes: Iterable[Prefix], *, joint: bool = True, positions: Positions | None = None) -> None:
        self._prefixes = list(prefixes)
        self._joint, self._positions = joint, positions
        self._selected = SelectedFunctions(_EXTENDED)

    def attach(self, model: PreTrainedModel) -> None:
        """Add its prefix to every attention module."""
        for layer, (prefix, module) in enumerate(zip(self._prefixes, self._selected.select(model), strict=True)):
            _PREFIXES[module] = _OfModule(prefix, self._joint, layer, self._positions)

    def detach(self, model: PreTrainedModel) -> None:
        """Restore the attention modules."""
        for module in self._selected.restore(model):
            del _PREFIXES[module]


def prefix_problems(key: str, value: str, model: PreTrainedModel) -> Iterator[str]:
    """Yields why this model's attention modules cannot take a prefix; nothing if they can."""
    refused = [*function_problems(key, value, model)]
    yield from refused
    if not refused:
        try:
            key_value_shape(model)
        except ValueError as error:
            yield problem(key, value, f"a model that takes an attention function; {error}", f"{key}=null")


def prepend(prefix_HPD: Tensor, text_BHSD: Tensor) -> Tensor:
    """The prefix, repeated over the batch, followed by the text: [B, H, P + S, D]."""
    return torch.cat([beside(prefix_HPD, text_BHSD), text_BHSD], dim=2)


def beside(prefix_HPD: Tensor, text_BHSD: Tensor) -> Tensor:
    """The prefix, repeated over the batch, in the text's dtype: [B, H, P, D].

    Raises:
        ConfigError: the text has other heads than the model's config says (keys and values of different width, say).
    """
    own, texts = (prefix_HPD.shape[0], prefix_HPD.shape[2]), (text_BHSD.shape[1], text_BHSD.shape[3])
    if own != texts:
        value, allowed = "{} of width {}".format(*own), "{} of width {}, as the attention modules have".format(*texts)
        raise ConfigError(problem("learned keys and values, heads", value, allowed, "another method for this model"))
    return prefix_HPD.to(text_BHSD.dtype).expand(text_BHSD.shape[0], -1, -1, -1)


def _extended_mask(mask: Tensor | None, P: int, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The mask with P unmasked columns in front of the text's. None: nothing is masked."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        if queries == 1 or not causal:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()  # torch's is_causal convention
    return F.pad(mask, (P, 0), value=mask.dtype == torch.bool)  # visible: True in a bool mask, 0 in an additive one


def _marks(keys: Tensor, P: int) -> Tensor:
    """Values with which attention returns its own weights of the P tokens of the prefix: [B, H, P + S, P]."""
    marks = keys.new_zeros(*keys.shape[:3], P)
    marks[:, :, :P] = torch.eye(P, dtype=keys.dtype, device=keys.device)
    return marks


def _read(own: _OfModule, weights_BTHP: Tensor) -> None:
    assert own.positions is not None
    own.positions.read("landmark weights", weights_BTHP.mean(dim=2), own.layer)
    if own.joint:
        own.positions.read("attention to landmarks", weights_BTHP.sum(dim=-1), own.layer)


def _extend(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function of that name, with a prefix."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        own = _PREFIXES[module]
        joint, (keys, values) = own.joint, own.prefix(key, value)
        P = keys.shape[2] - key.shape[2] if joint else keys.shape[2]
        causal = getattr(module, "is_causal", True) if kwargs.get("is_causal") is None else kwargs["is_causal"]
        mask = attention_mask
        if joint or implementation == "eager":
            mask = _extended_mask(mask, P if joint else 0, query, key, causal)
        mask = additive(mask, query) if implementation == "eager" else mask
        attention = own_function(implementation, module)
        if own.positions is not None and own.positions.reader is not None:
            seen, flags = (mask, kwargs) if joint else (None, kwargs | {"is_causal": False})
            weights, _ = attention(module, query, keys, _marks(keys, P), seen, **flags)
            _read(own, weights)
        if joint:
            output, weights = attention(module, query, keys, values, mask, **kwargs)
            return output, None if weights is None else weights[..., P:]  # one column per key of the text
        output, weights = attention(module, query, key, value, mask, **kwargs)
        added, _ = attention(module, query, keys, values, None, **kwargs | {"is_causal": False})
        return output + added, weights

    return attend


_EXTENDED = {name: f"prefixed_{name}" for name in WRAPPED}
"""Registered name of the prefixed attention function, by the name of the plain one."""

for _name, _registered in _EXTENDED.items():
    AttentionInterface.register(_registered, _extend(_name))
