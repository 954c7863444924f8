"""The number of the probe, from answers by depth. Arrays only: reports compute it without a model."""

from typing import Any

import numpy as np


def ends_minus_middle(by_depth: np.ndarray) -> Any:
    """The mean of the first and last depth minus the mean of those between, along the last axis, [..., D] to [...]."""
    return by_depth[..., [0, -1]].mean(axis=-1) - by_depth[..., 1:-1].mean(axis=-1)
