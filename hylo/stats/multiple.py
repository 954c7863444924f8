"""Correction for several contrasts in one study."""

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import Array


def holm(p_values: ArrayLike) -> Array:
    """Holm-adjusted p-values: rejecting those below alpha keeps the family-wise error rate at alpha.

    The i-th smallest of n is multiplied by n - i + 1, made no smaller than the ones before it, and capped at 1. Valid
    under any dependence between contrasts. Holm 1979, Scandinavian Journal of Statistics 6.

    Args:
        p_values: [contrasts], in any order; for a study with several looks, those of
            `hylo.stats.sequential_p_value`.

    Returns:
        [contrasts], in the same order.

    Raises:
        ValueError: a p-value is NaN or not between 0 and 1. The caller must leave out missing ones and report their
            contrasts as not tested.
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
