"""A contrast with all that a decision needs: its interval, p-value, and what more seeds would bring.

Differences of log PPL, accuracies, and attributions of either are all a mean over seeds of sum(sums) / sum(tokens).
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
    """A mean over seeds of sum(sums) / sum(tokens), its interval, and the variance components that made it."""

    value: float
    """In the unit of sums a token: nats a token where the sums are NLL."""
    low: float
    high: float
    seeds: int
    windows: int
    seed_variance: float
    """What one seed contributes, its interaction with the windows included: S seeds divide it by S. One seed: NaN."""
    window_variance: float
    """What remains however many seeds there are. For one seed it holds that seed's interaction too."""
    level: float
    """What the interval is to cover. Of one seed it claims other windows only: "evaluation noise only"."""
    choice_variance: float = 0.0
    """What the choice of tuned settings adds, whatever the number of seeds: all of them share it. 0: nothing was tuned,
    or the interval leaves it out."""

    def p_value(self, threshold: float = 0.0) -> float:
        """Two-sided p-value of "the true value is the threshold", by Student's t with the interval's own error and
        degrees of freedom: below 1 - level just where the interval excludes the threshold.

        Without any noise it is 1 at the threshold and 0 elsewhere.
        """
        return max(self._p_value(threshold, *each) for each in self._errors(self.seeds))

    def smallest_detectable(self, power: float = 0.8, seeds: int | None = None) -> float:
        """The distance of the truth from a threshold that a two-sided test at this level finds with this power.

        The variance components count as known, so the answer is as good as they are: at three seeds, rough.

        Args:
            power: chance that the interval excludes the threshold; between 1 - level and 1.
            seeds: how many there would be; those there are by default.

        Returns:
            The unit of `value`; 0 without noise.

        Raises:
            ValueError: a power or a number of seeds that cannot be, or another number of seeds than the one there is
                (what a seed contributes is unknown then).
        """
        if not 1 - self.level < power < 1:
            raise ValueError(f"power is {power}; it must lie between 1 - level = {1 - self.level:.3g} and 1")
        errors = self._errors(self.seeds if seeds is None else seeds)
        return max(self._detectable(power, *each) for each in errors)

    def seeds_to_decide(self, threshold: float = 0.0, most: int = 1000) -> int | None:
        """The smallest number of seeds whose interval would exclude the threshold, were the value and the variance
        components exactly these; degrees of freedom as they would be with that many seeds.

        That is where the power is about one half. For planning: a rule that stops is in `hylo.stats.sequential`.

        Returns:
            None where the noise of the windows and of the choice alone is too much for any number up to `most`, and for
            one seed: what a seed contributes is unknown then.
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
        """The variances of the choice to reckon with: none, and the one there is. The wider interval holds.

        A variance that counts as known brings degrees of freedom, so that at three seeds the interval with it is often
        the narrower one; but one that covers more must not be narrower.
        """
        return (0.0, self.choice_variance) if self.choice_variance else (0.0,)

    def _errors(self, seeds: int) -> list[tuple[float, float]]:
        """Standard error and degrees of freedom with so many seeds, for each of `_choices`."""
        if self.seeds == 1:
            if seeds != 1:
                raise ValueError(
                    f"seeds is {seeds}, but what a seed contributes cannot be told from one; run two seeds or more"
                )
            # Seeds add nothing here, so their number does not matter: 2 stands for any.
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

        # The square of a noncentral t is a noncentral F: both tails in one, and scipy's t has NaN at few degrees.
        def missing(shift: float) -> float:
            return float(ncf.sf(critical**2, 1, dof, shift**2)) - power

        far = critical
        while missing(far) < 0:
            far *= 2
        return root_scalar(missing, bracket=(1e-9 * critical, far), method="brentq").root * error


def _floats(errors: Iterable[tuple[Array, Array]]) -> list[tuple[float, float]]:
    return [(float(error), float(dof)) for error, dof in errors]


def effect(sums: ArrayLike, tokens: ArrayLike, *, level: float = LEVEL, choice_variance: float = 0.0) -> Effect:
    """The effect in paired differences (or the value of one arm), with the interval that reports use.

    Several seeds: new seeds and new windows, the model of `hylo.stats.crossed_interval`. One seed: evaluation noise
    only, Student's paired interval over windows, linearised by the delta method, with W - 1 degrees of freedom.

    Args:
        sums: [seeds, windows] or [windows], complete: a cell that failed has no place here.
        tokens: [windows]; what the sums are divided by.
        level: coverage of the interval.
        choice_variance: of the effect, (unit of the value)^2: the sum of `hylo.stats.choice_variance` over the tuned
            arms of a contrast. The interval then covers the choice too, and is never narrower for it; the value stays
            where it is.

    Raises:
        ValueError: an input is empty, not finite, of another shape, or a count is not positive; fewer than two
            windows; a level that is none; a variance that is negative or not finite.
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
