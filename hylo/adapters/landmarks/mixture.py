"""Base of the position-adaptive landmark designs: a mixture of learned vectors added after the final norm.

    out = h + a (w L)        w = softmax(position_logits + C h)

L [K, d] ~ N(0, 0.02^2), C [K, d] and P [N, K] start at zero (w is uniform at step 0) and the scalar a at 0.1, so the
output at step 0 is within a few thousandths of h: close to the base model, but not equal to it.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.component import AtStart, BuildContext, Component, ComponentConfig, constant, normal, zeros
from hylo.adapters.landmarks.after_norm import AfterNorm
from hylo.core.schema import bounded
from hylo.models.architecture import hidden_size


@dataclass(kw_only=True, slots=True)
class MixtureConfig(ComponentConfig):
    """Sizes of the mixture."""

    at_start: ClassVar[AtStart] = AtStart.near
    after_final_norm: ClassVar[bool] = True

    num_landmarks: int = bounded(8, ge=1)
    """K, the number of learned vectors."""
    num_buckets: int = bounded(32, ge=2)
    """N, the number of position buckets."""
    max_position: int | None = bounded(None, ge=2)
    """P_max in tokens, the end of the buckets; None: the run's context length."""

    def mixture_parameter_count(self, context: BuildContext) -> int:
        """Number of scalars: K d for L, K d for C, N K for P, 1 for a."""
        return 2 * self.num_landmarks * hidden_size(context.model) + self.num_buckets * self.num_landmarks + 1


class MixtureLandmark(Component):
    """Learned vectors mixed into the last hidden state by position and content.

    Shapes: B batch, T tokens, D hidden size, K landmarks, N buckets.
    """

    def __init__(self, config: MixtureConfig, context: BuildContext) -> None:
        super().__init__()
        width, K, N = hidden_size(context.model), config.num_landmarks, config.num_buckets
        self.L = context.parameter("landmark.L", (K, width), normal(0.02))
        self.C = context.parameter("landmark.C", (K, width), zeros)
        self.P = context.parameter("landmark.P", (N, K), zeros)
        self.a = context.parameter("landmark.a", (), constant(0.1))
        self.positions = context.positions
        self.max_position = config.max_position or context.context_length
        self._after_norm: AfterNorm | None = None

    @abstractmethod
    def position_logits(self) -> Tensor:
        """The positional part of the mixture's logits for the current pass: [B, T, K] or [1, T, K]."""

    def forward(self, h_BTD: Tensor) -> Tensor:
        w_BTK = F.softmax(self.position_logits() + F.linear(h_BTD.to(self.C.dtype), self.C).float(), dim=-1)
        self.positions.read("landmark weights", w_BTK)
        return h_BTD + (w_BTK @ (self.a * self.L)).to(h_BTD.dtype)

    def merge_refusal(self) -> str:
        return "what it adds depends on the token's position and text, which no weight can express"

    def attach(self, model: PreTrainedModel) -> None:
        self._after_norm = AfterNorm(model, self.positions, self)

    def detach(self, model: PreTrainedModel) -> None:
        assert self._after_norm is not None, "detach follows attach"
        self._after_norm.remove()
