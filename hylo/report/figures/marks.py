"""Marks shared by figures: estimates with intervals and tooltips, and rows with long names."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from hylo.report.figures.style import FAINT, GRID, LINE, SMALL, text_size
from hylo.report.render.hover import hover
from hylo.report.tables.numbers import number

GUIDES = {2: "drop below 2 %", 5: "core above 5 %"}
"""Thresholds of component verdicts in percent of perplexity, drawn as light lines on both sides of 0."""
LABEL = 7.5
"""Font size of row names, points."""


class Row(NamedTuple):
    """Position of a figure's row, in inches from the top."""

    centre: float
    slots: list[float]
    """One per mark of the row."""
    height: float


def checked(table: pd.DataFrame, columns: Sequence[str], figure: str, *, may_be_empty: bool = False) -> Any:
    """Return a figure's table after checking it; Any because pandas types its columns as everything a table can hold.

    Raises:
        ValueError: it lacks columns, which are named, or is empty.
    """
    if lacking := [column for column in columns if column not in table.columns]:
        raise ValueError(f"{figure}: the table lacks {', '.join(lacking)}; columns are {', '.join(columns)}")
    if table.empty and not may_be_empty:
        raise ValueError(f"{figure}: the table has no rows; draw it only where there are some")
    return table


def with_seeds(lines: Sequence[str], table: pd.DataFrame, *, base: str = "") -> list[str]:
    """Caption lines plus the number of seeds behind a table's estimates, unless the lines already say it.

    The base model `base` is not counted: it has no seeds.
    """
    if any("seeds per cell" in line for line in lines):
        return list(lines)
    part: Any = table[table["cell"] != base] if "cell" in table.columns else table
    counts: Any = sorted({int(seeds) for seeds in part["seeds"].dropna()})
    span = " to ".join(str(count) for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    return [*lines, f"seeds per cell: {span}" if counts else "no complete run"]


def rows(labels: Sequence[str], marks: Sequence[Sequence[float]], *, gap: float = 0.08) -> list[Row]:
    """Stack rows, each as tall as its marks or its label require.

    Args:
        labels: with line breaks, as they will be drawn.
        marks: heights in inches of each row's marks.
        gap: inches between rows.
    """
    found, top = [], 0.0
    for label, heights in zip(labels, marks, strict=True):
        height = max(sum(heights), text_size(label, LABEL)[1]) + gap
        centre = top + height / 2
        start = centre - sum(heights) / 2
        slots = [start + sum(heights[:place]) + own / 2 for place, own in enumerate(heights)]
        found.append(Row(centre, slots, height))
        top += height
    return found


def row_axis(axes: Any, places: Sequence[Row], labels: Sequence[str]) -> None:
    """Set up a y axis in inches with labelled rows from top to bottom."""
    axes.set_ylim(sum(place.height for place in places), 0)
    axes.set_yticks([place.centre for place in places], labels, fontsize=LABEL, linespacing=LINE)
    axes.tick_params(axis="y", length=0)
    for place in places[:-1]:
        axes.axhline(place.centre + place.height / 2, color=GRID, linewidth=0.5, zorder=0)


def effect_limits(values: Any) -> tuple[float, float]:
    """Limits of an x axis for these effects and 0, with a margin; missing values are left out.

    Args:
        values: effects and the ends of their intervals in percent, an array of any shape.
    """
    finite = values[np.isfinite(values)]
    if not finite.size or not finite.any():
        return -1.0, 1.0
    low, high = min(finite.min(), 0.0), max(finite.max(), 0.0)
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def visible_guides(limits: tuple[float, float]) -> str:
    """The part of a caption that names the thresholds which `effect_axis` draws; empty if it draws none."""
    seen = [f"{size} %" for size in GUIDES if limits[0] < -size or size < limits[1]]
    return f"; dashed: {' and '.join(seen)}" * bool(seen)


def effect_axis(axes: Any, limits: tuple[float, float]) -> None:
    """Set up an x axis of effects in percent, with lines at 0 and at the visible verdict thresholds."""
    axes.set_xlim(*limits)
    axes.axvline(0, color="black", linewidth=0.8, zorder=1)
    for size in GUIDES:
        for place in (-size, size):
            if limits[0] < place < limits[1]:
                axes.axvline(place, color=FAINT, linewidth=0.6, linestyle=(0, (4, 3)), zorder=0.5)


def estimate(
    axes: Any, x: float, y: float, interval: tuple[float, float], text: str, *, upright: bool = False, **style: Any
) -> None:
    """Draw a point with its interval, horizontal or upright; both have `text` as tooltip. No-op without an estimate.

    Args:
        axes: to draw on.
        x, y: the point.
        interval: both bounds on the axis of the estimate; NaN if there are none.
        text: tooltip.
        upright: whether the interval is vertical.
        style: color, marker and other line properties.
    """
    if not np.isfinite([x, y]).all():
        return
    colour = style.pop("color")
    if np.isfinite(interval).all():
        across = ([x, x], interval) if upright else (interval, [y, y])
        (line,) = axes.plot(*across, color=colour, linewidth=1.2, solid_capstyle="butt", zorder=2)
        hover(line, text)
    style = {"marker": "o", "markersize": 4.5, "markeredgewidth": 0.8} | style
    (point,) = axes.plot([x], [y], color=colour, linestyle="", zorder=3, **style)
    hover(point, text)


def curve(axes: Any, x: Any, table: pd.DataFrame, measure: str, texts: Sequence[str], name: str, **style: Any) -> Any:
    """Draw a line through estimates, their intervals as a light band, and one marker per point with a tooltip.

    Args:
        axes: to draw on.
        x: one position per row of the table.
        table: columns `measure`, `measure_low`, `measure_high`.
        measure: the column to draw.
        texts: tooltips of the points.
        name: tooltip of the line.
        style: color, linestyle, marker.

    Returns:
        The line.
    """
    value, low, high = (ends(table, measure)[:, place] for place in range(3))
    marker, x = style.pop("marker"), np.asarray(x, dtype=float)
    band = axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=1.5)
    (line,) = axes.plot(x, value, linewidth=1.2, zorder=2, **style)
    hover(band, f"{name}: intervals")
    hover(line, name)
    for place, text in enumerate(texts):
        if np.isfinite(value[place]):
            dot = axes.plot(x[place], value[place], color=style["color"], marker=marker, markersize=3, zorder=3)
            hover(dot[0], text)
    return line


