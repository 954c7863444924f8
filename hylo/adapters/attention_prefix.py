"""Injects learned keys and values into every attention module, before or beside those of the text.

    before (joint)    out = softmax(q [K_P; k]^T / sqrt(D) + mask) [V_P; v]
    beside            out = softmax(q k^T / sqrt(D) + mask) v + softmax(q K_P^T / sqrt(D)) V_P

Each attention module gets a copy of its config that selects a function registered here. That function extends the keys,
values and mask and calls the originally selected one, or calls it twice and adds the results. One implementation thus
serves every architecture that uses transformers' attention functions, with its own score scaling and dropout. The
prefix is never masked and is not part of the cache: masks, positions and cached decoding of the text are unaffected.

Shapes: B batch, H key/value heads, P prefix tokens, T queries, S keys of the text, D head width.
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

from hylo.core.errors import ConfigError, problem
from hylo.models.architecture import attention_modules, key_value_shape

Prefix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a layer's keys and values, [B, H, S, D] each, to those of prefix and text, [B, H, P + S, D], if joint; otherwise
to those of the prefix alone, [B, H, P, D]."""

_PREFIXES: WeakKeyDictionary[nn.Module, tuple[Prefix, bool]] = WeakKeyDictionary()
"""The prefix of each attention module that has one, and whether its softmax is joint. Attention functions only get the
module, so this is looked up by module."""


class AttentionPrefixes:
    """One prefix per layer, attachable to a model.

    Args:
        joint: prefix and text share one softmax; otherwise each has its own, and the results are added.
    """

    def __init__(self, prefixes: Iterable[Prefix], *, joint: bool = True) -> None:
        self._prefixes = list(prefixes)
        self._joint = joint
        self._configs: list[Any] = []

    def attach(self, model: PreTrainedModel) -> None:
        """Add its prefix to every attention module."""
        modules = attention_modules(model)
        self._configs = [module.config for module in modules]
        for prefix, module in zip(self._prefixes, modules, strict=True):
            _PREFIXES[module] = prefix, self._joint
            config: Any = copy.copy(module.config)
            config._attn_implementation = _EXTENDED[_implementation(module)]
            module.config = config

    def detach(self, model: PreTrainedModel) -> None:
        """Restore the attention modules."""
        for module, config in zip(attention_modules(model), self._configs, strict=True):
            module.config = config
            del _PREFIXES[module]


def prefix_problems(key: str, value: str, model: PreTrainedModel) -> Iterator[str]:
    """Yields why this model's attention modules cannot take a prefix; nothing if they can."""
    try:
        modules = attention_modules(model)
        key_value_shape(model)
    except ValueError as error:
        yield problem(key, value, f"a model that takes an attention function; {error}", f"{key}=null")
        return
    if (used := _implementation(modules[0])) not in _EXTENDED:
        allowed = f"a model loaded with attn_implementation {' or '.join(_EXTENDED)}, not {used}"
        yield problem(key, value, allowed, "model.set_attn_implementation('sdpa')")


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


def _implementation(attention: nn.Module) -> str:
    config: Any = attention.config
    return config._attn_implementation


def _extended_mask(mask: Tensor | None, P: int, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The mask with P unmasked columns in front of the text's. None: nothing is masked."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        if queries == 1 or not causal:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()  # torch's is_causal convention
    return F.pad(mask, (P, 0), value=mask.dtype == torch.bool)  # visible: True in a bool mask, 0 in an additive one


def _added(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The mask in the additive form that eager attention expects."""
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
        # The model builds masks for the attention that its own config names, which may have changed since.
        mask = _added(mask, query) if implementation == "eager" else mask
        attention = _original(implementation, module)
        if joint:
            output, weights = attention(module, query, keys, values, mask, **kwargs)
            return output, None if weights is None else weights[..., P:]  # one column per key of the text
        output, weights = attention(module, query, key, value, mask, **kwargs)
        added, _ = attention(module, query, keys, values, None, **kwargs | {"is_causal": False})
        return output + added, weights

    return attend


def _original(implementation: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the module would call: eager attention is not registered but defined in the module's file."""
    eager = getattr(inspect.getmodule(type(module)), "eager_attention_forward", None)
    assert eager is not None or implementation != "eager", f"{type(module).__name__} has no eager attention function"
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)  # pyright: ignore[reportArgumentType]


_EXTENDED = {name: f"prefixed_{name}" for name in ("sdpa", "eager")}
"""Registered name of the prefixed attention function, by the name of the plain one."""

for _name, _registered in _EXTENDED.items():
    AttentionInterface.register(_registered, _extend(_name))
