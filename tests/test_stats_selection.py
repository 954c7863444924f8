"""The variance added by choosing a tuned setting: by hand, by invariances, and by simulation."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from benchmarks.coverage import selection as selection_simulation
from benchmarks.coverage.selection import CURVES, RATIOS, REPORTED, WORLDS, Reported, Tuned, Tuning, tuned
from hylo import stats
from hylo.stats import Effect
from hylo.stats.selection import regret_square

VALUES, TOKENS, WINDOWS = 1e-3 * 2.0 ** np.arange(6), np.full(32, 255.0), 32
DOCS = Path(__file__).parent.parent / "docs" / "statistics.md"


def _trials(curve: list[float], spread: float, rng: np.random.Generator, seeds: int = 2) -> np.ndarray:
    """NLL sums [candidates, seeds, windows] of trials with effects of seed, window, and candidate x seed."""
    own = spread * rng.standard_normal((len(curve), seeds, 1))
    shared = rng.normal(0, 0.02, (1, seeds, 1)) + rng.normal(0, 0.3, (1, 1, WINDOWS))
    return (3 + np.array(curve)[:, None, None] + own + shared) * TOKENS


def _quadratic(cost: float) -> list[float]:
    return [cost * (step - 2) ** 2 for step in range(6)]


def test_two_candidates_by_hand():
    """Means 0 and d, and seeds e apart around them: V = e^2 / 2 each, one degree of freedom, no remainder."""
    d, e = 0.3, 0.2
    nll = np.array([[e / 2, -e / 2], [d - e / 2, d + e / 2]])  # each candidate's variance over seeds is e^2 / 2
    noise = e**2 / 2  # the difference is d -+ e by seed: its mean has the variance e^2 = 2 V
    square = d**2 / 2  # of the deviations d / 2 from the average
    gap = d * (1 - noise / square)
    expected = gap**2 * scipy_stats.norm.cdf(-gap / math.sqrt(2 * noise))
    found = stats.choice_variance([1, 2], nll[:, :, None] * TOKENS, TOKENS)
    assert found == pytest.approx(expected, rel=1e-6)


def test_steep_quadratic_by_simulated_choices():
    """Five candidates on an exact, steep quadratic: nothing to shrink, compared with simulated choices."""
    rng, curve = np.random.default_rng(0), np.array([4, 1, 0, 1, 4.0])
    differences = np.array([1, -1, 1, -1, 0]) * 0.6  # of the two seeds: orthogonal to the curve, V known
    nll = curve[:, None] + differences[:, None] * np.array([0.5, -0.5])
    noise = (differences**2 / 2 / 2).sum() / 4
    chosen = (curve + math.sqrt(noise) * rng.standard_normal((400_000, 5))).argmin(1)
    found = stats.choice_variance(2.0 ** np.arange(5), nll[:, :, None] * TOKENS, TOKENS)
    assert found == pytest.approx((curve[chosen] ** 2).mean(), rel=0.15)  # the curve is shrunk by 1 or 2 %


@pytest.mark.parametrize("curve", [_quadratic(0.002), _quadratic(0.004), [0, 0.003, 0.1, 0.1, 0.1, 0.1]])
def test_only_what_candidates_do_not_share_counts(curve: list[float]):
    rng = np.random.default_rng(1)
    sums = _trials(curve, 0.004, rng)
    found = stats.choice_variance(VALUES, sums, TOKENS)
    assert found > 0
    order = rng.permutation(6)
    lucky, hard = rng.normal(0, 1, (1, 2, 1)), rng.normal(0, 1, (1, 1, WINDOWS))
    for same in (
        stats.choice_variance(VALUES[order], sums[order], TOKENS),
        stats.choice_variance(VALUES * 1000, sums, TOKENS),
        stats.choice_variance(VALUES, sums[:, ::-1], TOKENS),
        stats.choice_variance(VALUES, sums + (lucky + hard) * TOKENS, TOKENS),
        stats.choice_variance(VALUES, sums * 10, TOKENS) / 100,
        float(regret_square(np.log(VALUES), np.stack([2 * sums, sums]), TOKENS)[1]),
    ):
        assert same == pytest.approx(found, rel=1e-6)


def test_nothing_where_one_candidate_wins_by_far():
    assert stats.choice_variance(VALUES, _trials(_quadratic(1.0), 0.004, np.random.default_rng(2)), TOKENS) == 0
    assert stats.choice_variance(VALUES, _trials(_quadratic(0.004), 0.0, np.random.default_rng(2)), TOKENS) < 1e-20
    assert stats.choice_variance(VALUES, np.ones((6, 2, WINDOWS)), TOKENS) == 0  # no noise, so no loss
    assert stats.choice_variance([0.1], np.ones((1, 2, WINDOWS)), TOKENS) == 0


def test_grows_with_the_noise_and_stays_small_where_it_is_flat():
    """At a flat optimum any choice is free; without shrinkage, noise alone would give 0.4 V."""
    rng, spreads = np.random.default_rng(3), (0.001, 0.003, 0.009)
    by_noise, flat = (
        np.array(
            [
                np.mean([stats.choice_variance(VALUES, _trials(curve, s, rng), TOKENS) for _ in range(60)])
                for s in spreads
            ]
        )
        for curve in (_quadratic(0.004), _quadratic(0.0))
    )
    assert (np.diff(by_noise) > 0).all()
    assert (flat < 0.15 * np.square(spreads) / 2).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_candidates_are_never_chosen(bad: float):
    """As if they had not been tried, even if only one seed diverged; the others decide."""
    sums = _trials(_quadratic(0.004), 0.004, np.random.default_rng(4))
    diverged = sums.copy()
    diverged[5] = bad
    diverged[0, 1, 7] = bad
    found = stats.choice_variance(VALUES, diverged, TOKENS)
    assert found == stats.choice_variance(VALUES[1:5], sums[1:5], TOKENS)
    diverged[1:5, 0] = bad
    with pytest.raises(ValueError, match="every candidate"):
        stats.choice_variance(VALUES, diverged, TOKENS)
    diverged[2] = sums[2]
    assert stats.choice_variance(VALUES, diverged, TOKENS) == 0  # no other candidate could have been chosen


def test_one_candidate_far_off_changes_little():
    """A rate at which training nearly diverged: it fits no quadratic, and its seeds differ widely."""
    curve = [0.134, 0.078, 0.022, 0.0, 0.012, 3.7]
    sums = _trials(curve, 0.004, np.random.default_rng(5))
    sums[5] += np.array([[0.8], [-0.8]]) * TOKENS
    found = stats.choice_variance(VALUES, sums, TOKENS)
    assert found == pytest.approx(stats.choice_variance(VALUES[:5], sums[:5], TOKENS))
    assert 0 < math.sqrt(found) < 0.004


@pytest.mark.parametrize(
    ("values", "shape", "tokens", "message"),
    [
        ([1, 2, 3], (2, 2, 4), 4, r"values has shape \(3,\), sums \(2, 2, 4\)"),
        ([1, 2], (2, 4), 4, r"\[candidates, seeds, windows\] are needed"),
        ([1, 1], (2, 2, 4), 4, "positive and distinct"),
        ([0, 1], (2, 2, 4), 4, "positive and distinct"),
        ([1, math.nan], (2, 2, 4), 4, "positive and distinct"),
        ([1, 2], (2, 1, 4), 4, "sums has 1 seeds and 4 windows.*tune with two seeds"),
        ([1, 2], (2, 2, 1), 1, "sums has 2 seeds and 1 windows"),
        ([1, 2], (2, 2, 4), 3, r"tokens \(3,\)"),
        ([], (0, 2, 4), 4, "every candidate"),
    ],
)
def test_impossible_trials_are_refused(values: list, shape: tuple, tokens: int, message: str):
    with pytest.raises(ValueError, match=message):
        stats.choice_variance(values, np.ones(shape), np.ones(tokens))
    with pytest.raises(ValueError, match=r"tokens\[0\] is 0"):
        stats.choice_variance([1, 2], np.ones((2, 2, 4)), np.zeros(4))


@pytest.mark.parametrize("seeds", [1, 2, 3, 12])
def test_an_effect_without_a_choice_is_the_same_bit_for_bit(seeds: int):
    sums, tokens = np.random.default_rng(6).normal(size=(seeds, 9)), np.arange(1, 10)
    assert repr(stats.effect(sums, tokens, choice_variance=0.0)) == repr(stats.effect(sums, tokens))


@pytest.mark.parametrize(("seeds", "dof"), [(3, 2), (5, 4), (1, 31)])
def test_an_effect_with_a_choice_by_hand(seeds: int, dof: int):
    """Noise from one source only. The choice adds its full variance, and degrees of freedom in proportion."""
    rng = np.random.default_rng(7)
    sums = rng.normal(size=(seeds, 1 if seeds > 1 else WINDOWS)) * TOKENS
    alone = stats.effect(sums, TOKENS)
    own = alone.seed_variance / seeds if seeds > 1 else alone.window_variance
    found = stats.effect(sums, TOKENS, choice_variance=3 * own)
    half = float(scipy_stats.t.ppf(0.975, 4 * dof)) * math.sqrt(4 * own)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.value - half, alone.value + half))
    assert found.p_value(found.high) == pytest.approx(0.05)
    assert found.smallest_detectable() > alone.smallest_detectable()


@pytest.mark.parametrize("seeds", [1, 2, 3, 12])
def test_an_interval_that_covers_the_choice_is_never_narrower(seeds: int):
    """With three seeds, adding half of the seeds' variance could make it narrower: t falls from 4.3 to 3.2."""
    rng = np.random.default_rng(8)
    for sums in (rng.normal(size=(seeds, WINDOWS)), rng.normal(size=(seeds, 1)) + rng.normal(0, 0.01, (1, WINDOWS))):
        before = stats.effect(sums, np.ones(WINDOWS))
        for variance in 10.0 ** np.arange(-6, 3):
            found = stats.effect(sums, np.ones(WINDOWS), choice_variance=variance)
            assert found.high >= before.high
            assert found.low <= before.low
            for threshold in (0.0, before.high, found.high + 1e-6):
                assert found.p_value(threshold) >= before.p_value(threshold)
                assert (found.p_value(threshold) < 0.05 - 1e-9) <= (not found.low <= threshold <= found.high)
            assert found.smallest_detectable() >= before.smallest_detectable()
            before = found


