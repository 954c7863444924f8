"""Keys and values before or beside those of the text, in every attention: how learned ones enter a model.

    before (joint)    out = softmax(q [K_P; k]^T / sqrt(D) + mask) [V_P; v]
    beside            out = softmax(q k^T / sqrt(D) + mask) v + softmax(q K_P^T / sqrt(D)) V_P

Each attention module gets a copy of its config that selects a function registered here. It extends the keys, values and
mask and calls the one selected before, or calls that one twice and adds. So one implementation serves every
architecture that takes an attention function of transformers, with its scaling of scores and its dropout. No mask hides
the prefix, and it is no part of the cache: masks, positions and cached decoding of the text stay as they are.

Shapes: B batch, H key/value heads, P tokens of the prefix, T queries, S keys of the text, D width of a head.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hylo.core.errors import problem
from hylo.models.architecture import attention_modules

Prefix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From a layer's keys and values, [B, H, S, D] each, to those of the prefix and the text, [B, H, P + S, D]; beside the
text to those of the prefix alone, [B, H, P, D]."""

_PREFIXES: WeakKeyDictionary[nn.Module, tuple[Prefix, bool]] = WeakKeyDictionary()
"""The prefix of each attention module that has one, and whether its softmax is a joint one: an attention function is
told the module and nothing more."""


class AttentionPrefixes:
    """One prefix a layer, to be put into a model and taken out again.

    Arguments:
        joint: prefix and text share one softmax; else each has its own, and the results are added.
    """

    def __init__(self, prefixes: Iterable[Prefix], *, joint: bool = True) -> None:
        self._prefixes = list(prefixes)
        self._joint = joint
        self._configs: list[Any] = []

    def attach(self, model: PreTrainedModel) -> None:
        """Let every attention see its prefix."""
        modules = attention_modules(model)
        self._configs = [module.config for module in modules]
        for prefix, module in zip(self._prefixes, modules, strict=True):
            _PREFIXES[module] = prefix, self._joint
            config: Any = copy.copy(module.config)
            config._attn_implementation = _EXTENDED[_implementation(module)]
            module.config = config

    def detach(self, model: PreTrainedModel) -> None:
        """Leave the attentions as they were."""
        for module, config in zip(attention_modules(model), self._configs, strict=True):
            module.config = config
            del _PREFIXES[module]


def prefix_problems(key: str, value: str, model: PreTrainedModel) -> Iterator[str]:
    """Why the attentions of this model can take no prefix, as text; nothing where they can."""
    try:
        modules = attention_modules(model)
    except ValueError as error:
        yield problem(key, value, f"a model that takes an attention function; {error}", f"{key}=null")
        return
    if (used := _implementation(modules[0])) not in _EXTENDED:
        allowed = f"a model loaded with attn_implementation {' or '.join(_EXTENDED)}, not {used}"
        yield problem(key, value, allowed, "model.set_attn_implementation('sdpa')")


def prepend(prefix_HPD: Tensor, text_BHSD: Tensor) -> Tensor:
    """One prefix before every text of a batch."""
    return torch.cat([beside(prefix_HPD, text_BHSD), text_BHSD], dim=2)


def beside(prefix_HPD: Tensor, text_BHSD: Tensor) -> Tensor:
    """One prefix for every text of a batch, in the type of the texts: [B, H, P, D]."""
    return prefix_HPD.to(text_BHSD.dtype).expand(text_BHSD.shape[0], -1, -1, -1)


def _implementation(attention: nn.Module) -> str:
    config: Any = attention.config
    return config._attn_implementation


def _extended_mask(mask: Tensor | None, P: int, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The mask with P columns more, which hide nothing, before those of the text. None: all is visible."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        if queries == 1 or not causal:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()  # torch's meaning of is_causal
    return F.pad(mask, (P, 0), value=mask.dtype == torch.bool)  # True shows in a bool mask, 0 in one that is added


def _added(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The mask as eager attention reads it: added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def _extend(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function of that name, with a prefix."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        prefix, joint = _PREFIXES[module]
        keys, values = prefix(key, value)
        P = keys.shape[2] - key.shape[2] if joint else 0
        causal = getattr(module, "is_causal", True) if kwargs.get("is_causal") is None else kwargs["is_causal"]
        mask = attention_mask
        if joint or implementation == "eager":
            mask = _extended_mask(mask, P, query, key, causal)
        # The model makes its masks for the attention that its own config names, which may have changed since.
        mask = _added(mask, query) if implementation == "eager" else mask
        attention = _original(implementation, module)
        if joint:
            output, weights = attention(module, query, keys, values, mask, **kwargs)
            return output, None if weights is None else weights[..., P:]  # as many columns as the text has tokens
        output, weights = attention(module, query, key, value, mask, **kwargs)
        added, _ = attention(module, query, keys, values, None, **kwargs | {"is_causal": False})
        return output + added, weights

    return attend


def _original(implementation: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the module would call: eager attention is not registered but lives beside the module."""
    eager = getattr(inspect.getmodule(type(module)), "eager_attention_forward", None)
    assert eager is not None or implementation != "eager", f"{type(module).__name__} has no eager attention function"
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)  # pyright: ignore[reportArgumentType]


_EXTENDED = {name: f"prefixed_{name}" for name in ("sdpa", "eager")}
"""The registered name of an attention function with a prefix, by that of the function alone."""

for _name, _registered in _EXTENDED.items():
    AttentionInterface.register(_registered, _extend(_name))
