"""What every choice of `trainer/optimizer` is. Learning rate, warm-up and decay belong to the trainer and hold for all.

A checkpoint keeps, beside the trained tensors, what the optimizer's `state_dict` holds: tensors and numbers of each
trained tensor, numbers of each group. An optimizer that keeps anything else cannot be continued where it was stopped.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from hylo.core.schema import bounded

FLOAT = 4
"""Bytes of a float32."""


@dataclass(kw_only=True, slots=True)
class OptimizerConfig(ABC):
    """Settings of an optimizer. Subclasses add their own."""

    weight_decay: float = bounded(0.0, ge=0)
    """Decay of matrices; vectors and scalars have none. How it acts is told where the optimizer is."""

    @property
    @abstractmethod
    def state_bytes(self) -> float:
        """Memory that the optimizer keeps for each trained number, in bytes, about; gradients are counted elsewhere."""

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of groups of parameters.

        Arguments:
            groups: each with `params`, and with its own `lr` and `weight_decay`, which come before what the optimizer
                has for all. The loop sets `lr` before every step.
        """