def test_seeds_do_not_mend_a_choice():
    effect = Effect(1.0, 0.5, 1.5, 3, WINDOWS, seed_variance=0.5, window_variance=0.0, level=0.95)
    assert effect.seeds_to_decide() == 5
    assert dataclasses.replace(effect, choice_variance=0.1).seeds_to_decide() == 6
    assert dataclasses.replace(effect, choice_variance=0.3).seeds_to_decide() is None
    certain = dataclasses.replace(effect, seed_variance=0.0, choice_variance=0.25)
    assert certain.p_value() == pytest.approx(2 * scipy_stats.norm.sf(2), rel=1e-4)  # a known variance: normal
    assert certain.smallest_detectable() == pytest.approx(0.5 * 2.8016, rel=1e-3)


@pytest.mark.parametrize("variance", [-1e-9, math.nan, math.inf])
def test_impossible_variances_of_a_choice_are_refused(variance: float):
    with pytest.raises(ValueError, match="choice_variance is"):
        stats.effect([[1.0, 2.0], [2.0, 1.0]], [1, 1], choice_variance=variance)


@functools.cache
def _arm(cost: float) -> Tuned:
    """Six candidates with two tuning seeds; the best is neither at an end nor in the middle."""
    return tuned(Tuning(6, 2, cost, 1.0), np.random.default_rng(9), 2_000)


