"""Effects, p-values and planning: by hand, by brute force, and by simulation."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from benchmarks.coverage.intervals import KINDS, Noise, studies
from hylo import stats
from hylo.stats import Effect

anything = settings(deadline=None, max_examples=60)
variances = st.one_of(st.just(0.0), st.floats(1e-6, 1e3))


def _effect(value: float, seed_variance: float, window_variance: float, *, seeds: int, windows: int = 32) -> Effect:
    """An effect with the interval computed from its components."""
    v_seed = seed_variance / seeds
    variance = v_seed + window_variance
    half = 0.0
    if variance:
        dof = variance / (v_seed / (seeds - 1) + window_variance / (windows - 1))
        half = float(scipy_stats.t.ppf(0.975, dof)) * math.sqrt(variance)
    return Effect(value, value - half, value + half, seeds, windows, seed_variance, window_variance, 0.95)


effects = st.builds(
    _effect, st.floats(-10, 10), variances, variances, seeds=st.integers(2, 12), windows=st.integers(2, 200)
)


@pytest.mark.parametrize(("seeds", "windows"), [(2, 2), (3, 32), (10, 7)])
def test_the_interval_is_that_of_the_crossed_model_bit_for_bit(seeds: int, windows: int):
    rng = np.random.default_rng(0)
    sums, tokens = rng.normal(size=(seeds, windows)), rng.integers(1, 300, windows)
    found = stats.effect(sums, tokens, level=0.9)
    assert (found.value, found.low, found.high) == tuple(map(float, stats.crossed_interval(sums, tokens, level=0.9)))
    assert (found.seeds, found.windows, found.level) == (seeds, windows, 0.9)


def test_components_by_hand():
    """Rows 1, 2, 3 and columns -1, 0, 1 without interaction: s2 = 1, and V_window = 1 / 3."""
    found = stats.effect(5 * (np.array([[1], [2], [3]]) + np.array([-1, 0, 1])), [5, 5, 5])
    half = float(scipy_stats.t.ppf(0.975, 2)) * math.sqrt(1 / 3 + 1 / 3)
    expected = Effect(2, 2 - half, 2 + half, 3, 3, seed_variance=1, window_variance=1 / 3, level=0.95)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected))


def test_one_seed_is_a_paired_t_test_over_windows():
    differences = np.random.default_rng(1).normal(0.3, 1, 20)
    found, test = stats.effect(differences * 7, np.full(20, 7)), scipy_stats.ttest_1samp(differences, 0)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    assert found.p_value() == pytest.approx(test[1])
    assert (found.seeds, math.isnan(found.seed_variance)) == (1, True)
    assert found.window_variance == pytest.approx(differences.var(ddof=1) / 20)
    assert found.seeds_to_decide() is None  # the variance between seeds is unknown
    with pytest.raises(ValueError, match="seeds is 3, but what a seed contributes"):
        found.smallest_detectable(seeds=3)
    assert found.smallest_detectable() == found.smallest_detectable(seeds=1)


def test_one_seed_weighs_windows_by_their_tokens():
    """The delta method by hand: ratio 6/4; residuals (2 - 1.5, 4 - 4.5) / 2."""
    found = stats.effect([2.0, 4.0], [1, 3])
    assert (found.value, found.window_variance) == pytest.approx((1.5, 2 * 0.25**2 / 1 / 2))


@anything
@given(found=effects, threshold=st.floats(-20, 20))
def test_p_value_is_below_the_level_just_where_the_interval_excludes_the_threshold(found: Effect, threshold: float):
    near = 1e-9 * (abs(found.low) + abs(found.high))
    if found.low != found.high:
        assume(min(abs(found.low - threshold), abs(found.high - threshold)) > near)
    excluded = threshold < found.low or found.high < threshold
    assert (found.p_value(threshold) < 0.05) == excluded


def test_p_value_without_noise():
    found = stats.effect(np.full((3, 4), 2.0), np.ones(4))
    assert (found.p_value(2.0), found.p_value(2.1), found.p_value()) == (1, 0, 0)
    assert (found.smallest_detectable(), found.seeds_to_decide(), found.seeds_to_decide(2.0)) == (0, 2, None)


@anything
@given(found=effects, threshold=st.floats(-20, 20))
def test_seeds_to_decide_is_the_first_that_would_exclude(found: Effect, threshold: float):
    """Against a loop over the number of seeds."""
    alike = (found.value, found.seed_variance, found.window_variance)

    def excludes(seeds: int) -> bool:
        other = _effect(*alike, seeds=seeds, windows=found.windows)
        return (other.high - other.low) / 2 < abs(found.value - threshold)

    expected = next((seeds for seeds in range(2, 31) if excludes(seeds)), None)
    assert found.seeds_to_decide(threshold, most=30) == expected


def test_seeds_cannot_mend_too_few_windows():
    assert _effect(1.0, 0.1, 1.0, seeds=3).seeds_to_decide() is None
    assert _effect(1.0, 0.1, 0.01, seeds=3).seeds_to_decide() == 3
    assert _effect(1.0, 4.0, 0.01, seeds=3).seeds_to_decide(most=5) is None
    assert _effect(1.0, 4.0, 0.0, seeds=3).seeds_to_decide() == 18


def test_smallest_detectable_of_seed_noise_is_the_power_of_the_t_test():
    """Textbook value: n = 10, two-sided 5 %, power 0.8 needs 0.996 standard deviations (Cohen 1988)."""
    assert _effect(0, 1.0, 0.0, seeds=10).smallest_detectable() == pytest.approx(0.996, abs=1e-3)
    assert _effect(0, 1.0, 0.0, seeds=3).smallest_detectable(seeds=10) == pytest.approx(0.996, abs=1e-3)
    assert _effect(0, 4.0, 0.0, seeds=10).smallest_detectable() == pytest.approx(1.992, abs=2e-3)


@pytest.mark.parametrize("noise", [Noise(1, 0, 0), Noise(0, 1, 0), Noise(0.5, 0.5, 0), Noise(0.1, 0.8, 0.1)])
@pytest.mark.parametrize("seeds", [3, 10])
def test_smallest_detectable_is_detected_that_often(noise: Noise, seeds: int):
    """Only slightly less often than requested; more often if seeds matter little and the degrees of freedom vary."""
    known = _effect(0, (noise.seed + noise.interaction) * seeds, noise.window, seeds=seeds)
    shift, rng = known.smallest_detectable(0.8), np.random.default_rng(seeds)
    sums = studies(noise, KINDS[0], seeds, 32, rng, repeats=3_000, effect=shift)
    _, low, high = stats.crossed_interval(sums, KINDS[0].tokens(32))
    assert 0.72 <= np.mean((low > 0) | (high < 0)) <= 0.88


@pytest.mark.parametrize("level", [0.95, 0.9958, 0.999])
@pytest.mark.parametrize(("seeds", "windows"), [(2, 2), (2, 32), (1000, 128)])
def test_smallest_detectable_at_the_ends_of_what_there_is(level: float, seeds: int, windows: int):
    """At extremes where scipy's noncentral t is NaN. More power needs a larger effect."""
    found = dataclasses.replace(_effect(0, 1.0, 0.1, seeds=seeds, windows=windows), level=level)
    half, most = (found.smallest_detectable(power) for power in (0.5, 0.99))
    assert 0 < half < most < math.inf


@pytest.mark.parametrize("power", [0.05, 0.0, 1.0, math.nan])
def test_impossible_power_is_refused(power: float):
    with pytest.raises(ValueError, match=f"power is {power}"):
        _effect(0, 1.0, 0.1, seeds=3).smallest_detectable(power)


@pytest.mark.parametrize(
    ("sums", "tokens", "options", "message"),
    [
        ([[1.0, math.nan], [1.0, 2.0]], [1, 1], {}, r"sums\[0, 1\] is nan"),
        ([[1.0, None], [1.0, 2.0]], [1, 1], {}, r"sums\[0, 1\] is nan"),
        ([1.0, math.inf], [1, 1], {}, r"sums\[0, 1\] is inf"),
        ([[1.0], [2.0]], [1], {}, r"\(2, 1\); \[seeds, windows\] with two windows"),
        ([[[1.0, 2.0]]], [1, 1], {}, r"\(1, 1, 2\)"),
        ([1.0, 2.0], [1, 1], {"level": 95}, "level is 95"),
    ],
)
def test_impossible_input_is_refused(sums: list, tokens: list, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        stats.effect(sums, tokens, **options)
