"""Simulated studies with a known truth: what intervals cover, and how often the sequential rule is wrong.

    python -m benchmarks.coverage.intervals

prints the tables of docs/statistics.md, always the same ones. It simulates paired differences with a true value of 0
(or of `effect`), in units in which the mean over all seeds and windows has a standard error of 1: intervals scale with
the noise, so only the shares of its sources matter.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.coverage.hierarchical import draws, resampled_ratios
from hylo.stats.arrays import LEVEL, Array
from hylo.stats.intervals import crossed_interval
from hylo.stats.sequential import LOOKS, levels

SEEDS, WINDOWS = (3, 5, 10), (16, 32, 128)
STUDIES, BOOTSTRAPPED, RESAMPLES = 4_000, 500, 1_000
"""Studies per setting, studies that are bootstrapped, and resamples (drawn once for all studies of a setting)."""
_CELLS = 4_000_000  # numbers held in memory at once


class Noise(NamedTuple):
    """Shares of the variance of a study's mean."""

    seed: float
    window: float
    interaction: float


NOISES = (
    *(Noise(1, 0, 0), Noise(0, 1, 0), Noise(0, 0, 1)),
    *(Noise(0.9, 0.1, 0), Noise(0.9, 0, 0.1), Noise(0.1, 0.9, 0), Noise(0, 0.9, 0.1), Noise(0.1, 0, 0.9)),
    *(Noise(0, 0.1, 0.9), Noise(0.5, 0.5, 0), Noise(0.5, 0, 0.5), Noise(0, 0.5, 0.5)),
    *(Noise(0.34, 0.33, 0.33), Noise(0.8, 0.1, 0.1), Noise(0.1, 0.8, 0.1), Noise(0.1, 0.1, 0.8)),
)
"""Each source from absent to the only one."""


class Windows(NamedTuple):
    """A kind of window."""

    name: str
    tokens: Callable[[int], Array]
    """Token counts of the given number of windows."""
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array]
    """Noise of windows and interaction, with variance 1."""


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_t(4, shape) / math.sqrt(2)


def _equal(windows: int) -> Array:
    return np.full(windows, 255.0)


def _unequal(windows: int) -> Array:
    """From 16 to 255 tokens, evenly in the logarithm: the longest counts 16 times as much as the shortest."""
    return np.geomspace(16, 255, windows).round()


KINDS = (
    Windows("equal, normal", _equal, _normal),
    Windows("16 to 255 tokens, normal", _unequal, _normal),
    Windows("equal, t with 4 dof", _equal, _heavy),
)


def studies(
    noise: Noise, kind: Windows, seeds: int, windows: int, rng: np.random.Generator, *, repeats: int, effect: float = 0
) -> Array:
    """Sums [repeats, seeds, windows] of studies whose true value is `effect` standard errors."""
    tokens = kind.tokens(windows)
    effective = tokens.sum() ** 2 / (tokens**2).sum()
    sums = np.full((repeats, seeds, windows), float(effect))
    if noise.seed:
        sums += math.sqrt(noise.seed * seeds) * rng.standard_normal((repeats, seeds, 1))
    if noise.window:
        sums += math.sqrt(noise.window * effective) * kind.draw(rng, (repeats, 1, windows))
    if noise.interaction:
        sums += math.sqrt(noise.interaction * effective * seeds) * kind.draw(rng, (repeats, seeds, windows))
    return sums * tokens


class Coverage(NamedTuple):
    """How often each interval contains the truth."""

    effect: float
    hierarchical: float
    seed_bootstrap: float


def coverage(
    noise: Noise,
    kind: Windows,
    seeds: int,
    windows: int,
    rng: np.random.Generator,
    *,
    repeats: int = STUDIES,
    bootstrapped: int = BOOTSTRAPPED,
    resamples: int = RESAMPLES,
) -> Coverage:
    """Coverage of nominal 95 % intervals: the one that `effect` uses, and two percentile bootstraps."""
    tokens, held = kind.tokens(windows), 0
    for size in _batches(repeats, seeds * windows):
        sums = studies(noise, kind, seeds, windows, rng, repeats=size)
        _, low, high = crossed_interval(sums, tokens)
        held += _holds(low, high)
    sums = studies(noise, kind, seeds, windows, rng, repeats=bootstrapped)
    by_seed, by_window = draws(seeds, windows, rng, resamples)
    ratio = sums.sum(-1) / tokens.sum()
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    both = np.quantile(resampled_ratios(sums, tokens, by_seed, by_window), ends, axis=-1)
    alone = np.quantile(ratio @ by_seed.T / seeds, ends, axis=-1)
    return Coverage(held / repeats, _holds(*both) / bootstrapped, _holds(*alone) / bootstrapped)