def ends(table: pd.DataFrame, measure: str) -> np.ndarray:
    """[rows, 3]: estimates and the bounds of their intervals."""
    names = measure.removesuffix("_pct")
    columns: Any = table[[measure, f"{names}_low", f"{names}_high"]]
    return columns.to_numpy(dtype=float, na_value=np.nan)


def precise(value: Any, low: Any, high: Any) -> str:
    """For example `0.02 [-0.08, 0.12]`: one more digit than tables show for small effects."""
    if pd.isna(value) or pd.isna(low) or pd.isna(high) or low == high:
        return number(value, 2)
    decimals = min(4, max(1, 1 + math.ceil(-math.log10((high - low) / 2))))
    return f"{number(value, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def beside(axes: Any, y: float, texts: Sequence[str], widths: Sequence[float], **style: Any) -> None:
    """Write columns of text to the right of a row; `y` in axis units, widths in inches."""
    left = 0.1
    for text, width in zip(texts, widths, strict=True):
        axes.annotate(
            text,
            (1, y),
            xytext=(72 * left, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            **({"fontsize": SMALL, "linespacing": LINE} | style),
        )
        left += width + 0.12


def perplexity_axis(axes: Any) -> None:
    """Set up the y axis: perplexity on a log scale, with as many decimals as its range needs."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    plain = ScalarFormatter(useOffset=False)
    plain.set_scientific(False)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_ylabel("perplexity (log scale), lower is better")
