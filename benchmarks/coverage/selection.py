"""Simulated studies with tuned arms: what their intervals cover, with the choice left out and with it counted.

    python -m benchmarks.coverage.selection

prints the tables of docs/statistics.md, always the same ones. The unit is the standard error of the contrast by itself,
without the choice. The truth is 0: the difference of both arms' expected log PPL, each at its best candidate. So the
error of a study is the noise of its reported runs plus the regret of its cell minus that of its reference.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.coverage.intervals import KINDS, Noise, studies
from hylo.stats.arrays import LEVEL, Array
from hylo.stats.intervals import crossed_components, crossed_error, half_width
from hylo.stats.selection import regret_square

STUDIES, POOL = 2_000, 20_000
"""Studies per setting; simulated reported runs that all settings draw from."""
CANDIDATES, TUNING_SEEDS, SEEDS, WINDOWS = (4, 6, 8), (2, 3), (3, 5), 32
RATIOS = (0.1, 0.3, 1.0, 1.5, 3.0)
"""Standard deviation of one trial's log PPL, without what all candidates share, in standard errors of the contrast."""
CURVES = {"flat": (0.0, 0.05), "between": (0.2, 0.8, 1.5), "sharp": (3.0, 6.0, 100.0)}
"""What one step from the optimum costs, in standard deviations of the mean of a candidate's trials."""
TRIALS = (Noise(1, 0, 0), Noise(0.4, 0.5, 0.1))
"""Noise of a candidate's mean: from seeds alone, and from documents as well."""
REPORTED = {
    "seeds": Noise(1, 0, 0),
    "seeds, windows": Noise(0.5, 0.5, 0),
    "mixed": Noise(0.34, 0.33, 0.33),
    "windows mostly": Noise(0.1, 0.8, 0.1),
}
"""Noise of the reported contrast."""


class Tuned(NamedTuple):
    """Tuned arms [studies] whose trials have a standard deviation of 1."""

    regret: Array
    """How much worse the chosen candidate truly is than the best one."""
    variance: Array
    """Its estimate by `hylo.stats.choice_variance`."""


class World(NamedTuple):
    """How an arm depends on the candidates, and what disturbs its trials; steps are counted from the optimum."""

    curve: Callable[[Array], Array] = np.square
    """The cost of a number of steps, in units of the cost of one."""
    spread: Callable[[Array], Array] = np.ones_like
    """Noise of candidates a number of steps away, as a factor."""
    neighbours: float = 0.0
    """Correlation of the noise of two neighbours."""
    refined: bool = False
    """Whether every second candidate is tried first, then the two beside the best of them."""


def _skewed(steps: Array) -> Array:
    """Flat below the optimum and steep above it, like a loss against the learning rate."""
    return 2 * (np.exp(steps) - 1 - steps)


WORLDS = {
    "as modelled": World(),
    "skewed": World(_skewed),
    "twice as noisy above the optimum": World(spread=lambda steps: np.where(steps > 0, 2.0, 1.0)),
    "neighbours correlate by 0.5": World(neighbours=0.5),
    "refined around the best": World(refined=True),
}


class Tuning(NamedTuple):
    """How one arm was tuned, over candidates 0, 1, 2, ... steps."""

    candidates: int
    seeds: int
    cost: float
    """What one step from the optimum costs, in standard deviations of the mean of a candidate's trials."""
    optimum: float
    """Where it is, in steps."""
    noise: Noise = TRIALS[0]
    world: World = WORLDS["as modelled"]


def tuned(tuning: Tuning, rng: np.random.Generator, repeats: int = STUDIES) -> Tuned:
    """Arms tuned by trials with lucky seeds and hard windows, which all candidates share."""
    tokens = KINDS[0].tokens(WINDOWS)
    truth = tuning.cost * tuning.world.curve(np.arange(tuning.candidates, dtype=float) - tuning.optimum)
    trials = _noise(tuning, rng, repeats) + truth[:, None, None] * tokens
    tried = np.broadcast_to(np.arange(tuning.candidates), (repeats, tuning.candidates))
    if tuning.world.refined:
        tried = _refined(trials)
        trials = np.take_along_axis(trials, tried[..., None, None], 1)
    chosen = trials.sum((-2, -1)).argmin(-1)[:, None]
    regret = np.take_along_axis(truth[tried], chosen, 1)[:, 0] - truth[tried].min(1)
    variance = regret_square(tried.astype(float), trials, tokens)
    return Tuned(regret / math.sqrt(tuning.seeds), variance / tuning.seeds)


