"""How a cell's quality depends on its learning rate: the tuning trials and the value chosen."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from hylo.analysis.rates import choices, mean_ppl
from hylo.report.figures.base import study_figure
from hylo.report.figures.marks import perplexity_axis
from hylo.report.figures.multiples import grid, label_outer, panels
from hylo.report.figures.style import COLOURS, FAINT, SMALL, framed
from hylo.report.render.hover import hover
from hylo.report.tables.numbers import number
from hylo.runs.record import StudyRecord

ABOVE_BEST = 1.15
"""A y axis ends at most at this multiple of the best perplexity; anything worse is drawn at its upper edge. Cells whose
own best lies beyond it have another y axis."""
WIDE = 100.0
"""From this ratio of the largest to the smallest value on, the x axis has one tick per power of ten."""


@study_figure("learning_rates", order=50)
def learning_rate_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """Validation perplexity against the first tuned key, one panel per cell, with the lines of other cells in grey.

    Points are means over trial seeds, whiskers reach from the lowest to the highest seed. The line joins trials with
    the chosen values of all other keys; other trials are unconnected and hollow. A ring marks the chosen value, a
    dotted line the default. Cells that are far from the best one share a y axis with those that are near them. None if
    nothing was tuned.
    """
    chosen = choices(study)
    if not chosen:
        return None
    shape = grid(list(chosen), columns=4, panel=1.15)
    ranges = _ranges(chosen)
    lowest = min(best for best, _ in ranges.values())
    far = {place for place, cell in enumerate(chosen) if ranges[cell][0] > lowest}
    key = next(iter(chosen.values()))["keys"][0]

    def draw(figure: Figure) -> None:
        axes = panels(figure, shape)
        for panel, (cell, choice) in zip(axes, chosen.items(), strict=True):
            best, most = ranges[cell]
            for other in (chosen[name] for name, limits in ranges.items() if limits == (best, most)):
                x, y, _ = _line(other)
                panel.plot(x, np.minimum(y, most), color=FAINT, linewidth=0.5, zorder=1)
            _panel(panel, cell, choice, most)
            perplexity_axis(panel)
            panel.set_ylabel("")
            panel.set_ylim(best * 0.995, most * 1.01)
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.tick_params(labelsize=SMALL - 0.5)
        limits = [panel.get_xlim() for panel in axes]
        left, right = min(low for low, _ in limits), max(high for _, high in limits)
        ticks = (1, 2, 5) if right < WIDE * left else (1,)
        for panel in axes:
            panel.set_xlim(left, right)
            panel.xaxis.set_major_locator(LogLocator(base=10, subs=ticks, numticks=6))
        label_outer(axes, shape, key, "validation PPL", own=far)
        for place in filter(shape.first, far):
            axes[place].set_ylabel("validation PPL", fontsize=SMALL)

    trials = {choice["trials"] for choice in chosen.values()}
    lines = [
        "Points: mean over trial seeds, whiskers: lowest to highest seed; ring: chosen; dotted: default; hollow: other "
        "values of a second key; at the upper edge: worse, or diverged",
        *["some panels have another range of perplexity"] * bool(far),
        f"{' or '.join(map(str, sorted(trials)))} trials per cell on validation documents",
    ]
    against = key.rpartition(".")[2].replace("_", " ")
    return framed(f"{study.name}: perplexity against {against}", lines, shape.height + 1, draw)


def _ranges(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The best and the worst perplexity that a cell's panel shows: those of the cells near it."""
    found = {cell: [each["ppl"] for each in choice["tried"]] for cell, choice in chosen.items()}
    best = {cell: min(map(mean_ppl, tried)) for cell, tried in found.items()}
    near: list[list[str]] = []
    for cell in sorted(best, key=lambda cell: best[cell]):
        if near and best[cell] <= ABOVE_BEST * best[near[-1][0]]:
            near[-1].append(cell)
        else:
            near.append([cell])
    ranges = {}
    for cells in near:
        low = best[cells[0]]
        worst = max(ppl for cell in cells for seeds in found[cell] for ppl in seeds if ppl is not None)
        ranges |= dict.fromkeys(cells, (low, min(ABOVE_BEST * low, 1.003 * worst)))
    return ranges


def _panel(axes: Any, cell: str, choice: Mapping[str, Any], most: float) -> None:
    x, y, others = _line(choice)
    axes.plot(x, np.minimum(y, most), color=COLOURS[0], linewidth=1.1, zorder=2)
    for each in choice["tried"]:
        found, value = mean_ppl(each["ppl"]), each["values"][0]
        on_line = tuple(each["values"][1:]) == others
        marker = "^" if found > most else "o"
        face = COLOURS[0] if on_line else "white"
        (point,) = axes.plot(
            [value], [min(found, most)], marker=marker, color=COLOURS[0], markerfacecolor=face, markersize=3.5, zorder=3
        )
        said = ", ".join(f"{key}={value:g}" for key, value in zip(choice["keys"], each["values"], strict=True))
        hover(point, f"{cell}, {said}: {'diverged' if math.isinf(found) else f'PPL {number(found, 2)}'}")
        seeds = [ppl for ppl in each["ppl"] if ppl is not None and ppl <= most]
        if on_line and len(seeds) > 1:
            axes.plot([value, value], [min(seeds), max(seeds)], color=COLOURS[0], linewidth=0.8, zorder=2)
    best = next(each for each in choice["tried"] if each["values"] == choice["chosen"])
    axes.plot(
        [best["values"][0]], [mean_ppl(best["ppl"])], marker="o", markersize=8, markerfacecolor="none",
        markeredgecolor=COLOURS[1], markeredgewidth=1.2, zorder=4,
    )  # fmt: skip
    if math.isfinite(default := choice["defaults"][0]):
        axes.axvline(default, color="0.4", linewidth=0.8, linestyle=":", zorder=0.5)


def _line(choice: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Trials at the chosen values of all keys but the first: values of the first, perplexities, the other values."""
    others = tuple(choice["chosen"][1:])
    found = {
        each["values"][0]: mean_ppl(each["ppl"]) for each in choice["tried"] if tuple(each["values"][1:]) == others
    }
    x = np.array(sorted(found))
    return x, np.array([found[value] for value in x]), others
