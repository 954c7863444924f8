"""AdamW: running mean of gradients over the root of the running mean of their squares, with decoupled weight decay.

    m <- beta1 m + (1 - beta1) g          v <- beta2 v + (1 - beta2) g^2
    w <- (1 - lr weight_decay) w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

Loshchilov and Hutter 2019, arXiv 1711.05101; computed by torch.optim.AdamW.
"""

from dataclasses import dataclass
from typing import Any

import torch

from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.training.optimizers.base import FLOAT, OptimizerConfig


@register("optimizer", "adamw")
@dataclass(kw_only=True, slots=True)
class AdamWConfig(OptimizerConfig):
    """AdamW. Weight decay is decoupled from the gradient."""

    beta1: float = bounded(0.9, ge=0, lt=1)
    """Decay of the running mean of gradients."""
    beta2: float = bounded(0.999, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: float = bounded(1e-8, gt=0)
    """Added to the root of the mean of squares."""

    @property
    def state_bytes(self) -> float:
        return 2 * FLOAT  # both running means

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        return torch.optim.AdamW(groups, betas=(self.beta1, self.beta2), eps=self.eps)
