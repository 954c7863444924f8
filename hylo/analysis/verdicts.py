"""What an interval says about a published claim or a component. Pure functions; effects in percent of perplexity.

A claim of an improvement of v percent is tested at half that size, in the claimed direction: the published model, text
and budget differ from the measured ones, so the exact number cannot be expected, and a hundredth of it confirms
nothing. With the threshold v / 2:

    reproduced      the whole interval lies beyond it, towards v
    contradicted    the whole interval lies short of it: no effect, one of the other sign, or a much smaller one
    inconclusive    the interval contains it

An interval that lies short contradicts the claim only if both arms got a fair chance: a tuned learning rate and the
published budget. Otherwise it is contradicted at the published rate only, or undertrained.

A component's effect is core above 5 %, optional from 2 to 5 %, drop below 2 %, and undecided if its interval spans
several of these. If an arm did not get a fair chance, a prefix says so (`untuned: drop`, `undertrained: drop`): a lead,
not a verdict. Two findings override any size: leaking (the audit found that logits depend on later tokens) and unstable
(a non-finite loss, or a jump of the training loss). Own design.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hylo.evaluation.metrics import Metric

DROP, CORE = 2.0, 5.0
"""Percent of perplexity: below the first a component is not worth keeping, above the second it is essential."""
MOST_PARAMS_PER_PCT = 50_000
"""Added parameters per percent of improvement above which a component is too expensive."""
PUBLISHED_TOKENS = 55_000
"""Useful tokens of the published budget: 500 samples, one epoch."""
OWN_RATES = "own rates"
"""How a basis describes tuned arms."""
LOSS_JUMP = 1.0
"""Largest allowed rise of the training loss from one step to the next, nats per token."""


class ClaimVerdict(Enum):
    """What a study says about a published number."""

    reproduced = "the effect is at least half the published size"
    contradicted = (
        "half the published effect is ruled out, with each arm at its own learning rate and the published budget"
    )
    contradicted_at_the_published_rate_only = "ruled out, but an arm kept its default learning rate"
    undertrained = "ruled out, but an arm was not trained far enough"
    inconclusive = "both remain possible"


@dataclass(frozen=True)
class RedFlags:
    """What went wrong in any run of a cell."""

    nonfinite_steps: int = 0
    largest_loss_jump: float | None = None
    """Nats per token; None: nothing was trained."""
    leaks: bool = False
    """The audit's causality check failed."""

    @property
    def unstable(self) -> bool:
        return self.nonfinite_steps > 0 or (self.largest_loss_jump or 0.0) > LOSS_JUMP


@dataclass(frozen=True)
class Basis:
    """What a contrast of two arms rests on. An arm that trains nothing needs no rate and no budget."""

    tuned: bool
    """Whether each arm's settings were tuned for it on validation documents."""
    tokens: int | None = None
    """Useful training tokens of the arm with fewer; None: neither is trained."""
    shortfalls: tuple[str, ...] = ()
    """Signs that an arm could go further: a best rate at the edge of its grid, a contrast that is still moving, a
    component that hardly moved."""

    @property
    def undertrained(self) -> bool:
        return bool(self.shortfalls) or (self.tokens is not None and self.tokens < PUBLISHED_TOKENS)

    def __str__(self) -> str:
        rates = OWN_RATES if self.tuned else "default rates"
        budget = "" if self.tokens is None else f", {self.tokens:,} tokens"
        return f"{rates}{budget}" + "".join(f"; {each}" for each in self.shortfalls)


def claim_threshold(published: float) -> float:
    """Effect that separates reproduced from contradicted.

    Raises:
        ValueError: the published effect is 0 or not finite, so it has no direction.
    """
    if not math.isfinite(published) or published == 0:
        raise ValueError(f"published effect {published}: a finite number other than 0 is needed")
    return published / 2


def claim_verdict(published: float, low: float, high: float, basis: Basis, *, decided: bool = True) -> ClaimVerdict:
    """Verdict on a claim from the interval of the measured effect and what it rests on.

    Args:
        published: the claimed effect, percent.
        low, high: interval of the measured effect, percent.
        basis: what the contrast rests on.
        decided: whether the threshold remains excluded after correcting for the number of claims.

    Raises:
        ValueError: the published effect has no direction, or the interval is invalid.
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
    """Verdict on a component: core, optional, drop, unstable, leaking, or `undecided: ...` with the remaining options.

    Prefixed with `untuned: ` or `undertrained: ` if an arm did not get a fair chance.

    Args:
        low, high: interval of the improvement from the component, percent.
        basis: what the contrast rests on.
        flags: what went wrong in runs of the cell.

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
    """Whether each success criterion holds, by name; effects must meet theirs with the whole interval.

    Args:
        lows: lower bound of the improvement's interval in percent, for each metric that is a criterion; NaN fails.
        params_per_pct: as returned by `hylo.stats.params_per_pct`; None fails.
        flags: what went wrong in runs of the cell.
    """
    return {f"{metric.label} > {metric.success:g} %": low > (metric.success or 0) for metric, low in lows.items()} | {
        f"< {MOST_PARAMS_PER_PCT // 1000} K params per 1 %": params_per_pct is not None
        and params_per_pct < MOST_PARAMS_PER_PCT,
        "no non-finite loss": flags.nonfinite_steps == 0,
        f"no loss jump > {LOSS_JUMP:g} nat": (flags.largest_loss_jump or 0.0) <= LOSS_JUMP,
    }
