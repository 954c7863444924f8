"""A contrast with everything a decision needs: interval, p-value, and power with more seeds.

Differences in log PPL, accuracies, and attributions of either are all means over seeds of sum(sums) / sum(tokens).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from hylo.stats.arrays import LEVEL, Array, checked, checked_level
from hylo.stats.intervals import crossed_components, crossed_error, half_width, linearised


@dataclass(frozen=True)
class Effect:
    """A mean over seeds of sum(sums) / sum(tokens), its interval, and the variance components behind it."""

    value: float
    """In the unit of `sums` per token: nats per token for NLL."""
    low: float
    high: float
    seeds: int
    windows: int
    seed_variance: float
    """Variance from one seed, including its interaction with windows; S seeds divide it by S. NaN for one seed."""
    window_variance: float
    """Variance that more seeds do not reduce. With one seed it also contains that seed's interaction."""
    level: float
    """Nominal coverage of the interval. With one seed it covers new windows only: "evaluation noise only"."""
    choice_variance: float = 0.0
    """Variance added by choosing tuned settings. All seeds share it, so more seeds do not reduce it. 0: nothing was
    tuned, or the interval ignores it."""

    def p_value(self, threshold: float = 0.0) -> float:
        """Two-sided p-value for "the true value equals the threshold".

        Student's t with the interval's own standard error and degrees of freedom, so it is below 1 - level exactly
        when the interval excludes the threshold. Without any noise it is 1 at the threshold and 0 elsewhere.
        """
        return max(self._p_value(threshold, *each) for each in self._errors(self.seeds))

    def smallest_detectable(self, power: float = 0.8, seeds: int | None = None) -> float:
        """Smallest distance between truth and threshold that a two-sided test at this level detects with this power.

        The variance components are treated as known, so the result is only as good as they are: rough at three seeds.

        Args:
            power: probability that the interval excludes the threshold; between 1 - level and 1.
            seeds: number of seeds to assume; the current number by default.

        Returns:
            A distance in the unit of `value`; 0 without noise.

        Raises:
            ValueError: the power or number of seeds is impossible, or this is a one-seed effect and `seeds` is not 1
                (the seed variance is unknown).
        """
        if not 1 - self.level < power < 1:
            raise ValueError(f"power is {power}; it must lie between 1 - level = {1 - self.level:.3g} and 1")
        errors = self._errors(self.seeds if seeds is None else seeds)
        return max(self._detectable(power, *each) for each in errors)

    def seeds_to_decide(self, threshold: float = 0.0, most: int = 1000) -> int | None:
        """Smallest number of seeds whose interval would exclude the threshold if the estimates were exact.

        Value and variance components are taken as they are; degrees of freedom are those of that many seeds. Power is
        about one half there. For planning only: the stopping rule is in `hylo.stats.sequential`.

        Returns:
            None if window and choice noise alone are too large for any number up to `most`, or if there is only one
            seed (the seed variance is unknown).
        """
        if self.seeds == 1:
            return None
        counts = np.arange(2, most + 1)
        errors = [
            crossed_error(self.seed_variance, self.window_variance, counts, self.windows, choice)
            for choice in self._choices()
        ]
        half = np.max([half_width(*each, self.level) for each in errors], axis=0)
        enough = half < abs(self.value - threshold)
        return int(counts[enough.argmax()]) if enough.any() else None

    def _choices(self) -> tuple[float, ...]:
        """Choice variances to evaluate: zero and the actual one; the wider interval is reported.

        A variance treated as known adds degrees of freedom, so at three seeds the interval that includes it is often
        the narrower one. An interval that covers more must not be narrower.
        """
        return (0.0, self.choice_variance) if self.choice_variance else (0.0,)

    def _errors(self, seeds: int) -> list[tuple[float, float]]:
        """Standard error and degrees of freedom with this many seeds, for each of `_choices`."""
        if self.seeds == 1:
            if seeds != 1:
                raise ValueError(
                    f"seeds is {seeds}, but what a seed contributes cannot be estimated from one; run two seeds or more"
                )
            # The seed variance is 0 here, so any number of seeds will do.
            with_choice = [
                crossed_error(0.0, self.window_variance, 2, self.windows, choice) for choice in self._choices()[1:]
            ]
            return [(math.sqrt(self.window_variance), self.windows - 1), *_floats(with_choice)]
        if seeds < 2:
            raise ValueError(f"seeds is {seeds}; the crossed model needs two or more")
        return _floats(
            crossed_error(self.seed_variance, self.window_variance, seeds, self.windows, choice)
            for choice in self._choices()
        )

    def _p_value(self, threshold: float, error: float, dof: float) -> float:
        from scipy.stats import t as student

        if error == 0:
            return float(self.value == threshold)
        return float(2 * student.sf(abs(self.value - threshold) / error, dof))

    def _detectable(self, power: float, error: float, dof: float) -> float:
        from scipy.optimize import root_scalar
        from scipy.stats import ncf

        if error == 0:
            return 0.0
        critical = float(half_width(1.0, dof, self.level))

        # A squared noncentral t is a noncentral F: it covers both tails, and scipy's noncentral t is NaN at few dof.
        def missing(shift: float) -> float:
            return float(ncf.sf(critical**2, 1, dof, shift**2)) - power

        far = critical
        while missing(far) < 0:
            far *= 2
        return root_scalar(missing, bracket=(1e-9 * critical, far), method="brentq").root * error


def _floats(errors: Iterable[tuple[Array, Array]]) -> list[tuple[float, float]]:
    return [(float(error), float(dof)) for error, dof in errors]


def effect(sums: ArrayLike, tokens: ArrayLike, *, level: float = LEVEL, choice_variance: float = 0.0) -> Effect:
    """Effect in paired differences (or the value of one arm), with the interval that reports use.

    Several seeds: new seeds and new windows, by the model of `hylo.stats.crossed_interval`. One seed: evaluation noise
    only, by Student's paired interval over windows, linearised by the delta method, with W - 1 degrees of freedom.

    Args:
        sums: [seeds, windows] or [windows]; must be complete, without failed runs.
        tokens: [windows]; what the sums are divided by.
        level: coverage of the interval.
        choice_variance: (unit of the value)^2, the sum of `hylo.stats.choice_variance` over the tuned arms of a
            contrast. The interval then covers the choice as well and is never narrower for it; the value is unchanged.

    Raises:
        ValueError: an input is empty, not finite or has the wrong shape; a count is not positive; there are fewer than
            two windows; the level is not in (0, 1); or the variance is negative or not finite.
    """
    sums, tokens = checked("sums", sums, tokens)
    checked_level(level)
    if not 0 <= choice_variance < math.inf:
        raise ValueError(f"choice_variance is {choice_variance}; a variance must be finite and 0 or more")
    if sums.ndim != 2 or sums.shape[1] < 2:
        raise ValueError(f"sums has shape {sums.shape}; [seeds, windows] with two windows or more is needed")
    seeds, windows = sums.shape
    value, seed_variance, window_variance = map(
        float, crossed_components(sums, tokens) if seeds > 1 else _one_seed(sums, tokens)
    )
    bare = Effect(value, value, value, seeds, windows, seed_variance, window_variance, level, float(choice_variance))
    half = max(float(half_width(*each, level)) for each in bare._errors(seeds))
    return replace(bare, low=value - half, high=value + half)


def _one_seed(sums: Array, tokens: Array) -> tuple[float, float, float]:
    ratio, residual = linearised(sums, tokens)
    windows = tokens.size
    return float(ratio[0]), math.nan, float((residual**2).sum() / (windows - 1) / windows)