def _noise(tuning: Tuning, rng: np.random.Generator, repeats: int) -> Array:
    """Sums [studies, candidates, seeds, windows] whose candidate means differ by a standard deviation of 1."""
    kind, world, steps = KINDS[0], tuning.world, np.arange(tuning.candidates, dtype=float)
    own = studies(tuning.noise, kind, tuning.seeds, WINDOWS, rng, repeats=repeats * tuning.candidates)
    own = own.reshape(repeats, tuning.candidates, tuning.seeds, WINDOWS)
    if world.neighbours:
        mixed = np.linalg.cholesky(world.neighbours ** np.abs(steps - steps[:, None]))
        own = np.einsum("ij,njsw->nisw", mixed, own)
    own *= world.spread(steps - tuning.optimum)[:, None, None]
    lucky, hard = (rng.standard_normal((repeats, 1, *shape)) for shape in ((tuning.seeds, 1), (1, WINDOWS)))
    return own + (5 * lucky + 20 * hard) * kind.tokens(WINDOWS)


def _refined(trials: Array) -> NDArray[np.int64]:
    """The candidates tried [studies, tried]: every second one, then the two beside the best of them."""
    repeats, candidates = trials.shape[:2]
    best = 2 * trials[:, ::2].sum((-2, -1)).argmin(-1)[:, None]
    beside = np.clip(best, 2, candidates - 3) + np.array([-1, 1])
    return np.concatenate([np.broadcast_to(np.arange(0, candidates, 2), (repeats, (candidates + 1) // 2)), beside], -1)


_INVERSE_DOF = np.linspace(0, 0.5, 5_001)
_CRITICAL = half_width(1.0, 1 / np.maximum(_INVERSE_DOF, 1e-9), LEVEL)
"""Student's quantile, tabulated: computing each of the many millions needed would be slow."""


class Reported:
    """Contrasts of reported runs with a standard error of 1 and a true value of 0."""

    def __init__(self, noise: Noise, seeds: int, rng: np.random.Generator):
        self.seeds, self.rng, tokens = seeds, rng, KINDS[0].tokens(WINDOWS)
        self.pool = np.stack(crossed_components(studies(noise, KINDS[0], seeds, WINDOWS, rng, repeats=POOL), tokens))
        self.alone = self._held(self.pool, 0.0, 0.0).mean()

    def coverage(self, regret: Array, variance: Array) -> tuple[float, float]:
        """How often the interval contains 0, with the choice left out and with it counted.

        The same runs without any choice are a control variate: their coverage is known from the whole pool.

        Args:
            regret: [studies], the cell's minus its reference's.
            variance: [studies], of both.
        """
        start = self.rng.integers(POOL - regret.size + 1)
        drawn = self.pool[:, start : start + regret.size]
        control = self._held(drawn, 0.0, 0.0)
        spread = max(control.var(), 1 / regret.size)

        def estimate(held: Array) -> float:
            slope = ((held - held.mean()) * control).mean() / spread
            return float(held.mean() + slope * (self.alone - control.mean()))

        return estimate(self._held(drawn, regret, 0.0)), estimate(self._held(drawn, regret, variance))

    def _held(self, drawn: Array, regret: ArrayLike, choice: ArrayLike) -> Array:
        """Whether the interval of `hylo.stats.effect` contains 0: the wider of those with and without the choice."""
        value, seed_variance, window_variance = drawn
        halves = []
        for each in (0.0, choice) if np.any(choice) else (0.0,):
            error, dof = crossed_error(seed_variance, window_variance, self.seeds, WINDOWS, each)
            halves.append(np.interp(1 / dof, _INVERSE_DOF, _CRITICAL) * error)
        return np.abs(value + regret) <= np.max(halves, axis=0)


def coverages(
    arms: Sequence[Tuned], reported: Iterable[Reported], ratio: float, *, both: bool
) -> list[tuple[float, float]]:
    """Coverage, left out and counted, in each setting; the last of `arms` is one with a flat optimum.

    Args:
        ratio: standard deviation of a trial, in standard errors of the contrast.
        both: whether the reference is tuned too, over the same curve or a flat one.
    """
    found, flat = [], arms[-1]
    for arm in arms[:-1]:
        other = Tuned(*(np.roll(each, 1) for each in arm))  # of an independent study
        for reference in (other, flat) if both else (Tuned(0 * flat.regret, 0 * flat.variance),):
            regret, variance = arm.regret - reference.regret, arm.variance + reference.variance
            found += [contrast.coverage(ratio * regret, ratio**2 * variance) for contrast in reported]
    return found


def tunings(
    costs: Iterable[float], candidates: int, seeds: int, world: World = WORLDS["as modelled"]
) -> Iterable[Tuning]:
    """Optima on a candidate, between two, and at both ends, alternating the two kinds of noise; then a flat one."""
    count = 2 * candidates - 1 if world.refined else candidates
    middle = (count - 1) // 2
    optima = itertools.product(costs, (middle, middle + 0.5, 0, count - 1))
    for (cost, optimum), noise in zip(optima, itertools.cycle(TRIALS), strict=False):
        yield Tuning(count, seeds, cost, optimum, noise, world)
    yield Tuning(count, seeds, 0.0, 0.0, world=world)


def table(rng: np.random.Generator, repeats: int = STUDIES) -> list[str]:
    """Lowest and highest coverage over all other settings, in percent, by ratio and curve."""
    heads = "trial / contrast | optimum | one arm: left out | counted | both arms: left out | counted"
    lines = [f"| {heads} |", "|---" * 6 + "|"]
    reported = [Reported(noise, seeds, rng) for noise in REPORTED.values() for seeds in SEEDS]
    arms = {
        name: [
            [tuned(tuning, rng, repeats) for tuning in tunings(costs, candidates, seeds)]
            for candidates, seeds in itertools.product(CANDIDATES, TUNING_SEEDS)
        ]
        for name, costs in CURVES.items()
    }
    for ratio, (name, groups) in itertools.product(RATIOS, arms.items()):
        cells = []
        for both in (False, True):
            found = [pair for group in groups for pair in coverages(group, reported, ratio, both=both)]
            cells += [_range(np.array(column)) for column in zip(*found, strict=True)]
        lines.append(f"| {ratio:g} | {name} | {' | '.join(cells)} |")
    return lines


def worlds_table(rng: np.random.Generator, repeats: int = STUDIES, ratio: float = 1.0) -> list[str]:
    """The same if the model of the trials is wrong: all curves, and one arm or both."""
    lines = ["| trials | left out | counted | outside 93-97 |", "|---" * 4 + "|"]
    reported = [Reported(noise, seeds, rng) for noise in REPORTED.values() for seeds in SEEDS]
    for name, world in WORLDS.items():
        found = []
        for candidates in CANDIDATES:
            costs = itertools.chain(*CURVES.values())
            arms = [tuned(tuning, rng, repeats) for tuning in tunings(costs, candidates, TUNING_SEEDS[0], world)]
            found += [pair for both in (False, True) for pair in coverages(arms, reported, ratio, both=both)]
        without, counted = np.array(found).T
        outside = np.mean((counted < 0.93) | (counted > 0.97))
        lines.append(f"| {name} | {_range(without)} | {_range(counted)} | {100 * outside:.1f} % |")
    return lines


def _range(shares: Array) -> str:
    return f"{100 * shares.min():.1f}-{100 * shares.max():.1f}"


def main() -> None:
    """Print both tables."""
    rng = np.random.default_rng(0)
    for lines in (table(rng), [""], worlds_table(rng)):
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
