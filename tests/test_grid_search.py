"""The grid search for the best setting: its path, its end, and what it reports at range limits."""

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hylo.studies.grid_search import Setting, best_setting, ends, next_setting, start_settings

RANGE = (0.0, 10.0)


def searched(
    score: Callable[..., float],
    grids: Sequence[Sequence[float]],
    trials: int,
    ranges: Sequence[tuple[float, float]] = (),
) -> dict[Setting, float]:
    """All values tried for a known curve."""
    tried = {setting: score(*setting) for setting in start_settings(grids)}
    while len(tried) < trials and (setting := next_setting(tried, grids, ranges or [RANGE] * len(grids))) is not None:
        assert setting not in tried, "nothing is tried twice"
        tried[setting] = score(*setting)
    return tried


def bowl(at: float) -> Callable[[float], float]:
    return lambda value: math.log(value / at) ** 2


def test_a_bracketed_best_is_refined() -> None:
    tried = searched(bowl(2.5e-3), [[1e-3, 2e-3, 4e-3]], 6)
    assert [*tried][3:] == [(0.00283,), (0.00238,), (0.00218,)]
    assert best_setting(tried) == (0.00238,)
    assert ends(tried, (0.00238,)) == []


@pytest.mark.parametrize(("at", "found"), [(3e-2, 0.032), (1.3e-4, 0.000125)])
def test_the_grid_extends_itself_while_the_best_lies_at_an_end(at: float, found: float) -> None:
    tried = searched(bowl(at), [[1e-3, 2e-3, 4e-3]], 7)
    assert best_setting(tried) == (found,)
    assert ends(tried, best_setting(tried)) == []
    cut = searched(bowl(at), [[1e-3, 2e-3, 4e-3]], 5)
    assert ends(cut, best_setting(cut)) == [0], "the bound of trials is hit, and it is said"


def test_no_step_leaves_the_range_of_the_key() -> None:
    tried = searched(bowl(100.0), [[1.0, 3.0, 9.0]], 6)
    assert max(tried) == (9.0,)
    assert ends(tried, (9.0,)) == [0]


def test_keys_take_turns() -> None:
    """The second key starts at its first value and is searched with the first key at its best value."""
    score = lambda rate, times: bowl(2.5e-3)(rate) + bowl(20)(times)  # noqa: E731
    tried = searched(score, [[1e-3, 2e-3, 4e-3], [1.0, 8.0]], 9, [RANGE, (0.0, math.inf)])
    assert [*tried][:5] == [(0.001, 1.0), (0.002, 1.0), (0.004, 1.0), (0.002, 8.0), (0.002, 64.0)]
    best = best_setting(tried)
    assert bowl(2.5e-3)(best[0]) < 0.1
    assert bowl(20)(best[1]) < 1


def test_what_diverged_is_never_best() -> None:
    tried = searched(lambda value: math.inf if value > 1e-3 else -value, [[1e-3, 2e-3, 4e-3]], 5)
    assert best_setting(tried) == (1e-3,)
    assert searched(lambda value: math.inf, [[1e-3, 2e-3]], 5).keys() == {
        (1e-3,),
        (2e-3,),
        (5e-4,),
        (2.5e-4,),
        (1.25e-4,),
    }


@given(at=st.floats(1e-6, 1.0), trials=st.integers(3, 30))
def test_it_uses_its_trials_and_ends_near_the_optimum(at: float, trials: int) -> None:
    """For any position of the curve; with enough trials, a value within a fifth of the optimum is found."""
    tried = searched(bowl(at), [[1e-3, 2e-3, 4e-3]], trials)
    assert len(tried) <= trials
    if trials == 30:
        assert abs(math.log(best_setting(tried)[0] / at)) < 0.2


def test_it_ends_where_three_digits_tell_nothing_apart() -> None:
    tried = searched(bowl(2.5e-3), [[1e-3, 2e-3, 4e-3]], 1000)
    assert len(tried) < 40
