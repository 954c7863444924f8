"""What components choose: landmark weights, attention to landmarks and the position gate (probe=readings)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hylo.analysis.readings import readings_table
from hylo.report.figures.base import study_figure
from hylo.report.figures.style import GRID, LINES, SMALL, fold, framed
from hylo.report.render.hover import hover
from hylo.report.tables.caption import caption
from hylo.report.tables.numbers import number
from hylo.runs.record import StudyRecord

_COLOURS = colormaps["cividis"]  # as in the heat maps of retrieval
_WIDE, _ROW = 3, 2.1  # panels in a row; inches of a row
_LEAST = 0.01
"""Smallest range of a map's colours: smaller differences shall not look like large ones."""
_ITEMS = {"attention to landmarks": "head"}
"""What a value of a quantity belongs to, if not to a landmark."""


@dataclass(frozen=True)
class _Panel:
    """A map of values [rows, columns], or lines over positions, one per seed."""

    title: str
    upright: str
    across: str
    values: np.ndarray
    positions: np.ndarray | None = None
    """Middle of each bin, for panels over positions."""
    lines: bool = False


@study_figure("readings", order=95)
def readings_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
    """Per cell and quantity a map by layer and position, of its first seed: landmarks of two seeds are not the same
    ones. A single value per token, such as a gate, is drawn as lines, one per seed. None if no cell was probed."""
    table = readings_table(study)
    panels = [*_panels(table)]
    if not panels:
        return None
    rows = -(-len(panels) // _WIDE)
    said = [
        "Means over the positions of a bin and over the same texts for every cell; maps: the first seed",
        *caption(study, summary),
    ]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(rows, min(_WIDE, len(panels)), squeeze=False).ravel()
        for unused in axes[len(panels) :]:
            unused.remove()
        for own, panel in zip(axes, panels, strict=False):
            (_draw_lines if panel.lines else _draw_map)(figure, own, panel)
            own.set_title(fold(panel.title, 34), fontsize=SMALL, fontweight="normal", pad=3)
            own.set_xlabel(panel.across, fontsize=SMALL)
            own.set_ylabel(panel.upright, fontsize=SMALL)
            own.tick_params(labelsize=SMALL - 0.5, length=2, pad=2)

    return framed(f"{study.name}: what components choose", said, rows * _ROW + 0.6, draw)


def _panels(table: Any) -> Iterator[_Panel]:
    for (cell, quantity), whole in table.groupby(["cell", "quantity"], sort=False):
        seeds = sorted(set(whole["seed"]))
        rows = whole[whole["seed"] == seeds[0]]
        layers, items = rows["layer"].nunique(), rows["item"].nunique()
        ends = rows[["first", "last"]].drop_duplicates().sort_values("first").to_numpy(dtype=float)
        positions, item, name = ends.mean(axis=1), _ITEMS.get(quantity, "landmark"), f"{cell}: {quantity}"
        if layers == items == 1:
            by_seed = whole.pivot(index="seed", columns="first", values="value").to_numpy(dtype=float)
            yield _Panel(name, quantity, "position", by_seed, positions, lines=True)
        elif layers == 1:
            values = rows.pivot(index="item", columns="first", values="value").to_numpy(dtype=float)
            yield _Panel(name, item, "position", values, positions)
        else:
            by_item = rows.groupby(["layer", "item"])["value"].mean().unstack().to_numpy(dtype=float)
            yield _Panel(name, "layer", item, by_item)
            by_position = rows.groupby(["layer", "first"])["value"].mean().unstack().to_numpy(dtype=float)
            if np.ptp(by_position) > 1e-6:  # weights that sum to one have the same mean everywhere
                yield _Panel(f"{name}, mean over {item}s", "layer", "position", by_position, positions)


def _draw_map(figure: Figure, axes: Any, panel: _Panel) -> None:
    rows, columns = panel.values.shape
    wide = panel.positions[-1] + panel.positions[0] if panel.positions is not None else columns
    extent = (0, wide, rows - 0.5, -0.5) if panel.positions is not None else (-0.5, columns - 0.5, rows - 0.5, -0.5)
    middle, half = (panel.values.max() + panel.values.min()) / 2, max(np.ptp(panel.values), _LEAST) / 2
    scale = {"vmin": middle - half, "vmax": middle + half, "cmap": _COLOURS}
    image = axes.imshow(panel.values, aspect="auto", interpolation="nearest", extent=extent, **scale)
    low, high = (np.unravel_index(find(panel.values), panel.values.shape) for find in (np.argmin, np.argmax))
    ends = f"{number(panel.values[low], 3)} (row {low[0]}) to {number(panel.values[high], 3)} (row {high[0]})"
    hover(image, f"{panel.title}: {ends}")
    bar: Any = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
    bar.ax.tick_params(labelsize=SMALL - 1, length=2, pad=1)
    bar.locator = MaxNLocator(4)
    bar.formatter.set_useOffset(False)
    bar.update_ticks()
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(visible=False)


def _draw_lines(figure: Figure, axes: Any, panel: _Panel) -> None:
    assert panel.positions is not None
    for place, values in enumerate(panel.values):
        (line,) = axes.plot(panel.positions, values, linewidth=1, linestyle=LINES[place % len(LINES)], color="C0")
        hover(line, f"{panel.title}, seed {place + 1} of {len(panel.values)}")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(color=GRID, linewidth=0.5)
