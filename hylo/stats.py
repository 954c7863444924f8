"""Estimates and intervals from per-window NLL sums. Pure functions on arrays: no files, no plots.

Shapes: sums of token NLL are [seeds, windows] in nats, token counts [windows]. Windows are shared by all seeds and by
both arms of a contrast, so there is one vector of counts. Every estimate but `mean_window_ppl`, the published measure,
is a ratio of sums, never a mean of ratios: PPL = exp(sum of NLL / number of tokens). Everything is computed on log PPL
and transformed at the end.

What an interval claims depends on the number of seeds:

- one seed: "evaluation noise only", other windows of the same kind but this very training run (`window_bootstrap`);
- several seeds: new seeds and new windows (`crossed_interval`).

Windows count as exchangeable: that neighbours of one document resemble each other is not modelled.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL, RESAMPLES = 0.95, 10_000
_BATCH_CELLS = 2_000_000  # resampled values held at once: bounds memory, whatever the number of windows

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A point estimate and the two ends of its interval, in the same unit."""

    value: float
    low: float
    high: float


def perplexity(nll_per_token: float) -> float:
    """exp of a mean NLL in nats; infinite where that is too large for a number (above 709 nats)."""
    with np.errstate(over="ignore"):
        return float(np.exp(nll_per_token))


def mean_window_ppl(nll: ArrayLike, tokens: ArrayLike) -> float:
    """Arithmetic mean over windows, and then seeds, of each window's own perplexity: no estimate of PPL.

    Published numbers are of this kind where a window is a line of text. A few short lines carry most of the sum, so it
    has no interval here.

    Args and Raises: as `ratio_of_sums`.
    """
    nll, tokens = _checked("nll", nll, tokens)
    with np.errstate(over="ignore"):
        return float(np.exp(nll / tokens).mean())


def ratio_of_sums(nll: ArrayLike, tokens: ArrayLike) -> float:
    """Mean over seeds of log PPL = sum of NLL / number of tokens, in nats a token.

    Args:
        nll: [seeds, windows] or [windows], nats.
        tokens: [windows].

    Raises:
        ValueError: an input is empty, not finite, of another shape, or a count is not positive.
    """
    nll, tokens = _checked("nll", nll, tokens)
    return float((nll.sum(-1) / tokens.sum()).mean())


