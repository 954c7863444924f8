"""Token losses of a model without its logits: the output head's input goes to hylo/kernels/linear_cross_entropy.py.

What a model does to its logits after the head (a softcap, a scale) is tried before on a few tokens: nothing, or the
softcap of its config. A model that does anything else, or whose head is no frozen linear layer, is declined with the
reason, and its losses come from its logits.
"""

from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.kernels.linear_cross_entropy import linear_cross_entropy

_CAUGHT = "_hylo_caught"
"""Attribute of a head that hands over its input instead of computing logits."""


_TRIED: "WeakKeyDictionary[PreTrainedModel, tuple[str | None, float | None]]" = WeakKeyDictionary()
"""Why a model was declined, and its softcap: the cells of a sweep try their base model once."""


class OutputHead:
    """The output head of a model. Made on the plain model.

    Attributes:
        declined: why its losses come from logits; None: they do not.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._head: Any = model.get_output_embeddings()
        self._softcap: float | None = None
        if model not in _TRIED:
            _TRIED[model] = self._refusal(), self._softcap
        self.declined, self._softcap = _TRIED[model]

    def losses(self, targets: Tensor, *args: Any, **inputs: Any) -> Tensor:
        """Negative log-likelihood of targets [B, T] in nats [B, T], 0 where a target is -100; for the model's inputs.

        Calls the model, whose hooks run as they do for logits.
        """
        head = self._head
        if self.declined or head.weight.requires_grad or head._forward_hooks or head._forward_pre_hooks:
            return token_losses(self._model(*args, **inputs).logits, targets)
        h_BTD = self._input(*args, **inputs)
        return linear_cross_entropy(h_BTD, head.weight, targets, bias=head.bias, softcap=self._softcap)

    def _input(self, *args: Any, **inputs: Any) -> Tensor:
        """What the head is given, [B, T, D]."""
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
            return f"{name} has no numbers yet"
        if type(head) is not nn.Linear:
            return f"the output head of {name} is no linear layer"
        ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
        logits, h = model(input_ids=ids, use_cache=False).logits, self._input(input_ids=ids, use_cache=False)
        plain = F.linear(h, head.weight, head.bias)
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        # A softcap in the config is never left out, although small logits would hardly show it.
        expected = plain if softcap is None else softcap * torch.tanh(plain / softcap)
        if torch.allclose(logits, expected, rtol=1e-3, atol=1e-4 * float(plain.abs().max())):
            self._softcap = softcap
            return None
        return f"{name} changes its logits after the output head"


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The same from logits [B, T, V]: the reference."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


def _hand_over(self: nn.Module, x: Tensor) -> Tensor:
    vars(self)[_CAUGHT] = x
    return x[..., :1]
