"""What an interval says of a published claim and of a component. Pure functions; all effects in percent of perplexity.

A claim of an improvement of v percent asks whether an effect of at least half that size, in the claimed direction, is
there: published and measured model, text and budget differ, so the exact number cannot be expected, and a hundredth of
it confirms nothing. With the threshold v / 2

    reproduced      the whole interval lies beyond it, towards v
    contradicted    the whole interval lies short of it: no effect, one of another sign, or a much smaller one
    inconclusive    the interval holds it

An interval that lies short contradicts the claim only where both arms were given their chance: a learning rate of their
own, and the published budget. Else it is contradicted at the published rate only, or the arms are undertrained.

A component's effect is core above 5 %, optional from 2 to 5 %, drop below 2 %; where its interval reaches into several
of these it is undecided between them. Where an arm did not get its chance that is said before it (`untuned: drop`,
`undertrained: drop`): a lead, no verdict. Two findings come before any size: leaking (the audit found that logits
depend on later tokens) and unstable (a loss that was not finite, or a jump of the training loss). Own design.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hylo.evaluation.metrics import Metric

DROP, CORE = 2.0, 5.0
"""Percent of perplexity: below the first a component is not worth having, above the second a method rests on it."""
MOST_PARAMS_PER_PCT = 50_000
"""Parameters paid for one percent of improvement beyond which a component is too dear."""
PUBLISHED_TOKENS = 55_000
"""Useful tokens of the published budget: 500 samples, one epoch."""
OWN_RATES = "own rates"
"""What a basis says of arms that were tuned."""
LOSS_JUMP = 1.0
"""Nats a token by which the training loss may rise from one step to the next."""


class ClaimVerdict(Enum):
    """What a study says of a published number."""

    reproduced = "an effect of at least half the published size is there"
    contradicted = (
        "an effect of half the published size is ruled out, each arm at its own rate and the published budget"
    )
    contradicted_at_the_published_rate_only = "ruled out where both arms kept the rates of their files"
    undertrained = "ruled out, but an arm was not trained far enough to show itself"
    inconclusive = "both remain possible"


@dataclass(frozen=True)
class RedFlags:
    """What went wrong in any run of a cell."""

    nonfinite_steps: int = 0
    largest_loss_jump: float | None = None
    """Nats a token; None: nothing was trained."""
    leaks: bool = False
    """The audit's check of causality failed."""

    @property
    def unstable(self) -> bool:
        return self.nonfinite_steps > 0 or (self.largest_loss_jump or 0.0) > LOSS_JUMP


@dataclass(frozen=True)
class Basis:
    """What a contrast of two arms rests on. An arm that trains nothing needs no rate and no budget."""

    tuned: bool
    """Whether each arm has settings that were chosen for it on validation documents."""
    tokens: int | None = None
    """Useful tokens that the arm with fewer was trained on; None: neither is trained."""
    shortfalls: tuple[str, ...] = ()
    """What shows that an arm could go further: a best rate at an end of its grid, a contrast that still moves, a
    component that hardly moved."""

    @property
    def undertrained(self) -> bool:
        return bool(self.shortfalls) or (self.tokens is not None and self.tokens < PUBLISHED_TOKENS)

    def __str__(self) -> str:
        rates = OWN_RATES if self.tuned else "rates of the files"
        budget = "" if self.tokens is None else f", {self.tokens:,} tokens"
        return f"{rates}{budget}" + "".join(f"; {each}" for each in self.shortfalls)


def claim_threshold(published: float) -> float:
    """The effect that separates reproduced from contradicted.

    Raises:
        ValueError: the published effect is 0 or not finite, so it has no direction.
    """
    if not math.isfinite(published) or published == 0:
        raise ValueError(f"published effect {published}: a finite number other than 0 is needed")
    return published / 2


def claim_verdict(published: float, low: float, high: float, basis: Basis, *, decided: bool = True) -> ClaimVerdict:
    """The verdict on a claim from the interval of the measured effect and what it rests on.

    Arguments:
        decided: whether the threshold is excluded also after the correction for the number of claims.

    Raises:
        ValueError: the published effect has no direction, or the interval is none.
    """
    threshold = claim_threshold(published)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"[{low}, {high}] is no interval")
    if not decided or low <= threshold <= high:
        return ClaimVerdict.inconclusive
    towards = low > threshold if published > 0 else high < threshold
    if towards:
        return ClaimVerdict.reproduced
    if not basis.tuned:
        return ClaimVerdict.contradicted_at_the_published_rate_only
    return ClaimVerdict.undertrained if basis.undertrained else ClaimVerdict.contradicted


def component_verdict(low: float, high: float, basis: Basis, flags: RedFlags = RedFlags()) -> str:
    """core, optional, drop, unstable, leaking, or `undecided: ...` with what the interval leaves open; `untuned: ` or
    `undertrained: ` before it where an arm did not get its chance.

    Arguments:
        low, high: interval of the improvement that the component brings, percent.

    Raises:
        ValueError: low > high, or an end is missing.
    """
    if not low <= high:
        raise ValueError(f"[{low}, {high}] is no interval")
    if flags.leaks:
        return "leaking"
    if flags.unstable:
        return "unstable"
    open_ = [
        name
        for name, least, most in (("drop", -math.inf, DROP), ("optional", DROP, CORE), ("core", CORE, math.inf))
        if low < most and high >= least
    ]
    said = open_[0] if len(open_) == 1 else f"undecided: {' or '.join(open_)}"
    if not basis.tuned:
        return f"untuned: {said}"
    return f"undertrained: {said}" if basis.undertrained else said


def success(lows: Mapping[Metric, float], params_per_pct: float | None, flags: RedFlags) -> dict[str, bool]:
    """Whether each of the success criteria holds, by name; those on effects need the whole interval beyond them.

    Arguments:
        lows: lower end of the interval of the improvement, percent, of each metric that is a criterion; NaN fails.
        params_per_pct: as `hylo.stats.params_per_pct`; None fails.
    """
    return {f"{metric.label} > {metric.success:g} %": low > (metric.success or 0) for metric, low in lows.items()} | {
        f"< {MOST_PARAMS_PER_PCT // 1000} K params per 1 %": params_per_pct is not None
        and params_per_pct < MOST_PARAMS_PER_PCT,
        "no non-finite loss": flags.nonfinite_steps == 0,
        f"no loss jump > {LOSS_JUMP:g} nat": (flags.largest_loss_jump or 0.0) <= LOSS_JUMP,
    }
