"""Holm correction, Shapley values, and the stopping rule of a study."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hylo import stats
from hylo.stats import Interval

anything = settings(deadline=None, max_examples=60)
Game = dict[frozenset[str], np.ndarray]
probabilities = st.floats(0, 1)


def test_holm_known_answers():
    """The example of R's p.adjust with method "holm", and ties."""
    assert stats.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([0.5, 0.5, 0.9]) == pytest.approx([1, 1, 1])
    assert stats.holm([0.2]) == pytest.approx([0.2])
    assert stats.holm([]).shape == (0,)


@anything
@given(p=st.lists(probabilities, min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_rule_rejects(p: list[float]):
    """The published rule, at every alpha that can matter: smallest p first, until one exceeds alpha / (number left)."""
    adjusted = stats.holm(p)
    for alpha in [*np.linspace(0.01, 0.99, 12), 0.05]:
        if np.isclose(adjusted, alpha, rtol=1e-9).any():
            continue
        rejected = set()
        for left, i in zip(range(len(p), 0, -1), np.argsort(p, kind="stable"), strict=True):
            if p[i] > alpha / left:
                break
            rejected.add(int(i))
        assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected


@pytest.mark.parametrize(
    ("p", "message"),
    [([0.1, math.nan], r"p_values\[1\] is nan"), ([1.1], "is 1.1"), ([-0.1], "is -0.1"), ([[0.1]], "shape")],
)
def test_holm_refuses(p: list, message: str):
    with pytest.raises(ValueError, match=message):
        stats.holm(p)


@st.composite
def games(draw: st.DrawFn, shape: tuple[int, ...] = (2, 3)) -> Game:
    """A value for every subset of one to four factors."""
    factors = ["landmark", "bias", "scale", "dora"][: draw(st.integers(1, 4))]
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    subsets = [subset for size in range(5) for subset in itertools.combinations(factors, size)]
    return {frozenset(subset): rng.normal(size=shape) for subset in subsets}


def _factors(game: Game) -> list[str]:
    return sorted(frozenset().union(*game))


@anything
@given(game=games())
def test_shapley_is_the_average_over_all_orders(game: Game):
    factors = _factors(game)
    expected = {factor: np.zeros((2, 3)) for factor in factors}
    for order in itertools.permutations(factors):
        for i, factor in enumerate(order):
            expected[factor] += game[frozenset(order[: i + 1])] - game[frozenset(order[:i])]
    found = stats.shapley(game)
    assert list(found) == factors
    for factor in factors:
        np.testing.assert_allclose(found[factor], expected[factor] / math.factorial(len(factors)), atol=1e-12)


@anything
@given(game=games(), other=games(), scale=st.floats(-5, 5))
def test_shapley_axioms(game: Game, other: Game, scale: float):
    factors, found = _factors(game), stats.shapley(game)
    everything, nothing = frozenset(factors), frozenset()
    np.testing.assert_allclose(sum(found.values()), game[everything] - game[nothing], atol=1e-12)  # efficiency

    if set(other) == set(game):
        mixed = stats.shapley({key: scale * value + other[key] for key, value in game.items()})
        for factor, value in stats.shapley(other).items():
            np.testing.assert_allclose(mixed[factor], scale * found[factor] + value, atol=1e-10)  # linearity

    dummy = stats.shapley(game | {key | {"none"}: value + 2.0 for key, value in game.items()})
    np.testing.assert_allclose(dummy["none"], 2.0, atol=1e-12)  # adds the same to every subset
    for factor in factors:
        np.testing.assert_allclose(dummy[factor], found[factor], atol=1e-12)

    swap = dict(zip(factors, factors[::-1], strict=True))
    swapped = stats.shapley({frozenset(swap[factor] for factor in key): value for key, value in game.items()})
    for factor in factors:
        np.testing.assert_allclose(swapped[swap[factor]], found[factor], atol=1e-12)  # symmetry


def test_shapley_of_an_interaction_is_shared():
    """Each alone gives 1, both give 4: the extra 2 are split evenly."""
    a, b = frozenset("a"), frozenset("b")
    assert stats.shapley({frozenset(): 0, a: 1, b: 1, a | b: 4}) == {"a": 2, "b": 2}
    assert stats.shapley({frozenset(): 3.0}) == {}


def test_attributions_have_intervals():
    rng = np.random.default_rng(0)
    cells = {key: rng.normal(300, 1, (3, 32)) - 20 * len(key) for key in (frozenset(), frozenset("a"))}
    found = stats.effect(stats.shapley(cells)["a"], np.full(32, 100))
    assert found.low < -0.2 < found.high < 0


def test_shapley_refuses_what_is_incomplete():
    a, b = frozenset("a"), frozenset("b")
    with pytest.raises(ValueError, match=r"combinations \{\}, \{a, b\} are missing of the 4 of \{a, b\}"):
        stats.shapley({a: 1, b: 2})
    with pytest.raises(ValueError, match=r"\{\} are missing"):
        stats.shapley({})
    with pytest.raises(ValueError, match=r"\{a\} has shape \(2,\), \{\} has \(\)"):
        stats.shapley({frozenset(): 1, a: [1, 2]})
    with pytest.raises(ValueError, match=r"\{a\} has a value that is not finite"):
        stats.shapley({frozenset(): 1, a: math.nan})


def test_looks_end_at_the_cap():
    assert [stats.looks(cap) for cap in (2, 3, 4, 8, 12, 20)] == [
        *((2,), (3,), (3, 4), (3, 5, 8), stats.LOOKS, (3, 5, 8, 12, 20))
    ]
    for cap in (1, 0):
        with pytest.raises(ValueError, match=f"cap is {cap}"):
            stats.looks(cap)
    with pytest.raises(ValueError, match=r"looks are \(3, 3\)"):
        stats.levels([3, 3])


@given(cap=st.integers(2, 50))
def test_spends_add_up_and_one_look_is_95_percent(cap: int):
    levels = stats.levels(stats.looks(cap))
    assert tuple(levels) == stats.looks(cap)
    assert sum(1 - level for level in levels.values()) == pytest.approx(0.05)
    assert list(levels.values()) == sorted(levels.values(), reverse=True)


@pytest.mark.parametrize(
    ("low", "high", "threshold", "smallest", "expected"),
    [
        (0.1, 0.3, 0.0, 0.0, True),
        (-0.3, -0.1, 0.0, 0.0, True),
        (-0.1, 0.3, 0.0, 0.0, False),
        (0.0, 0.3, 0.0, 0.0, False),
        (0.1, 0.3, 0.2, 0.0, False),
        (0.1, 0.3, 0.05, 0.0, True),
        (-0.1, 0.1, 0.0, 0.11, True),
        (-0.1, 0.1, 0.0, 0.1, False),
        (-0.1, 0.3, 0.0, 0.11, False),
        (0.0, 0.0, 0.0, 0.0, False),
        (math.nan, math.nan, 0.0, 0.1, False),
    ],
)
def test_decided(low: float, high: float, threshold: float, smallest: float, expected: bool):
    assert stats.decided(Interval(0, low, high), threshold, smallest) is expected


@pytest.mark.parametrize("smallest", [-0.1, math.nan])
def test_decided_refuses(smallest: float):
    with pytest.raises(ValueError, match="smallest is"):
        stats.decided(Interval(0, -1, 1), smallest=smallest)


@anything
@given(p=st.lists(probabilities, min_size=1, max_size=4))
def test_sequential_p_value_is_below_5_percent_just_where_a_look_decides(p: list[float]):
    spends = [1 - level for level in stats.levels(stats.LOOKS).values()]
    found = stats.sequential_p_value(p, stats.LOOKS)
    assert (found < 0.05) == any(value < spend for value, spend in zip(p, spends, strict=False))
    assert min(p) <= found <= 1


def test_sequential_p_value_by_hand_and_refused():
    assert stats.sequential_p_value([0.2], [7]) == pytest.approx(0.2)
    assert stats.sequential_p_value([0.2, 0.01], [3, 5]) == pytest.approx(0.015)  # shares 1/3 and 2/3
    assert stats.sequential_p_value([0.02], [3, 5]) == pytest.approx(0.06)
    for p, message in (([], "0 p-values for 2"), ([0.1] * 3, "3 p-values for 2"), ([math.nan], "p-value is nan")):
        with pytest.raises(ValueError, match=message):
            stats.sequential_p_value(p, [3, 5])
