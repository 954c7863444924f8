"""Contribution of each component, from a full factorial."""

from collections.abc import Mapping
from itertools import combinations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import Array


def shapley(values: Mapping[frozenset[str], ArrayLike]) -> dict[str, Array]:
    """Shapley value of each factor: its marginal effect, averaged over all orders of adding the factors.

        phi_i = sum over T without i of |T|! (n - |T| - 1)! / n! (v(T and i) - v(T))

    The values of all factors add up to v(all) - v(none). They are linear in v: applied to NLL sums [seeds, windows]
    they are such sums again, paired by seed and window, and `hylo.stats.effect` gives their interval.
    Shapley 1953, Contributions to the Theory of Games II.

    Args:
        values: arrays of one common shape, keyed by the set of enabled factors; every subset is needed, including the
            empty one.

    Returns:
        Arrays of that shape by factor, in alphabetical order. In NLL, a factor that helps has a negative value.

    Raises:
        ValueError: a combination is missing, or a value is not finite or has a different shape.
    """
    factors = sorted(frozenset().union(*values))
    subsets = [frozenset(chosen) for size in range(len(factors) + 1) for chosen in combinations(factors, size)]
    if missing := [subset for subset in subsets if subset not in values]:
        raise ValueError(
            f"combinations {', '.join(map(_named, missing))} are missing of the {len(subsets)} of {_named(factors)}; "
            "run those cells, or leave a factor out"
        )
    v = {subset: np.asarray(values[subset], dtype=float) for subset in subsets}
    for subset, value in v.items():
        if value.shape != v[frozenset()].shape:
            raise ValueError(f"{_named(subset)} has shape {value.shape}, {{}} has {v[frozenset()].shape}: pair them")
        if not np.isfinite(value).all():
            raise ValueError(f"{_named(subset)} has a value that is not finite; every cell must be complete")

    n = len(factors)
    weight = [factorial(size) * factorial(n - size - 1) / factorial(n) for size in range(n)]
    return {
        factor: np.sum([weight[len(t)] * (v[t | {factor}] - v[t]) for t in subsets if factor not in t], axis=0)
        for factor in factors
    }


def _named(subset) -> str:
    return "{" + ", ".join(sorted(subset)) + "}"
