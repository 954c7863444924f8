"""The interface of an optimizer config. Learning rate, warm-up and decay belong to the trainer and apply to all.

Besides the trained tensors, a checkpoint keeps these parts of the optimizer's `state_dict`: tensors and scalars per
trained tensor, and scalars per parameter group. An optimizer with any other state cannot be resumed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from hylo.core.schema import bounded

FLOAT = 4
"""Bytes per float32."""


@dataclass(kw_only=True, slots=True)
class OptimizerConfig(ABC):
    """Settings of an optimizer. Subclasses add their own."""

    weight_decay: float = bounded(0.0, ge=0)
    """Weight decay of matrices; vectors and scalars have none. Each optimizer documents how it is applied."""

    @property
    @abstractmethod
    def state_bytes(self) -> float:
        """Approximate bytes of optimizer state per trained parameter, without gradients."""

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Builds the optimizer for parameter groups.

        Args:
            groups: each with `params`, and its own `lr` and `weight_decay`, which take precedence over the optimizer's
                defaults. The loop sets `lr` before every step.
        """
