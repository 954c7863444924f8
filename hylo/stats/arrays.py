"""Types and input checks shared by hylo.stats."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL, RESAMPLES = 0.95, 10_000

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A point estimate and the bounds of its interval, in the same unit."""

    value: float
    low: float
    high: float


def checked(name: str, sums: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
    """Return both as validated float arrays, `sums` with a seed axis.

    Raises:
        ValueError: an input is empty, not finite or has the wrong shape, or a count is not positive.
    """
    sums, tokens = np.atleast_2d(np.asarray(sums, dtype=float)), np.asarray(tokens, dtype=float)
    if tokens.ndim != 1 or sums.size == 0 or sums.shape[-1] != tokens.size:
        raise ValueError(
            f"{name} has shape {sums.shape}, tokens {tokens.shape}; [seeds, windows] and [windows] are needed"
        )
    if not np.isfinite(sums).all():
        where = np.argwhere(~np.isfinite(sums))[0]
        raise ValueError(f"{name}{where.tolist()} is {sums[tuple(where)]}; every sum must be finite")
    if not (np.isfinite(tokens) & (tokens > 0)).all():
        where = int(np.argmin(np.isfinite(tokens) & (tokens > 0)))
        raise ValueError(f"tokens[{where}] is {tokens[where]}; every window must predict at least one token")
    return sums, tokens


def checked_level(level: float) -> float:
    """Return the level if it lies strictly between 0 and 1.

    Raises:
        ValueError: it does not.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, usually {LEVEL}")
    return level
