"""Token losses of a model without its logits: the output head's input goes to hylo/kernels/linear_cross_entropy.py.

What a model does to its logits after the head is first checked on a few tokens: either nothing, or the softcap of its
config. A model that does anything else (a scale, for example), or whose head is not a frozen linear layer, is declined
with the reason, and its losses are computed from its logits.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.core.devices import is_out_of_memory
from hylo.kernels.linear_cross_entropy import linear_cross_entropy

LossFunction = Callable[..., Tensor]
"""Gives losses [B, T] in nats for hidden states [B, T, D], weight [V, D], targets [B, T], and `bias` and `softcap`."""
_CAUGHT = "_hylo_caught"
"""Attribute in which a head stores its input instead of computing logits."""


_TRIED: "WeakKeyDictionary[PreTrainedModel, tuple[str | None, float | None]]" = WeakKeyDictionary()
"""Why a model was declined, and its softcap. Cached so that the cells of a sweep try their base model only once."""


class OutputHead:
    """The output head of a model. Constructed on the plain model.

    Attributes:
        declined: why losses are computed from logits; None: they are not.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._head: Any = model.get_output_embeddings()
        self._softcap: float | None = None
        self.function: LossFunction = linear_cross_entropy
        """What computes losses from the head's input, without logits."""
        if model not in _TRIED:
            _TRIED[model] = self._refusal(), self._softcap
        self.declined, self._softcap = _TRIED[model]

    def losses(self, targets: Tensor, *args: Any, **inputs: Any) -> Tensor:
        """Negative log-likelihood of targets [B, T] in nats [B, T], 0 where a target is -100.

        Calls the model, so its hooks run as they do for logits.

        Args:
            targets: the token to predict at each position.
            args, inputs: the model's inputs.
        """
        if self.needs_logits:
            return token_losses(self._model(*args, **inputs).logits, targets)
        return self.losses_of(self._input(*args, **inputs), targets)

    def losses_of(self, h: Tensor, targets: Tensor, function: LossFunction | None = None) -> Tensor:
        """The losses [B, T] for hidden states h [B, T, D], the head's input, by the head's function or another one."""
        function = function or self.function
        return function(h, self._head.weight, targets, bias=self._head.bias, softcap=self._softcap)

    @property
    def needs_logits(self) -> bool:
        """Whether losses are computed from logits: the model was declined, or the head is trained or has hooks."""
        head = self._head
        return bool(self.declined or head.weight.requires_grad or head._forward_hooks or head._forward_pre_hooks)

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        return len(self._head.weight)

    def _input(self, *args: Any, **inputs: Any) -> Tensor:
        """The head's input, [B, T, D]."""
        vars(self._head)[_CAUGHT] = None
        vars(self._head)["forward"] = MethodType(_hand_over, self._head)
        try:
            self._model(*args, **inputs)
            return vars(self._head)[_CAUGHT]
        finally:
            del vars(self._head)["forward"], vars(self._head)[_CAUGHT]

    @torch.no_grad()
    def _refusal(self) -> str | None:
        name, head, model = type(self._model).__name__, self._head, self._model
        if head.weight.is_meta:
            return f"{name} is on the meta device"
        if type(head) is not nn.Linear:
            return f"the output head of {name} is not a linear layer"
        ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
        try:
            logits, h = model(input_ids=ids, use_cache=False).logits, self._input(input_ids=ids, use_cache=False)
        except Exception as error:  # a model that fails on so short a text may still do its work
            if is_out_of_memory(error):
                raise
            return f"{name} fails on a text of four tokens ({type(error).__name__})"
        plain = F.linear(h, head.weight, head.bias).float()
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        # Always apply a softcap from the config: small logits would hardly reveal it.
        expected = _softcapped(plain, softcap)
        if torch.allclose(logits.float(), expected, rtol=1e-3, atol=1e-4 * float(plain.abs().max())):
            self._softcap = softcap
            return None
        return f"{name} changes its logits after the output head"


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The same losses from logits [B, T, V]: the reference kernel."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


def losses_from_logits(
    h: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """A LossFunction that forms all logits."""
    return token_losses(_softcapped(F.linear(h, weight, bias).float(), softcap), targets)


def _softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _hand_over(self: nn.Module, x: Tensor) -> Tensor:
    vars(self)[_CAUGHT] = x
    return x[..., :1]
