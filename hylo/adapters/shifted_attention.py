"""Shifted sparse attention: in training, a token attends only within its group; half of the heads have groups that are
shifted by half of one, so that what is read flows between groups.

    heads 0 to H/2 - 1      query i sees key j <= i if floor(i / G) = floor(j / G)
    the other heads         query i sees key j <= i if floor((i + G/2) / G) = floor((j + G/2) / G)

LongLoRA, arXiv 2309.12307, section 3.2. No parameters; attention costs T G instead of T^2. Outside of training, and in
passes with a cache, attention is that of the base model, so there is nothing to merge: the model at step 0, evaluated
and saved, is the model without it.

The paper's pseudocode rolls the tokens of the shifted heads, so that the last half group and the first one share a
group, in which the first tokens of a text read its last ones. Here these are two groups of their own: no token sees a
later one. Queries and keys arrive rotated by their true positions, so distances are those of the text.

hylo/adapters/attention_functions.py puts it before transformers' attention functions; masks (padding, a model's own
sliding window) apply within groups. Not together with another component that changes the attention functions.

Shapes: B batch, H heads, T tokens, D head width, N groups of G tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from hylo.adapters.attention_functions import (
    ATTENTION_FUNCTIONS,
    WRAPPED,
    SelectedFunctions,
    additive,
    function_problems,
    own_function,
)
from hylo.adapters.component import BuildContext, Component, ComponentConfig
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded

GROUPS = 4
"""Groups of a window by default, as in the paper."""

_SIZES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""G of each attention module in a model with this component. Attention functions only get the module."""


@register("component", "shifted_attention")
@dataclass(kw_only=True, slots=True)
class ShiftedAttentionConfig(ComponentConfig):
    """Size of the groups."""

    occupies: ClassVar[str | None] = ATTENTION_FUNCTIONS

    group_size: int | None = bounded(None, ge=2)
    """G, tokens per group, less than the context length; None: a quarter of it."""

    def size(self, context: BuildContext) -> int:
        """G in this context."""
        return self.group_size or max(2, context.context_length // GROUPS)

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        yield from function_problems(key, "shifted_attention", context.model)
        if self.size(context) >= context.context_length:
            allowed = f"2 to {context.context_length - 1}, less than the context length; one group is not sparse"
            yield problem(f"{key}.group_size", self.size(context), allowed, f"{key}.group_size=null, or longer windows")

    def build(self, context: BuildContext) -> "ShiftedAttention":
        return ShiftedAttention(self.size(context))

    def parameter_count(self, context: BuildContext) -> int:
        return 0


class ShiftedAttention(Component):
    """The pattern in every attention module.

    Args:
        size: G, tokens per group.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._selected = SelectedFunctions(_SHIFTED)

    def attach(self, model: PreTrainedModel) -> None:
        for module in self._selected.select(model):
            _SIZES[module] = self._size

    def detach(self, model: PreTrainedModel) -> None:
        for module in self._selected.restore(model):
            del _SIZES[module]

    def merge_refusal(self) -> None:
        return None

    def merge(self, model: PreTrainedModel) -> None:
        self.detach(model)


class _OneHeadPerGroup:
    """An attention module for functions that get as many key as query heads: they would repeat keys otherwise."""

    num_key_value_groups = 1

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _shifted(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function of that name, within shifted groups in training."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        own = own_function(implementation, module)
        if not module.training or key.shape[2] != query.shape[2]:
            mask = additive(attention_mask, query) if implementation == "eager" else attention_mask
            return own(module, query, key, value, mask, **kwargs)

        def within(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            if implementation == "eager":
                length = query.shape[2]
                causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=query.device).tril()
                mask = additive(causal if mask is None else mask, query)
            output: Any = own(_OneHeadPerGroup(module), query, key, value, mask, **kwargs)[0]
            return output

        heads, size = query.shape[1], _SIZES[module]
        key, value = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value))
        halves = []
        for chosen, first in ((slice(heads // 2), 0), (slice(heads // 2, heads), size - size // 2)):
            mask = attention_mask
            mask = mask[:, chosen] if mask is not None and mask.shape[1] == heads else mask
            halves.append(_grouped(within, query[:, chosen], key[:, chosen], value[:, chosen], mask, first, size))
        return torch.cat(halves, dim=2), None

    return attend


def _grouped(
    attention: Callable[..., Tensor],
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    mask: Tensor | None,
    first: int,
    size: int,
) -> Tensor:
    """Attention [B, T, H, D] within the first `first` tokens, then within groups of `size`, then within the rest."""
    batch, _, length, _ = query_BHTD.shape
    first = min(first, length)
    count = (length - first) // size
    parts = []
    for begin, end, groups in (
        (0, first, 1),
        (first, first + count * size, count),
        (first + count * size, length, 1),
    ):
        if end == begin:
            continue
        folded = (
            each[:, :, begin:end].unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)
            for each in (query_BHTD, key_BHTD, value_BHTD)
        )
        blocks = None if mask is None else _blocks(mask.expand(batch, -1, -1, -1)[:, :, begin:end, begin:end], groups)
        parts.append(attention(*folded, blocks).unflatten(0, (batch, groups)).flatten(1, 2))
    return torch.cat(parts, dim=1)


def _blocks(mask_BHTT: Tensor, groups: int) -> Tensor:
    """The mask within each group, [B N, H, G, G]. Tokens see themselves: padding would otherwise see nothing at all."""
    by_group = mask_BHTT.unflatten(3, (groups, -1)).unflatten(2, (groups, -1)).diagonal(dim1=2, dim2=4)
    blocks = by_group.permute(0, 4, 1, 2, 3).flatten(0, 1)
    itself = torch.eye(blocks.shape[-1], dtype=torch.bool, device=blocks.device)
    return blocks.masked_fill(itself, True if blocks.dtype == torch.bool else 0.0)


_SHIFTED = {name: f"shifted_{name}" for name in WRAPPED}
"""Registered name of the function within shifted groups, by the name of the plain one."""

for _name, _registered in _SHIFTED.items():
    AttentionInterface.register(_registered, _shifted(_name))
