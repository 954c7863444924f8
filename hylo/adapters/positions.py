"""State of the current forward pass: each token's true position, the padding, and the cache.

A hook on the base model's forward computes the positions once per pass: `position_ids` if given, else the running count
of real tokens in the attention mask (left padding does not count), else the cache offset plus 0, 1, ... Positions
derived from the mask are also passed to the model itself, which would otherwise count the padding and return different
logits for a left-padded text than for the same text alone.

Shapes: B batch, T tokens of this pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from hylo.core.errors import ConfigError, problem

Reader = Callable[[str, int, Tensor], None]
"""Gets what components choose for the tokens of a pass: its name, the layer, and the values [B, T, n] or [1, T, n]."""


class Positions:
    """Positions of the current pass. All components of a model share one instance."""

    reader: Reader | None = None
    """Listens to what components choose; None, as in training: nobody does."""

    real: Tensor | None = None
    """[B, T] bool, False for padding; None: no mask was given and every token counts."""
    cache: Cache | None = None
    """The cache passed to the model. A cache that the model creates itself appears only in its output."""
    of_keys: Tensor | None = None
    """[B, S] or [1, S] int64: positions of all tokens that the pass attends to, those in the cache first; None: they
    are not known."""

    first: Tensor | None = None
    """[B, T] int64: where in the pass the text of each token begins, if position_ids start again within a row (several
    texts in one window, hidden from each other); None: every row is one text."""

    passes: int = 0
    """Number of forward passes so far: tells one pass from the next."""

    def __init__(self) -> None:
        self._current: Tensor | None = None

    @property
    def current(self) -> Tensor:
        """[B, T] or [1, T] int64, counted from the first real token of each text."""
        assert self._current is not None, "positions are known only inside a forward pass of the adapted model"
        return self._current

    def read(self, name: str, values: Tensor, layer: int = 0) -> None:
        """Tell whoever listens what a component chooses for each token of this pass.

        Args:
            name: what it is, in every method alike: `landmark weights`.
            values: [B, T, n] or [1, T, n], n of them per token; or the same with the tokens of the batch in one row.
            layer: of the base model.
        """
        if self.reader is not None:
            self.reader(name, layer, values.detach().reshape(-1, self.current.shape[-1], values.shape[-1]))

    def follow(self, model: PreTrainedModel) -> RemovableHandle:
        """Keep `current` up to date with the model's forward passes until the handle is removed."""

        # A bound method, here and in components, so that the hook of a copied model refers to the copy.
        return model.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def _before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > 1:
            raise TypeError(f"pass everything except input_ids by keyword; got {len(args)} positional arguments")
        self.cache = kwargs.get("past_key_values")
        seen = 0 if self.cache is None else int(self.cache.get_seq_length())
        self.first = _first_of_texts(kwargs)
        self._current, kwargs = _positions_of(args, kwargs)
        self.of_keys = _positions_of_keys(self._current, kwargs, seen)
        self.passes += 1
        self.real = _real_tokens(kwargs.get("attention_mask"), seen, self._current.shape[-1])
        return args, kwargs


class OfThePass:
    """A tensor computed once for the current forward pass and its backward pass. Copies of the model start without."""

    value: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "OfThePass":
        return OfThePass()


def check_recomputation(model: PreTrainedModel, slot: str) -> None:
    """Refuse reentrant checkpointing where layers share a tensor that is computed once per pass.

    Each layer's recomputation then runs a backward pass of its own, and the second one would find the shared tensor's
    graph gone.

    Args:
        model: the base model, at the start of a pass.
        slot: the component that shares the tensor.

    Raises:
        ConfigError: layers are recomputed with use_reentrant=True.
    """
    recomputed = (module for module in model.modules() if getattr(module, "gradient_checkpointing", False))
    layer = next(recomputed, None) if model.training else None
    settings = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
    if settings.get("use_reentrant"):
        fix = 'gradient_checkpointing_kwargs={"use_reentrant": False}'
        raise ConfigError(problem("use_reentrant", True, f"False with method.{slot}, which layers share", fix))


def _positions_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    inputs = args[0] if args else kwargs.get("input_ids")
    if inputs is None:
        inputs = kwargs["inputs_embeds"]
    time = inputs.shape[1]
    if kwargs.get("position_ids") is not None:
        return kwargs["position_ids"], kwargs
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:  # with 4-D masks, positions are counted as the model does
        positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -time:]
        return positions, kwargs | {"position_ids": positions}
    cache = kwargs.get("past_key_values")
    offset = cache.get_seq_length() if cache is not None else 0
    return torch.arange(offset, offset + time, device=inputs.device).unsqueeze(0), kwargs


def _first_of_texts(kwargs: dict[str, Any]) -> Tensor | None:
    """Index of the first token of each token's text, by transformers' rule for samples packed into one row."""
    positions = kwargs.get("position_ids")
    alone = kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None
    if positions is None or positions.dim() != 2 or not alone:
        return None
    starts = F.pad(positions.diff(dim=-1) != 1, (1, 0), value=True)
    if not starts[:, 1:].any():
        return None
    return torch.arange(positions.shape[1], device=positions.device).where(starts, 0).cummax(dim=-1).values


def _positions_of_keys(current: Tensor, kwargs: dict[str, Any], seen: int) -> Tensor | None:
    """Positions of the `seen` tokens in the cache and those of the pass; None if the mask does not say."""
    mask = kwargs.get("attention_mask")
    if not seen:
        return current
    if isinstance(mask, Tensor):
        return (mask.long().cumsum(dim=-1) - 1).clamp(min=0) if mask.dim() == 2 else None
    return torch.arange(seen + current.shape[-1], device=current.device).unsqueeze(0)


def _real_tokens(mask: Any, seen: int, time: int) -> Tensor | None:
    """Which tokens of the pass are not padding, [B, T] bool; None if the mask does not say.

    `generate` builds masks of [B, 1, T, keys], boolean or additive, for caches of fixed size; in them a padding token
    does not even see itself. Hybrid models get one such mask per kind of layer.
    """
    if isinstance(mask, dict):
        mask = next((one for one in mask.values() if one is not None), None)
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    if mask.dim() == 2:
        return mask[:, -time:].bool()
    own = mask[:, 0].diagonal(offset=min(seen, mask.shape[-1] - time), dim1=1, dim2=2)
    return own if own.dtype == torch.bool else own == 0