def ppl(
    nll: ArrayLike, tokens: ArrayLike, rng: np.random.Generator, *, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Perplexity with its interval: exp of the mean over seeds of log PPL (the geometric mean of the seeds' PPLs).

    Args and Raises: as `improvement`.
    """
    nll, tokens = _checked("nll", nll, tokens)
    return Interval(*map(perplexity, _log_interval(nll, tokens, rng, level, resamples)))


def improvement(
    nll: ArrayLike,
    reference: ArrayLike,
    tokens: ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Improvement over a reference in percent, 100 (1 - PPL_X / PPL_R), paired by seed and by window.

    Over several seeds PPL_X / PPL_R is exp of the mean over seeds of log PPL_X - log PPL_R.

    Args:
        nll: [seeds, windows], nats; [windows] is one seed.
        reference: the same windows, with the same seeds in the same order, or one row that pairs with every seed (a
            model that was not trained has no seed).
        tokens: [windows], the number of predicted tokens.
        rng: used by the bootstrap of one seed; several seeds need no random numbers.
        level: coverage of the interval.
        resamples: of the bootstrap.

    Raises:
        ValueError: an input is empty, not finite, of another shape, or a count is not positive; fewer than two windows.
    """
    nll, tokens = _checked("nll", nll, tokens)
    reference, _ = _checked("reference", reference, tokens)
    if reference.shape[0] not in (1, nll.shape[0]):
        raise ValueError(
            f"reference has {reference.shape[0]} seeds, nll has {nll.shape[0]}; pair them by seed, or give one for all"
        )
    with np.errstate(over="ignore"):
        value, low, high = -100 * np.expm1(_log_interval(nll - reference, tokens, rng, level, resamples))
    return Interval(float(value), float(high), float(low))


def window_bootstrap(
    sums: ArrayLike, tokens: ArrayLike, rng: np.random.Generator, *, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Percentile bootstrap over windows of sum(sums) / sum(tokens): evaluation noise only.

    It claims what other windows would have given for this very run, and nothing about another seed. A contrast is
    bootstrapped on its differences, which resamples the same windows in both arms. With 32 windows and normal noise a
    nominal 95 % covers about 93 %. Efron and Tibshirani 1993, chapter 13, by `scipy.stats.bootstrap`.

    Args:
        sums: [windows], NLL or NLL difference, nats.
        tokens: [windows].

    Raises:
        ValueError: as `improvement`.
    """
    sums, tokens = _checked("sums", sums, tokens)
    if sums.shape[0] != 1 or sums.shape[1] < 2:
        raise ValueError(
            f"sums has shape {sums.shape}; one seed and two or more windows are needed, evaluate more windows"
        )
    from scipy.stats import bootstrap

    result = bootstrap(
        (sums[0], tokens),
        lambda s, t, axis: s.sum(axis) / t.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        batch=max(1, _BATCH_CELLS // tokens.size),
        confidence_level=level,
        rng=rng,
    )
    ends = result.confidence_interval
    return Interval(float(sums.sum() / tokens.sum()), float(ends.low), float(ends.high))


def crossed_interval(sums: ArrayLike, tokens: ArrayLike, *, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Interval of the mean over seeds of sum(sums) / sum(tokens), for new seeds and new windows.

    All seeds see the same windows, so the values are a two-way random layout without replication, with variance
    components of seeds, windows and their interaction. With s2 the sample variance of the seeds' ratios, w2 that of the
    windows' seed means and i2 the interaction mean square (windows linearised by the delta method, so that they may
    differ in length):

        V_seed = s2 / S                                 carries the interaction once
        V_window = max(0, w2 / W - i2 / (S W))
        V = V_seed + V_window
        V / nu = V_seed / (S - 1) + V_window / (W - 1)
        interval = mean +- t(nu) sqrt(V)

    The variance is the usual analysis of variance (Searle, Casella and McCulloch 1992, chapter 4). The degrees of
    freedom nu are own design: Welch and Satterthwaite have V^2 and V_i^2 in place of V and V_i, and cover as little as
    92 % at three seeds, because a seed variance that is small by chance buys degrees of freedom besides. Here nu is
    never larger than theirs.
    Simulated with normal noise (32 and 128 windows; seed, window and interaction SDs from none to dominant), a nominal
    95 % covers 93.9 to 96.7 % at 3, 4, 5 and 10 seeds, and 90 to 97 % at 2 seeds.

    Args:
        sums: [..., seeds, windows] with two or more of each, nats; leading axes are independent problems.
        tokens: [windows].

    Returns:
        value, low and high, each of shape [...].

    Raises:
        ValueError: as `improvement`.
    """
    sums, tokens = _checked("sums", sums, tokens)
    seeds, windows = sums.shape[-2:]
    if seeds < 2 or windows < 2:
        raise ValueError(f"sums has {seeds} seeds and {windows} windows; two or more of each are needed")
    size = tokens.mean()
    ratio = sums.sum(-1) / tokens.sum()
    residual = (sums - ratio[..., None] * tokens) / size
    shared = residual.mean(-2)
    own = residual - shared[..., None, :]

    interaction = (own**2).sum((-2, -1)) / ((seeds - 1) * (windows - 1)) / (seeds * windows)
    v_seed = ratio.var(-1, ddof=1) / seeds
    v_window = np.maximum((shared**2).sum(-1) / (windows - 1) / windows - interaction, 0)
    variance = v_seed + v_window
    inverse_dof = v_seed / (seeds - 1) + v_window / (windows - 1)
    # Without any noise the interval is the point, whatever the degrees of freedom.
    dof = np.divide(variance, inverse_dof, out=np.ones_like(variance), where=inverse_dof > 0)
    from scipy.stats import t as student

    half = student.ppf((1 + level) / 2, dof) * np.sqrt(variance)
    value = ratio.mean(-1)
    return value, value - half, value + half


def params_per_pct(added_params: int, improvement: float, low: float, high: float) -> float | None:
    """Parameters paid for one percent of improvement, all arguments against the same reference.

    None where there is no such number: the interval of the improvement reaches 0, the improvement is not positive, or
    no parameter was added.

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
    """Value, low and high in nats a token: by the bootstrap for one seed, by both sources of variance for several."""
    if sums.shape[0] == 1:
        return np.array(window_bootstrap(sums, tokens, rng, level=level, resamples=resamples))
    return np.array(crossed_interval(sums, tokens, level=level))


def _checked(name: str, sums: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
    """Both as float arrays, sums with a seed axis."""
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
        raise ValueError(f"tokens[{where}] is {tokens[where]}; every window must predict one token or more")
    return sums, tokens
