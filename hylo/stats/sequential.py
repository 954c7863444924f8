"""When there are enough seeds: a stopping rule with several looks and an error rate of at most 5 %.

Seeds are added until every contrast is decided, so its interval is inspected more than once, and the first one that
happens to exclude 0 ends the search. At 95 % each, four looks would err more often than one. So each look has its own
level:

    level(look) = 1 - spend(look),   spend(look) = 0.05 (seeds - 1) / sum over looks of (seeds - 1)

The spends add up to 0.05, so by the union bound all intervals of a contrast hold simultaneously in 95 % of studies,
however the looks depend on each other. Whichever look decided a contrast, and whichever other contrasts it waited for,
its last interval may therefore be reported. The price: reported intervals are wider than the 95 % intervals of a study
with a fixed number of seeds.

Spends grow with the seeds' degrees of freedom because at three seeds t is so wide (4.3 at 5 %, 8.9 at 1.25 %) that a
large share buys few decisions. In simulation (docs/statistics.md) this split decides more studies than an equal one for
slightly more seeds, and fewer than one by the square, which needs more still.
The union bound is Bonferroni's; spending by a fixed plan is Lan and DeMets 1983 without their joint distribution, which
is unknown here. The split is own design.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from hylo.stats.arrays import LEVEL

LOOKS = (3, 5, 8, 12)
"""Numbers of seeds at which a study looks."""


class HasEnds(Protocol):
    """An `Interval` or an `Effect`."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def looks(cap: int, at: Sequence[int] = LOOKS) -> tuple[int, ...]:
    """Looks of a study that ends at `cap` seeds: those of `at` below the cap, and the cap itself.

    A look at two seeds is possible, but intervals can undercover there, so the rule's 5 % is not guaranteed.

    Raises:
        ValueError: the cap is below two (one seed shows evaluation noise only), or `at` does not increase from two or
            more.
    """
    if cap < 2:
        raise ValueError(f"cap is {cap}; two seeds or more are needed to see what a seed contributes")
    return _checked_looks((*(seeds for seeds in _checked_looks(at) if seeds < cap), cap))


def levels(looks: Sequence[int]) -> dict[int, float]:
    """Interval level of each look, by its number of seeds.

    Raises:
        ValueError: the looks do not increase from two or more.
    """
    total = sum(seeds - 1 for seeds in _checked_looks(looks))
    return {seeds: 1 - (1 - LEVEL) * (seeds - 1) / total for seeds in looks}


def decided(estimate: HasEnds, threshold: float = 0.0, smallest: float = 0.0) -> bool:
    """Whether no more seeds are needed: the interval excludes the threshold, or lies within (-smallest, smallest).

    Args:
        estimate: its interval must be at the level of this look (`levels`).
        threshold: the value to exclude, in the unit of the estimate.
        smallest: effects below it are too small to matter; 0: every effect matters.

    Raises:
        ValueError: `smallest` is negative or not a number.
    """
    if not smallest >= 0:
        raise ValueError(f"smallest is {smallest}; the smallest effect that matters must be 0 or more")
    excluded = threshold < estimate.low or estimate.high < threshold
    return excluded or (-smallest < estimate.low and estimate.high < smallest)


def sequential_p_value(p_values: Sequence[float], looks: Sequence[int]) -> float:
    """One p-value for all looks so far, valid as input to `hylo.stats.holm`: the smallest p / (share of its look).

    Below 0.05 exactly when an interval at the level of its look excluded the threshold. Genovese, Roeder and Wasserman
    2006 (weighted Bonferroni).

    Args:
        p_values: of the looks taken so far, in order; the study may have stopped early.
        looks: all planned looks.

    Raises:
        ValueError: there is no p-value or more than one per look, or one is NaN or not between 0 and 1.
    """
    if not 1 <= len(p_values) <= len(looks):
        raise ValueError(f"{len(p_values)} p-values for {len(looks)} planned looks; one for each look taken is needed")
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p-value is {p}; it must lie between 0 and 1")
    shares = [(1 - level) / (1 - LEVEL) for level in levels(looks).values()]
    return min(1.0, *(p / share for p, share in zip(p_values, shares, strict=False)))


def _checked_looks(looks: Sequence[int]) -> tuple[int, ...]:
    looks = tuple(looks)
    if not looks or looks[0] < 2 or any(later <= earlier for earlier, later in pairwise(looks)):
        raise ValueError(f"looks are {looks}; numbers of seeds must rise, from two or more")
    return looks
