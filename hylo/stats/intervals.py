"""Intervals for a ratio of sums: `window_bootstrap` for one seed, `crossed_interval` for several.

With one seed an interval covers evaluation noise only, i.e. new windows but the same training run. With several it
covers new seeds and new windows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import LEVEL, RESAMPLES, Array, Interval, checked, checked_level

_DRAWN_AT_ONCE = 100_000  # resampled values held at once: few enough for the processor's cache
_KNOWN = 1e6  # degrees of freedom of a variance treated as known; scipy's noncentral F is NaN at infinity


def window_bootstrap(
    sums: ArrayLike, tokens: ArrayLike, rng: np.random.Generator, *, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Percentile bootstrap over windows of sum(sums) / sum(tokens): evaluation noise only.

    It says what other windows would have given for the same run, and nothing about another seed. A contrast is
    bootstrapped on its differences, which resamples the same windows in both arms. With few windows it undercovers
    slightly (docs/statistics.md). Efron and Tibshirani 1993, chapter 13.

    Args:
        sums: [windows], NLL or NLL difference, nats.
        tokens: [windows].
        rng: source of the resamples.
        level: coverage of the interval.
        resamples: number of bootstrap resamples.

    Raises:
        ValueError: as in `hylo.stats.improvement`.
    """
    sums, tokens = checked("sums", sums, tokens)
    if sums.shape[0] != 1 or sums.shape[1] < 2:
        raise ValueError(
            f"sums has shape {sums.shape}; one seed and two or more windows are needed, evaluate more windows"
        )
    checked_level(level)
    low, high = np.quantile(_resampled(sums[0], tokens, rng, resamples), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / tokens.sum()), float(low), float(high))


def _resampled(sums: Array, tokens: Array, rng: np.random.Generator, resamples: int) -> Array:
    """Ratios [resamples] over windows drawn with replacement: the draws of `scipy.stats.bootstrap`.

    A report has thousands of these, so nothing but the draws and their sums is computed.
    """
    windows, equal = tokens.size, bool((tokens == tokens[0]).all())
    found = []
    for drawn in _parts(resamples, max(1, _DRAWN_AT_ONCE // windows)):
        chosen = rng.integers(0, windows, (drawn, windows))
        weight = windows * tokens[0] if equal else tokens.take(chosen).sum(axis=1)
        found.append(sums.take(chosen).sum(axis=1) / weight)
    return np.concatenate(found)


def _parts(total: int, most: int) -> Iterator[int]:
    """A total, in parts of at most this size."""
    yield from (min(most, total - done) for done in range(0, total, most))


def crossed_interval(sums: ArrayLike, tokens: ArrayLike, *, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Interval for the mean over seeds of sum(sums) / sum(tokens), covering new seeds and new windows.

    All seeds see the same windows, so the values form a two-way random layout without replication, with variance
    components for seeds, windows and their interaction. With s2 the sample variance of the seeds' ratios, w2 that of
    the windows' seed means and i2 the interaction mean square (windows linearised by the delta method, so that they may
    differ in length):

        V_seed = s2 / S                                 includes the interaction once
        V_window = max(0, w2 / W - i2 / (S W))
        V = V_seed + V_window
        V / nu = V_seed / (S - 1) + V_window / (W - 1)
        interval = mean +- t(nu) sqrt(V)

    The variance is the usual analysis of variance (Searle, Casella and McCulloch 1992, chapter 4). The degrees of
    freedom nu are own design: Welch-Satterthwaite, with V^2 and V_i^2 in place of V and V_i, undercovers at three
    seeds because a seed variance that is small by chance also gains degrees of freedom. Here nu is never larger than
    theirs. Simulated coverage is in docs/statistics.md: close to nominal from three seeds on, less reliable at two.

    Args:
        sums: [..., seeds, windows], at least two of each, nats; leading axes are independent problems.
        tokens: [windows].
        level: coverage of the interval.

    Returns:
        value, low and high, each of shape [...].

    Raises:
        ValueError: as in `hylo.stats.improvement`.
    """
    value, seed_variance, window_variance = crossed_components(sums, tokens)
    seeds, windows = np.shape(sums)[-2:]
    half = half_width(*crossed_error(seed_variance, window_variance, seeds, windows), level)
    return value, value - half, value + half


class Components(NamedTuple):
    """An estimate and its variance components, each of shape [...]."""

    value: Array
    seed_variance: Array
    """s2: variance contributed by one seed, including the interaction. S seeds divide it by S."""
    window_variance: Array
    """V_window: variance that more seeds do not reduce."""


def crossed_components(sums: ArrayLike, tokens: ArrayLike) -> Components:
    """Variance components of `crossed_interval`; takes and raises the same."""
    sums, tokens = checked("sums", sums, tokens)
    seeds, windows = sums.shape[-2:]
    if seeds < 2 or windows < 2:
        raise ValueError(f"sums has {seeds} seeds and {windows} windows; two or more of each are needed")
    ratio, residual = linearised(sums, tokens)
    shared = residual.mean(-2)
    own = residual - shared[..., None, :]
    interaction = (own**2).sum((-2, -1)) / ((seeds - 1) * (windows - 1)) / (seeds * windows)
    v_window = np.maximum((shared**2).sum(-1) / (windows - 1) / windows - interaction, 0)
    return Components(ratio.mean(-1), ratio.var(-1, ddof=1), v_window)


def linearised(sums: Array, tokens: Array) -> tuple[Array, Array]:
    """Ratios [..., seeds], and W times each window's influence on them [..., seeds, windows] (delta method)."""
    ratio = sums.sum(-1) / tokens.sum()
    return ratio, (sums - ratio[..., None] * tokens) / tokens.mean()


def crossed_error(
    seed_variance: ArrayLike,
    window_variance: ArrayLike,
    seeds: ArrayLike,
    windows: int,
    choice_variance: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """Standard error and degrees of freedom of a mean over seeds, from its variance components; all broadcast.

    The choice variance (`hylo.stats.choice_variance`) is added undivided and treated as known: no term in V / nu.
    """
    seeds = np.asarray(seeds)
    v_seed, v_window = np.asarray(seed_variance) / seeds, np.asarray(window_variance, dtype=float)
    variance = v_seed + v_window + np.asarray(choice_variance)
    inverse_dof = v_seed / (seeds - 1) + v_window / (windows - 1)
    # Without any noise the interval is a point, whatever the degrees of freedom.
    dof = np.divide(variance, inverse_dof, out=np.full_like(variance, _KNOWN), where=inverse_dof * _KNOWN > variance)
    return np.sqrt(variance), dof


def half_width(error: ArrayLike, dof: ArrayLike, level: float) -> Array:
    """Half-width of Student's interval."""
    from scipy.stats import t as student

    return student.ppf((1 + level) / 2, dof) * np.asarray(error)
