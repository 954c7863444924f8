"""The search for a cell's best setting: a logarithmic grid that extends itself while the best lies at an end, then
finer steps around the best.

A setting is a value of each tuned key. The search knows nothing but what was tried and how good it was, so it goes on
where it was interrupted. Each cell of a study gets the same number of trials: a cell whose optimum lies outside the
start of its grid spends them on reaching it, another one on finer steps. Own design, after the coordinate search of
Hooke and Jeeves 1961 (doi 10.1145/321062.321069).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

Setting = tuple[float, ...]
"""A value of each key, in the order of the keys."""
Bounds = Sequence[tuple[float, float]]
"""The lowest and highest value that each key may have."""

DIGITS = 3
"""Significant digits of a value that the search makes: steps are far wider, and people read them."""


def start_settings(grids: Sequence[Sequence[float]]) -> list[Setting]:
    """What is tried first: the whole grid of the first key, with the first value of every other key."""
    others = tuple(grid[0] for grid in grids[1:])
    return [(value, *others) for value in sorted(grids[0])]


def best_setting(tried: Mapping[Setting, float]) -> Setting:
    """The setting with the lowest score; the smallest of several that are equally good.

    Arguments:
        tried: scores, lower is better; infinite where a trial failed.
    """
    return min(tried, key=lambda setting: (tried[setting], setting))


def next_setting(tried: Mapping[Setting, float], grids: Sequence[Sequence[float]], bounds: Bounds) -> Setting | None:
    """What to try next: one step beyond the best where it lies at an end of a key's grid, else half a step beside it.

    Keys take turns in their order: one that is at an end comes before any finer step, and of several finer steps the
    widest gap comes first.

    Arguments:
        tried: as in `best_setting`, at least the start settings.
        grids: the start of each key's grid, which is the width of its steps.
        bounds: a step beyond them is not made.

    Returns:
        None where nothing is left that three significant digits would tell apart.
    """
    best = best_setting(tried)
    for place, grid in enumerate(grids):
        if (value := _beyond(best[place], _line(tried, place), step(grid), bounds[place])) is not None:
            return _with(best, place, value)
    finer = [_between(tried, best, place, step(grid)) for place, grid in enumerate(grids)]
    gaps = [found for found in finer if found[1] is not None and found[1] not in tried]
    return max(gaps, key=lambda found: found[0])[1] if gaps else None


def ends(tried: Mapping[Setting, float], best: Setting) -> list[int]:
    """The keys, by place, for which the best setting lies at an end of what was tried: a better one may lie beyond."""
    lines = [_line(tried, place) for place in range(len(best))]
    return [place for place, line in enumerate(lines) if best[place] in (line[0], line[-1])]


def step(grid: Sequence[float]) -> float:
    """The ratio of neighbouring values of a grid, as if they were evenly spaced in logarithm."""
    low, high = min(grid), max(grid)
    return (high / low) ** (1 / (len(grid) - 1))


def _line(tried: Mapping[Setting, float], place: int) -> list[float]:
    """The values of a key that were tried, whatever the others were: a bracket once found need not be found again."""
    return sorted({setting[place] for setting in tried})


def _beyond(value: float, line: list[float], ratio: float, bounds: tuple[float, float]) -> float | None:
    """The value one step beyond an end of a line at which the best value lies; None where there is no such."""
    up, down = _rounded(value * ratio), _rounded(value / ratio)
    if value == line[-1] and up <= bounds[1]:
        return up
    return down if value == line[0] and down >= bounds[0] else None


def _between(tried: Mapping[Setting, float], best: Setting, place: int, ratio: float) -> tuple[float, Setting | None]:
    """The wider gap beside the best value, in steps of the grid, and the setting in its middle; of two equal gaps the
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
