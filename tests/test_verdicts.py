"""Verdicts from intervals: known cases, and properties that hold for all intervals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hylo.analysis.verdicts import (
    Basis,
    ClaimVerdict,
    RedFlags,
    claim_threshold,
    claim_verdict,
    component_verdict,
    success,
)
from hylo.evaluation.metrics import all_metrics

numbers = st.floats(-60, 60, allow_nan=False)
FAIR = Basis(tuned=True, tokens=61_440)
"""Each arm with its own learning rate, trained for the published budget."""


@pytest.mark.parametrize(
    ("published", "low", "high", "verdict"),
    [
        (9.19, 8.0, 10.0, "reproduced"),
        (9.19, 5.0, 6.0, "reproduced"),  # smaller than published, but more than half of it
        (9.19, 0.01, 0.03, "contradicted"),  # a significant improvement, but far from the claim
        (9.19, -3.0, -1.0, "contradicted"),
        (9.19, -1.0, 12.0, "inconclusive"),
        (-5.62, -7.0, -3.0, "reproduced"),
        (-5.62, 0.06, 0.09, "contradicted"),
        (-5.62, -4.0, -1.0, "inconclusive"),
    ],
)
def test_claims(published: float, low: float, high: float, verdict: str) -> None:
    assert claim_verdict(published, low, high, FAIR).name == verdict
    assert claim_verdict(published, low, high, FAIR, decided=False) is ClaimVerdict.inconclusive


@given(published=numbers.filter(lambda v: abs(v) > 1e-6), ends=st.tuples(numbers, numbers).map(sorted))
def test_a_claim_and_its_mirror_image_have_the_same_verdict(published: float, ends: list[float]) -> None:
    low, high = ends
    assert claim_verdict(published, low, high, FAIR) is claim_verdict(-published, -high, -low, FAIR)


@pytest.mark.parametrize("published", [0.0, math.nan, math.inf])
def test_a_claim_needs_a_direction(published: float) -> None:
    with pytest.raises(ValueError, match="finite number other than 0"):
        claim_threshold(published)


def test_an_interval_without_ends_is_refused() -> None:
    """NaN compares as false, so a naive `low <= threshold <= high` would call it decided."""
    with pytest.raises(ValueError, match="no interval"):
        claim_verdict(5.0, math.nan, 3.0, FAIR)
    with pytest.raises(ValueError, match="no interval"):
        component_verdict(math.nan, math.nan, FAIR)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (5.5, 9.0, "core"),
        (2.5, 4.5, "optional"),
        (0.02, 0.09, "drop"),
        (-4.0, -3.0, "drop"),
        (1.0, 3.0, "undecided: drop or optional"),
        (1.0, 7.0, "undecided: drop or optional or core"),
        (3.0, 7.0, "undecided: optional or core"),
    ],
)
def test_components(low: float, high: float, verdict: str) -> None:
    assert component_verdict(low, high, FAIR) == verdict


def test_red_flags_come_before_any_size() -> None:
    assert component_verdict(8, 9, FAIR, RedFlags(leaks=True, nonfinite_steps=1)) == "leaking"
    assert component_verdict(8, 9, FAIR, RedFlags(nonfinite_steps=1)) == "unstable"
    assert component_verdict(8, 9, FAIR, RedFlags(largest_loss_jump=1.5)) == "unstable"
    assert component_verdict(8, 9, FAIR, RedFlags(largest_loss_jump=0.5)) == "core"


def test_success_needs_the_whole_interval() -> None:
    asked = [metric for metric in all_metrics() if metric.success is not None]
    good = success(dict(zip(asked, (2.1, 5.1), strict=True)), 40_000, RedFlags(largest_loss_jump=0.1))
    assert all(good.values())
    bad = success(
        dict(zip(asked, (1.9, math.nan), strict=True)), None, RedFlags(nonfinite_steps=1, largest_loss_jump=2.0)
    )
    assert not any(bad.values())
    assert list(good) == list(bad)


BASES = st.builds(
    Basis,
    tuned=st.booleans(),
    tokens=st.none() | st.integers(0, 10**6),
    shortfalls=st.lists(st.just("still moving"), max_size=1).map(tuple),
)


@given(published=numbers.filter(lambda v: abs(v) > 1e-6), ends=st.tuples(numbers, numbers).map(sorted), basis=BASES)
def test_nothing_is_contradicted_without_its_chance(published: float, ends: list[float], basis: Basis) -> None:
    low, high = ends
    verdict = claim_verdict(published, low, high, basis)
    if verdict is ClaimVerdict.contradicted:
        assert basis.tuned
        assert not basis.shortfalls
        assert basis.tokens is None or basis.tokens >= 55_000
    fair = claim_verdict(published, low, high, FAIR)
    if fair is not ClaimVerdict.contradicted:
        assert verdict is fair, "what is not contradicted rests on its interval alone"


@pytest.mark.parametrize(
    ("basis", "verdict", "component"),
    [
        (FAIR, "contradicted", "drop"),
        (Basis(tuned=True), "contradicted", "drop"),
        (Basis(tuned=False, tokens=61_440), "contradicted_at_the_published_rate_only", "untuned: drop"),
        (Basis(tuned=True, tokens=24_576), "undertrained", "undertrained: drop"),
        (Basis(tuned=True, tokens=61_440, shortfalls=("still moving",)), "undertrained", "undertrained: drop"),
    ],
)
def test_a_small_effect_by_what_it_rests_on(basis: Basis, verdict: str, component: str) -> None:
    assert claim_verdict(9.19, 0.01, 0.03, basis).name == verdict
    assert component_verdict(0.01, 0.03, basis) == component
    assert component_verdict(0.01, 0.03, basis, RedFlags(leaks=True)) == "leaking"
