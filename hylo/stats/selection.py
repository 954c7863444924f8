"""Variance that choosing a tuned setting adds to a contrast.

The value with the lowest mean validation NLL is one draw: other tuning seeds might have chosen a different one, and the
chosen one may be worse than the best candidate by some regret. All reported seeds share that regret, so the spread
between seeds does not show it.
"""

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import Array, checked
from hylo.stats.intervals import crossed_components

CONTENDERS = 5
"""Candidates considered, by lowest mean: those far from the optimum do not fit a quadratic and are noisier."""

# Gauss-Hermite quadrature over a standard normal.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(25)


def choice_variance(values: ArrayLike, sums: ArrayLike, tokens: ArrayLike) -> float:
    """Mean squared regret of choosing the candidate with the lowest mean: the variance it adds to an arm.

    For a contrast, add those of its tuned arms and pass the sum to `hylo.stats.effect`. The interval is then for the
    difference between the two arms, each at its best candidate. Computed from the trials alone, without randomness:

    1. The five candidates with the lowest means are kept. V, the noise of a mean: the variance components of
       `hylo.stats.crossed_interval` for candidate x seed and candidate x window, pooled over candidates. Effects that
       all candidates share (a lucky seed, a hard window) cancel.
    2. The means are split into a quadratic in log value and the remainder. Each part is shrunk by the share of its
       square that noise explains, max(0, 1 - df V / SS), with df 2 and n - 3: a flat optimum stays flat, and a
       non-quadratic curve keeps its shape.
    3. On that curve, with noise V, each candidate would be chosen with a probability P (by Gauss-Hermite quadrature,
       exact for independent normal noise). The result is the sum of P (curve - its minimum)^2.

    The shrinkage is empirical Bayes (Efron and Morris 1973, JASA 68); the rest is own design, with simulated coverage
    in docs/statistics.md. Noise is taken as equal and independent among the five.

    Args:
        values: [candidates], the values tried, positive and distinct, in any order.
        sums: [candidates, seeds, windows], nats: NLL of the trials on the windows used for the choice; at least two
            seeds. A candidate with a non-finite sum diverged: it was tried but could not be chosen.
        tokens: [windows].

    Returns:
        (nats per token)^2. 0 where one candidate wins clearly, or all others diverged.

    Raises:
        ValueError: an input has the wrong shape, the values are not positive and distinct, there are fewer than two
            seeds or windows, a count is not positive, or every candidate diverged.
    """
    values, sums = np.asarray(values, dtype=float), np.asarray(sums, dtype=float)
    if sums.ndim != 3 or values.shape != sums.shape[:1]:
        raise ValueError(
            f"values has shape {values.shape}, sums {sums.shape}; [candidates] and [candidates, seeds, windows] are "
            "needed"
        )
    if not (np.isfinite(values) & (values > 0)).all() or np.unique(values).size < values.size:
        raise ValueError(f"values are {values.tolist()}; candidates must be finite, positive and distinct")
    if min(sums.shape[1:]) < 2:
        raise ValueError(
            f"sums has {sums.shape[1]} seeds and {sums.shape[2]} windows; two or more of each are needed to "
            "estimate how random the choice is: tune with two seeds"
        )
    finite = np.isfinite(sums).all((1, 2))
    if not finite.any():
        raise ValueError("every candidate has a sum that is not finite; nothing can have been chosen")
    kept, tokens = checked("sums", sums[finite], tokens)
    return float(regret_square(np.log(values[finite]), kept, tokens))


def regret_square(log_values: Array, sums: Array, tokens: Array) -> Array:
    """`choice_variance` for a batch of studies [...], without checks.

    Args:
        log_values: [candidates], or [..., candidates] if studies tried different values.
        sums: [..., candidates, seeds, windows], finite.
        tokens: [windows].
    """
    count = min(sums.shape[-3], CONTENDERS)
    if count == 1:
        return np.zeros(sums.shape[:-3])
    totals = sums.sum((-2, -1))
    order = totals.argsort(-1)[..., :count]
    x = np.take_along_axis(np.broadcast_to(log_values, totals.shape), order, -1)
    sums = np.take_along_axis(sums, order[..., None, None], -3)
    # Summed over n candidates, differences from their mean have variance (n - 1) V.
    _, seed_variance, window_variance = crossed_components(sums - sums.mean(-3, keepdims=True), tokens)
    noise = (seed_variance / sums.shape[-2] + window_variance).sum(-1) / (count - 1)
    means = sums.sum(-1).mean(-1) / tokens.sum()
    curve = _shrunk(x, means, noise[..., None])
    regret = curve - curve.min(-1, keepdims=True)
    return (_chances(curve, np.sqrt(noise)) * regret**2).sum(-1)


def _shrunk(x: Array, means: Array, noise: Array) -> Array:
    """Centred means [..., candidates], shrunk by the share that noise explains."""
    count = x.shape[-1]
    degree = min(2, count - 1)
    powers = np.stack([(x - x.mean(-1, keepdims=True)) ** power for power in range(degree + 1)], -1)
    basis = np.linalg.qr(powers)[0][..., 1:]  # orthonormal and orthogonal to the constant
    means = means - means.mean(-1, keepdims=True)
    quadratic = (basis @ (np.swapaxes(basis, -1, -2) @ means[..., None]))[..., 0]
    shrunk = _without_noise(quadratic, noise * degree)
    return shrunk + _without_noise(means - quadratic, noise * (count - 1 - degree)) if count > 3 else shrunk


def _without_noise(part: Array, expected: Array) -> Array:
    """The part, scaled by the share of its square in excess of `expected`, its value under noise alone."""
    square = (part**2).sum(-1, keepdims=True)
    share = np.divide(square - expected, square, out=np.zeros_like(square), where=square > expected)
    return share * part


def _chances(curve: Array, spread: Array) -> Array:
    """Probability that each candidate is the lowest of curve + independent normal noise, [..., candidates].

    P(r) = integral over z of phi(z) product over j of Phi((curve_j - curve_r) / spread - z)
    """
    from scipy.special import ndtr

    # Without noise the lowest is certain; the floor keeps the quotients finite.
    spread = np.maximum(spread, 1e-9 * np.ptp(curve, -1) + np.finfo(float).tiny)[..., None, None]
    ahead = (curve[..., None, :] - curve[..., :, None]) / spread
    itself = np.eye(curve.shape[-1], dtype=bool)
    chances = np.zeros(curve.shape)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        chances += weight * np.where(itself, 1.0, ndtr(ahead - node)).prod(-1)
    return chances / chances.sum(-1, keepdims=True)
