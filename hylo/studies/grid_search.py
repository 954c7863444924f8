"""The grid search for a cell's best setting: a logarithmic grid that is extended while the best value lies at an end,
then refined around the best.

A setting is a value for each tuned key. The search depends only on what was tried and how good it was, so it resumes
where it was interrupted. Each cell of a study gets the same number of trials: a cell whose optimum lies outside its
initial grid spends them on reaching it, other cells on finer steps. Own design, after the coordinate search of Hooke
and Jeeves 1961 (doi 10.1145/321062.321069).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

Setting = tuple[float, ...]
"""A value for each key, in the order of the keys."""
Bounds = Sequence[tuple[float, float]]
"""The lowest and highest allowed value of each key."""

DIGITS = 3
"""Significant digits of the values that the search generates: steps are far wider, and people read the values."""


def start_settings(grids: Sequence[Sequence[float]]) -> list[Setting]:
    """The settings to try first: the whole grid of the first key, with the first value of every other key."""
    others = tuple(grid[0] for grid in grids[1:])
    return [(value, *others) for value in sorted(grids[0])]


def best_setting(tried: Mapping[Setting, float]) -> Setting:
    """The setting with the lowest score; of several equally good ones, the smallest.

    Args:
        tried: scores, lower is better; infinite if a trial failed.
    """
    return min(tried, key=lambda setting: (tried[setting], setting))


def next_setting(tried: Mapping[Setting, float], grids: Sequence[Sequence[float]], bounds: Bounds) -> Setting | None:
    """The setting to try next: one step beyond a best value at an end of its key's grid, else half a step beside it.

    Keys are visited in order: one whose best value lies at an end comes before any finer step, and among finer steps
    the widest gap comes first.

    Args:
        tried: as in `best_setting`, including at least the start settings.
        grids: the initial grid of each key, which also sets the width of its steps.
        bounds: no step is made beyond them.

    Returns:
        None if nothing is left that three significant digits can tell apart.
    """
    best = best_setting(tried)
    for place, grid in enumerate(grids):
        if (value := _beyond(best[place], _line(tried, place), step(grid), bounds[place])) is not None:
            return _with(best, place, value)
    finer = [_between(tried, best, place, step(grid)) for place, grid in enumerate(grids)]
    gaps = [found for found in finer if found[1] is not None and found[1] not in tried]
    return max(gaps, key=lambda found: found[0])[1] if gaps else None


def ends(tried: Mapping[Setting, float], best: Setting) -> list[int]:
    """Indices of the keys whose best value lies at an end of the values tried: a better one may lie beyond it."""
    lines = [_line(tried, place) for place in range(len(best))]
    return [place for place, line in enumerate(lines) if best[place] in (line[0], line[-1])]


def step(grid: Sequence[float]) -> float:
    """The ratio of neighbouring values of a grid, as if they were evenly spaced in the logarithm."""
    low, high = min(grid), max(grid)
    return (high / low) ** (1 / (len(grid) - 1))


def moved(grid: Sequence[float], anchor: float, to: float) -> list[float]:
    """A grid of the same steps in which one value, the anchor, has become another."""
    return [to if value == anchor else _rounded(to * value / anchor) for value in grid]


def _line(tried: Mapping[Setting, float], place: int) -> list[float]:
    """The values of a key tried so far, whatever the other keys were: a bracket once found need not be found again."""
    return sorted({setting[place] for setting in tried})


def _beyond(value: float, line: list[float], ratio: float, bounds: tuple[float, float]) -> float | None:
    """The value one step beyond the end of a line at which the best value lies; None if there is none."""
    up, down = _rounded(value * ratio), _rounded(value / ratio)
    if value == line[-1] and up <= bounds[1]:
        return up
    return down if value == line[0] and down >= bounds[0] else None


def _between(tried: Mapping[Setting, float], best: Setting, place: int, ratio: float) -> tuple[float, Setting | None]:
    """The wider gap beside the best value, in steps of the grid, and the setting in its middle; of two equal gaps, the
    one with the better neighbour."""
    line = _line(tried, place)
    sides = [(low, high) for low, high in pairwise(line) if best[place] in (low, high)]
    if not sides:
        return 0.0, None

    def width(side: tuple[float, float]) -> float:
        return math.log(side[1] / side[0]) / math.log(ratio)

    def promise(side: tuple[float, float]) -> tuple[float, float]:
        (neighbour,) = (value for value in side if value != best[place])
        return round(width(side), 1), -min(score for setting, score in tried.items() if setting[place] == neighbour)

    chosen = max(sides, key=promise)
    return round(width(chosen), 1), _with(best, place, _rounded(math.sqrt(chosen[0] * chosen[1])))


def _with(setting: Setting, place: int, value: float) -> Setting:
    return (*setting[:place], value, *setting[place + 1 :])


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
