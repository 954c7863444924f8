"""Which attention function a model's attention modules call, and how a component puts its own in between.

Each attention module gets a copy of its config that selects a function registered with transformers. That function
calls the one selected before, so one implementation serves every architecture that uses the registry, with its own
score scaling and dropout. Attention functions get the module, queries [B, H, T, D], keys and values [B, H_kv, S, D] and
a mask (None: causal, or nothing is masked), and return [B, T, H, D] with the weights, or None instead of them.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hylo.core.errors import problem
from hylo.models.architecture import attention_modules

ATTENTION_FUNCTIONS = "the attention functions"
"""What components that select an attention function occupy."""
WRAPPED = ("sdpa", "eager")
"""Names of the attention functions that can be called by another."""


class SelectedFunctions:
    """Attention functions selected in place of a model's own.

    Args:
        names: registered name by the name of the model's own.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._configs: list[Any] = []

    def select(self, model: PreTrainedModel) -> list[nn.Module]:
        """Select them in every attention module, and return these."""
        modules = attention_modules(model)
        self._configs = [module.config for module in modules]
        for module in modules:
            config: Any = copy.copy(module.config)
            config._attn_implementation = self._names[implementation(module)]
            module.config = config
        return modules

    def restore(self, model: PreTrainedModel) -> list[nn.Module]:
        """Select the model's own again, and return its attention modules."""
        modules = attention_modules(model)
        for module, config in zip(modules, self._configs, strict=True):
            module.config = config
        return modules


def function_problems(key: str, value: str, model: PreTrainedModel) -> Iterator[str]:
    """Yields why no function can be put between this model's attention modules and their own; nothing if one can."""
    try:
        modules = attention_modules(model)
    except ValueError as error:
        yield problem(key, value, f"a model that takes an attention function; {error}", f"{key}=null")
        return
    if (used := implementation(modules[0])) not in WRAPPED:
        allowed = f"a model loaded with attn_implementation {' or '.join(WRAPPED)}, not {used}"
        yield problem(key, value, allowed, "model.set_attn_implementation('sdpa')")


def implementation(attention: nn.Module) -> str:
    """Name of the attention function that a module calls."""
    config: Any = attention.config
    return config._attn_implementation


def own_function(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the module would call: eager attention is not registered but defined in the module's file."""
    eager = getattr(inspect.getmodule(type(module)), "eager_attention_forward", None)
    assert eager is not None or name != "eager", f"{type(module).__name__} has no eager attention function"
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)  # pyright: ignore[reportArgumentType]


def additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The mask in the additive form that eager attention expects.

    The model builds masks for the attention that its own config names, which may have changed since.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