def _holds(low: Array, high: Array) -> int:
    return int(((low <= 0) & (high >= 0)).sum())


def _batches(repeats: int, cells: int) -> Iterator[int]:
    size = max(1, _CELLS // cells)
    yield from (min(size, repeats - start) for start in range(0, repeats, size))


class Outcome(NamedTuple):
    """The outcome of studies with looks."""

    excluded: float
    """Share of studies in which the interval of some look excluded 0. If 0 is true, that is the error rate; as
    intervals move with the truth, it is also how often any truth, "too small to matter" or not, is excluded."""
    seeds: float
    """Mean number of seeds used."""


def sequential(
    noise: Noise,
    effect: float,
    rng: np.random.Generator,
    *,
    kind: Windows = KINDS[0],
    windows: int = 32,
    looks: Sequence[int] = LOOKS,
    spends: Sequence[float] | None = None,
    repeats: int = STUDIES,
) -> Outcome:
    """Studies that stop at the first look whose interval excludes 0, or at the last one.

    Args:
        effect: the truth, in standard errors of a study with all seeds.
        spends: 1 - level at each look; those of `hylo.stats.levels` by default.
    """
    spends = [1 - level for level in levels(looks).values()] if spends is None else spends
    tokens, found = kind.tokens(windows), np.zeros(2)
    for size in _batches(repeats, looks[-1] * windows):
        sums = studies(noise, kind, looks[-1], windows, rng, repeats=size, effect=effect)
        excluded = np.zeros((size, len(looks)), dtype=bool)
        for i, (seeds, spend) in enumerate(zip(looks, spends, strict=True)):
            _, low, high = crossed_interval(sums[:, :seeds], tokens, level=1 - spend)
            excluded[:, i] = (low > 0) | (high < 0)
        stopped = np.where(excluded.any(1), np.array(looks)[excluded.argmax(1)], looks[-1])
        found += excluded.any(1).sum(), stopped.sum()
    return Outcome(*(found / repeats))


def coverage_table(rng: np.random.Generator) -> list[str]:
    """Lowest and highest over the noises, in percent: coverage, and the error rate of the sequential rule."""
    names, seeds = ("effect", "hierarchical", "seeds only"), ", ".join(map(str, SEEDS))
    heads = [*(f"{name}: {seeds} seeds" for name in names), "rule wrong"]
    lines = [f"| windows | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for kind in KINDS:
        for windows in WINDOWS:
            covered = np.array(
                [[coverage(noise, kind, count, windows, rng) for noise in NOISES] for count in SEEDS]
            )  # [seeds, noises, intervals]
            wrong = np.array([sequential(noise, 0, rng, kind=kind, windows=windows).excluded for noise in NOISES])
            cells = [", ".join(_range(covered[i, :, j]) for i in range(len(SEEDS))) for j in range(len(names))]
            lines.append(f"| {windows}, {kind.name} | {' | '.join([*cells, _range(wrong)])} |")
    return lines


def _range(shares: Array) -> str:
    return f"{100 * shares.min():.1f}-{100 * shares.max():.1f}"


SPLITS: dict[str, Callable[[int], float]] = {
    "(seeds - 1)": lambda seeds: seeds - 1,
    "equal": lambda seeds: 1,
    "(seeds - 1)^2": lambda seeds: (seeds - 1) ** 2,
    "last look only": lambda seeds: 1e-9 if seeds < LOOKS[-1] else 1,
}
"""Ways to divide 0.05 among the looks, by what the spends are proportional to. The first is in use."""
_SEQUENTIAL = {
    "seeds only": Noise(1, 0, 0),
    "windows mostly": Noise(0.1, 0.8, 0.1),
    "interaction only": Noise(0, 0, 1),
    "all three": Noise(0.34, 0.33, 0.33),
}


def sequential_table(rng: np.random.Generator) -> list[str]:
    """Error rate, power and mean number of seeds, by noise and by split of the 0.05."""
    effects = (3, 5)
    heads = [f"truth {effect}: decided, seeds" for effect in effects]
    lines = [f"| noise | split | wrong | {' | '.join(heads)} |", "|---" * (3 + len(effects)) + "|"]
    for label, noise in _SEQUENTIAL.items():
        for split, weight in SPLITS.items():
            weights = np.array([weight(seeds) for seeds in LOOKS], dtype=float)
            spends = list((1 - LEVEL) * weights / weights.sum())
            wrong, *found = (sequential(noise, effect, rng, spends=spends) for effect in (0, *effects))
            cells = [f"{100 * outcome.excluded:.0f} %, {outcome.seeds:.1f}" for outcome in found]
            lines.append(f"| {label} | {split} | {100 * wrong.excluded:.1f} % | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print both tables."""
    rng = np.random.default_rng(0)
    for line in (*coverage_table(rng), "", *sequential_table(rng)):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