@functools.cache
def _contrast() -> Reported:
    return Reported(REPORTED["windows mostly"], 3, np.random.default_rng(10))


def _coverage(cost: float, *, both: bool, ratio: float) -> tuple[float, float]:
    """Coverage without and with the choice counted."""
    arm, none = _arm(cost), np.zeros(2_000)
    other = Tuned(*(np.roll(each, 1) for each in arm)) if both else Tuned(none, none)
    return _contrast().coverage(ratio * (arm.regret - other.regret), ratio**2 * (arm.variance + other.variance))


@pytest.mark.parametrize(("both", "most"), [(False, 0.92), (True, 0.90)])
def test_covers_where_the_choice_matters_and_not_without_it(both: bool, most: float):
    """At the steepness with the largest regret, one step costs 1.5 standard deviations of a candidate's mean."""
    left_out, counted = _coverage(1.5, both=both, ratio=1.5)
    assert left_out < most
    assert 0.925 <= counted <= 0.97


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.2, 0.8, 3.0, 100.0])
@pytest.mark.parametrize("both", [False, True])
def test_covers_from_flat_to_sharp(cost: float, both: bool):
    _, counted = _coverage(cost, both=both, ratio=1.0)
    assert 0.93 <= counted <= 0.977


def test_simulated_trials_have_the_noise_and_the_regret_they_say():
    rng = np.random.default_rng(9)
    for noise in selection_simulation.TRIALS:
        trials = selection_simulation._noise(Tuning(4, 3, 0.0, 0.0, noise), rng, 4_000)
        means = trials.sum(-1).mean(-1) / selection_simulation.KINDS[0].tokens(WINDOWS).sum()
        assert (means[:, 0] - means[:, 1]).var() == pytest.approx(2, rel=0.08)  # V = 1 each
    assert tuned(Tuning(4, 2, 0.0, 0.0), rng, 100).regret.max() == 0
    assert tuned(Tuning(4, 2, 50.0, 1.0), rng, 100).regret.max() == 0
    refined = selection_simulation._refined(rng.normal(size=(50, 7, 2, WINDOWS)))
    assert {len(set(row)) for row in refined.tolist()} == {6}
    assert (refined.min(), refined.max()) == (0, 6)


def test_the_page_names_the_command_and_every_row():
    page = DOCS.read_text()
    assert "python -m benchmarks.coverage.selection" in page
    for ratio in RATIOS:
        for name in CURVES:
            assert f"| {ratio:g} | {name} |" in page
    for name in WORLDS:
        assert f"| {name} |" in page
