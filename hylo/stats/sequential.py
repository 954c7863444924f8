"""When there are enough seeds: a rule that may look several times and stays wrong in at most 5 % of studies.

Seeds are added until every contrast is decided, so an interval is looked at more than once, and the one that happens to
exclude 0 ends the search. At 95 % each, four looks would be wrong more often than one. So each look has its own level:

    level(look) = 1 - spend(look),   spend(look) = 0.05 (seeds - 1) / sum over looks of (seeds - 1)

The spends add up to 0.05, and by the union bound all intervals of a contrast hold together in 95 % of studies, however
looks depend on each other. So whatever look a contrast was decided at, and whatever other contrasts it waited for, its
last interval may be reported. The price is that reported intervals are wider than 95 % ones of a study with a fixed
number of seeds.

Why spends grow with the seeds' degrees of freedom: at three seeds t is so wide (4.3 at 5 %, 8.9 at 1.25 %) that a large
share buys few decisions. Simulated (docs/statistics.md) with an effect of three standard errors of a 12-seed study: 63
to 72 % of studies are decided, with 8.6 to 10.5 seeds; an equal split decides 57 to 68 % with 0.2 to 0.6 seeds fewer,
one by the square 69 to 76 % with 0.2 to 0.4 more, and a study of 12 seeds without looks 75 to 82 %. Effects of five
standard errors are decided in 98 % or more, with 5 to 8 seeds. A true null is excluded in 2.3 to 4.7 % of studies.
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
    """The looks of a study that ends at `cap` seeds: those of `at` below it, and the cap itself.

    A look at two seeds is possible, but 95 % covers 90 to 97 % there, and the 5 % of the rule is then not kept.

    Raises:
        ValueError: the cap is below two (one seed shows evaluation noise only), or `at` does not rise from two or more.
    """
    if cap < 2:
        raise ValueError(f"cap is {cap}; two seeds or more are needed to see what a seed contributes")
    return _checked_looks((*(seeds for seeds in _checked_looks(at) if seeds < cap), cap))


def levels(looks: Sequence[int]) -> dict[int, float]:
    """Level of the interval at each look, by its number of seeds.

    Raises:
        ValueError: the looks do not rise from two or more.
    """
    total = sum(seeds - 1 for seeds in _checked_looks(looks))
    return {seeds: 1 - (1 - LEVEL) * (seeds - 1) / total for seeds in looks}


def decided(estimate: HasEnds, threshold: float = 0.0, smallest: float = 0.0) -> bool:
    """Whether no more seeds are needed: the interval excludes the threshold, or lies within (-smallest, smallest).

    Args:
        estimate: with the interval at the level of this look (`levels`).
        threshold: what a claim is about, in the unit of the estimate.
        smallest: effects below it are too small to matter; 0 means that none is.

    Raises:
        ValueError: `smallest` is negative or not a number.
    """
    if not smallest >= 0:
        raise ValueError(f"smallest is {smallest}; the smallest effect that matters must be 0 or more")
    excluded = threshold < estimate.low or estimate.high < threshold
    return excluded or (-smallest < estimate.low and estimate.high < smallest)


def sequential_p_value(p_values: Sequence[float], looks: Sequence[int]) -> float:
    """One p-value for all looks so far, which may go to `hylo.stats.holm`: the smallest of p / (share of that look).

    Below 0.05 just where an interval at the level of its look excluded the threshold. Genovese, Roeder and Wasserman
    2006 (weighted Bonferroni).

    Args:
        p_values: of the looks taken, in their order; the study may have stopped before its last one.
        looks: all that were planned.

    Raises:
        ValueError: no p-value, more of them than looks, or one that is NaN or not between 0 and 1.
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
