"""The usual bootstrap for several seeds, for comparison. Reports do not use it."""

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import LEVEL, RESAMPLES, Array, Interval, checked, checked_level


def hierarchical_bootstrap(
    sums: ArrayLike, tokens: ArrayLike, rng: np.random.Generator, *, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Percentile interval over resampled seeds and, within them, resampled windows: the same windows for all seeds.

    In simulation (docs/statistics.md) it covers far less than its nominal level with few seeds that differ, and too
    much if their interaction with the windows is most of the noise. A resample of few seeds varies too little, and the
    interaction is counted by seeds, by windows and by both. Reports therefore use `hylo.stats.effect`.

    The pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1(2), which shows the latter.

    Args:
        sums: [seeds, windows], paired differences; two or more of each.
        tokens: [windows].

    Raises:
        ValueError: as `hylo.stats.effect`, and for one seed or window: nothing would be resampled.
    """
    sums, tokens = checked("sums", sums, tokens)
    checked_level(level)
    if sums.ndim != 2 or min(sums.shape) < 2:
        raise ValueError(f"sums has shape {sums.shape}; [seeds, windows] with two or more of each is needed")
    seeds, windows = sums.shape
    drawn = resampled_ratios(sums, tokens, *draws(seeds, windows, rng, resamples))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float((sums.sum(-1) / tokens.sum()).mean()), float(low), float(high))


def draws(seeds: int, windows: int, rng: np.random.Generator, resamples: int) -> tuple[Array, Array]:
    """How often each resample takes each seed [resamples, seeds] and each window [resamples, windows]."""
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    by_window = rng.multinomial(windows, np.full(windows, 1 / windows), size=resamples)
    return by_seed.astype(float), by_window.astype(float)


def resampled_ratios(sums: Array, tokens: Array, by_seed: Array, by_window: Array) -> Array:
    """Ratios of sums of the resamples, [..., resamples], of sums [..., seeds, windows]."""
    windows_SR = sums @ by_window.T
    return np.einsum("...sr,rs->...r", windows_SR, by_seed) / by_seed.shape[1] / (by_window @ tokens)
