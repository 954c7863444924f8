"""Several contrasts in one study."""

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import Array


def holm(p_values: ArrayLike) -> Array:
    """Adjusted p-values: one below alpha is a finding with at most alpha of studies having any false one.

    The i-th smallest of n is multiplied by n - i + 1, made no smaller than the ones before it, and cut at 1. Holds
    however the contrasts depend on each other. Holm 1979, Scandinavian Journal of Statistics 6.

    Args:
        p_values: [contrasts], in any order; of a study that looks more than once, those of
            `hylo.stats.sequential_p_value`.

    Returns:
        [contrasts], in the order given.

    Raises:
        ValueError: a p-value is NaN or not between 0 and 1. One that is missing must be left out by the caller, who
            then says that its contrast was not tested.
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1:
        raise ValueError(f"p_values has shape {p.shape}; [contrasts] is needed")
    if not ((p >= 0) & (p <= 1)).all():
        where = int(np.argmin((p >= 0) & (p <= 1)))
        raise ValueError(f"p_values[{where}] is {p[where]}; every p-value must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1)
    return adjusted
