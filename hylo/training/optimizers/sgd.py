"""Stochastic gradient descent with momentum.

    m <- momentum m + (g + weight_decay w)          w <- w - lr m

Step size is proportional to the gradient, so it needs higher learning rates than AdamW. Polyak 1964,
doi 10.1016/0041-5553(64)90137-5; computed by torch.optim.SGD.
"""

from dataclasses import dataclass
from typing import Any

import torch

from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.training.optimizers.base import FLOAT, OptimizerConfig


@register("optimizer", "sgd")
@dataclass(kw_only=True, slots=True)
class SGDConfig(OptimizerConfig):
    """SGD. Weight decay is added to the gradient."""

    momentum: float = bounded(0.9, ge=0, lt=1)
    """Decay of the accumulated gradients; 0 is plain gradient descent."""

    @property
    def state_bytes(self) -> float:
        return FLOAT if self.momentum else 0

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.SGD:
        return torch.optim.SGD(groups, momentum=self.momentum)
