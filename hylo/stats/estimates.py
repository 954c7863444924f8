"""Perplexity and improvement from per-window NLL sums, with intervals.

Everything is computed on log PPL and transformed at the end.
"""

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import LEVEL, RESAMPLES, Array, Interval, checked
from hylo.stats.intervals import crossed_interval, window_bootstrap


def perplexity(nll_per_token: float) -> float:
    """exp of a mean NLL in nats; infinite where that overflows (above 709 nats)."""
    with np.errstate(over="ignore"):
        return float(np.exp(nll_per_token))


def mean_window_ppl(nll: ArrayLike, tokens: ArrayLike) -> float:
    """Arithmetic mean over windows, then seeds, of per-window perplexity; not an estimate of PPL.

    Published numbers are of this kind where a window is a line of text. A few short lines dominate the sum, so it
    has no interval here. Takes and raises the same as `ratio_of_sums`.
    """
    nll, tokens = checked("nll", nll, tokens)
    with np.errstate(over="ignore"):
        return float(np.exp(nll / tokens).mean())


def ratio_of_sums(nll: ArrayLike, tokens: ArrayLike) -> float:
    """Mean over seeds of log PPL = sum of NLL / number of tokens, in nats per token.

    Args:
        nll: [seeds, windows] or [windows], nats.
        tokens: [windows].

    Raises:
        ValueError: an input is empty, not finite or has the wrong shape, or a count is not positive.
    """
    nll, tokens = checked("nll", nll, tokens)
    return float((nll.sum(-1) / tokens.sum()).mean())


def ppl(
    nll: ArrayLike, tokens: ArrayLike, rng: np.random.Generator, *, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Perplexity with its interval: exp of the mean over seeds of log PPL (the geometric mean of the seeds' PPLs).

    Takes and raises the same as `improvement`.
    """
    nll, tokens = checked("nll", nll, tokens)
    return Interval(*map(perplexity, _log_interval(nll, tokens, rng, level, resamples)))


def difference(
    sums: ArrayLike,
    weights: ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean over seeds of sum(sums) / sum(weights) for paired differences, in nats per weight, with its interval.

    Args:
        sums: [seeds, windows], NLL of one side minus that of the other.
        weights: [windows], tokens or bytes.
        rng, level, resamples: as in `improvement`.

    Raises:
        ValueError: as in `improvement`.
    """
    sums, weights = checked("sums", sums, weights)
    return Interval(*map(float, _log_interval(sums, weights, rng, level, resamples)))


def improvement(
    nll: ArrayLike,
    reference: ArrayLike,
    tokens: ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Improvement over a reference in percent, 100 (1 - PPL_X / PPL_R), paired by seed and window.

    Over several seeds PPL_X / PPL_R is exp of the mean over seeds of log PPL_X - log PPL_R.

    Args:
        nll: [seeds, windows], nats; [windows] means one seed.
        reference: the same windows, with the same seeds in the same order, or a single row that pairs with every seed
            (the base model has no seed).
        tokens: [windows], the number of predicted tokens.
        rng: used by the bootstrap for one seed only.
        level: coverage of the interval.
        resamples: number of bootstrap resamples.

    Raises:
        ValueError: an input is empty, not finite or has the wrong shape; a count is not positive; or there are fewer
            than two windows.
    """
    nll, tokens = checked("nll", nll, tokens)
    reference, _ = checked("reference", reference, tokens)
    if reference.shape[0] not in (1, nll.shape[0]):
        raise ValueError(
            f"reference has {reference.shape[0]} seeds, nll has {nll.shape[0]}; pair them by seed, or give one for all"
        )
    with np.errstate(over="ignore"):
        value, low, high = -100 * np.expm1(difference(nll - reference, tokens, rng, level=level, resamples=resamples))
    return Interval(float(value), float(high), float(low))


def params_per_pct(added_params: int, improvement: float, low: float, high: float) -> float | None:
    """Added parameters per percent of improvement, all arguments relative to the same reference.

    None where this is undefined: the interval of the improvement reaches 0, the improvement is not positive, or no
    parameter was added.

    Raises:
        ValueError: an argument is not finite, or low > high.
    """
    if not np.isfinite([added_params, improvement, low, high]).all() or low > high:
        raise ValueError(
            f"added_params={added_params}, improvement={improvement}, interval=[{low}, {high}]: not an interval"
        )
    if added_params <= 0 or improvement <= 0 or low <= 0:
        return None
    return added_params / improvement


def _log_interval(sums: Array, tokens: Array, rng: np.random.Generator, level: float, resamples: int) -> Array:
    """Value, low and high in nats per token: bootstrap for one seed, crossed model for several."""
    if sums.shape[0] == 1:
        return np.array(window_bootstrap(sums, tokens, rng, level=level, resamples=resamples))
    return np.array(crossed_interval(sums, tokens, level=level))
