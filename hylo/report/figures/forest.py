"""Contrasts with their intervals, next to what was published and what the study could detect."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hylo.evaluation.metrics import all_metrics
from hylo.report.figures.marks import (
    beside,
    checked,
    effect_axis,
    effect_limits,
    estimate,
    precise,
    row_axis,
    rows,
    visible_guides,
    with_seeds,
)
from hylo.report.figures.style import COLOURS, MARKERS, SMALL, fold, framed, legend, legend_columns, text_size
from hylo.report.render.hover import hover
from hylo.report.tables.numbers import MISSING, number

COLUMNS = [
    "cell", "reference", "component", "measure", "effect", "low", "high", "seeds", "p_holm", "detectable", "published",
    "verdict",
]  # fmt: skip
_HEADERS = ["effect (%)", "p (Holm)", "verdict"]
_MEASURES = {metric.name: metric.label for metric in all_metrics()} | {"mean_window_ppl": "mean window PPL"}
_PUBLISHED, _DETECTABLE = "published", "too small to detect"
_BAND = "0.9"  # grey of effects too small to detect
_MAGNIFIED = 8  # effects smaller than the largest by this factor get a panel with its own scale

Contrast = dict[Any, Any]


class _Group(NamedTuple):
    """Contrasts in one row: the same cells, one per measure."""

    label: str
    contrasts: list[Contrast]
    texts: list[list[str]]
    """Columns to the right of each contrast."""


def forest_figure(title: str, lines: Sequence[str], contrasts: pd.DataFrame) -> Figure:
    """One row per contrast: effect with interval, published claim, smallest detectable effect, p and verdict.

    If effects differ by more than eightfold, a second panel magnifies the small ones; effects outside its range are
    arrowheads at its edge. Both panels are linear, so intervals keep their shape.

    Args:
        title, lines: title, and caption lines beyond the description of what is drawn.
        contrasts: cell, reference, component (may be empty), measure, effect, low, high (percent, positive is better),
            seeds, p_holm, detectable (percent), published (percent), verdict. Numbers may be missing.

    Raises:
        ValueError: a column is missing, or the table is empty.
    """
    table = checked(contrasts, COLUMNS, "forest_figure")
    groups, measures = _groups(table), list(dict.fromkeys(table["measure"]))
    heights = [[max(text_size(text)[1] for text in texts) + 0.03 for texts in group.texts] for group in groups]
    places = rows([group.label for group in groups], heights)
    height, scales = sum(place.height for place in places), _scales(table)
    handles = _handles(table, measures)
    legend_height = legend_columns(list(handles))[1]

    def draw(figure: Figure) -> None:
        space = figure.add_gridspec(2, len(scales), height_ratios=[height, legend_height])
        panels = [figure.add_subplot(space[0, place]) for place in range(len(scales))]
        for axes, scale in zip(panels, scales, strict=True):
            for group, place in zip(groups, places, strict=True):
                for contrast, y, own in zip(group.contrasts, place.slots, heights[groups.index(group)], strict=True):
                    _draw(axes, contrast, (y, own), measures.index(contrast["measure"]), scale)
            row_axis(axes, places, [group.label for group in groups])
            effect_axis(axes, scale)
            axes.set_xlabel("effect (%), positive is better" if axes is panels[0] else "magnified (%)", fontsize=8)
        for axes in panels[1:]:
            axes.tick_params(axis="y", labelleft=False)
        _write_texts(panels[-1], groups, [place.slots for place in places])
        legend(figure.add_subplot(space[1, :]), list(handles.values()), list(handles))

    against = f" against {table['reference'].iloc[0]}" if table["reference"].nunique() == 1 else ""
    said = [f"Points: effect on the measure{against}; whiskers: intervals{visible_guides(scales[0])}"]
    return framed(title, [*said, *with_seeds(lines, contrasts)], 1.3 + height + legend_height, draw)


def _groups(contrasts: Any) -> list[_Group]:
    by_row: dict[tuple[str, str, str], list[Contrast]] = {}
    for contrast in contrasts.to_dict("records"):
        by_row.setdefault((contrast["component"], contrast["cell"], contrast["reference"]), []).append(contrast)
    groups = []
    for (component, cell, reference), members in by_row.items():
        against = cell if contrasts["reference"].nunique() == 1 else f"{cell} vs {reference}"
        label = "\n".join(fold(name, 34) for name in (component, against) if name)
        groups.append(_Group(label, members, [_texts(contrast) for contrast in members]))
    return groups


def _texts(contrast: Contrast) -> list[str]:
    p, effect = contrast["p_holm"], precise(contrast["effect"], contrast["low"], contrast["high"])
    shown = MISSING if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
    return [effect.replace(" [", "\n[") if len(effect) > 22 else effect, shown, fold(str(contrast["verdict"]), 16)]


def _scales(contrasts: Any) -> list[tuple[float, float]]:
    """Limits of each panel's axis in percent: of all effects, and of the small ones if they would be invisible."""
    values = contrasts[["effect", "low", "high", "published"]].to_numpy(dtype=float, na_value=np.nan)
    scales = [effect_limits(values)]
    sizes = np.array([np.abs(row[np.isfinite(row)]).max(initial=0.0) for row in values[:, :3]])
    small = sizes[(sizes > 0) & (sizes < np.abs(values[np.isfinite(values)]).max(initial=0.0) / _MAGNIFIED)]
    if small.size:
        scales.append((-1.15 * small.max(), 1.15 * small.max()))
    return scales


def _draw(axes: Any, contrast: Contrast, slot: tuple[float, float], measure: int, scale: tuple[float, float]) -> None:
    y, height = slot
    name = f"{contrast['component']}: " * bool(contrast["component"]) + f"{contrast['cell']} vs {contrast['reference']}"
    name += f", {_MEASURES.get(contrast['measure'], contrast['measure'])}"
    effect, low, high = (
        float(contrast[key]) if pd.notna(contrast[key]) else np.nan for key in ("effect", "low", "high")
    )
    if pd.notna(detectable := contrast["detectable"]) and not (effect < scale[0] or effect > scale[1]):
        (band,) = axes.barh(y, 2 * detectable, left=-detectable, height=height - 0.02, color=_BAND, zorder=0.2)
        hover(band, f"{name}: smallest detectable effect {number(detectable, 2)} %")
    colour = COLOURS[measure % len(COLOURS)]
    text = f"{name}: {precise(effect, low, high)} %"
    if scale[0] <= effect <= scale[1]:
        estimate(axes, effect, y, (low, high), text, color=colour, marker=MARKERS[measure % len(MARKERS)])
    elif np.isfinite(effect):
        marker, edge = (">", scale[1]) if effect > scale[1] else ("<", scale[0])
        estimate(axes, edge, y, (np.nan, np.nan), text, color=colour, marker=marker, markersize=4, clip_on=False)
    if pd.notna(published := contrast["published"]) and scale[0] <= published <= scale[1]:
        text = f"{name}: published {number(published, 2)} %"
        estimate(axes, published, y, (np.nan, np.nan), text, color="black", marker="D", markerfacecolor="none")


def _handles(contrasts: Any, measures: list[str]) -> dict[str, Any]:
    """Legend handles by name."""
    handles: dict[str, Any] = {}
    for place, measure in enumerate(measures):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        handles[_MEASURES.get(measure, measure)] = Line2D([], [], color=colour, marker=marker, markersize=4.5)
    if contrasts["published"].notna().any():
        handles[_PUBLISHED] = Line2D([], [], color="black", marker="D", linestyle="", fillstyle="none", markersize=4.5)
    if contrasts["detectable"].notna().any():
        handles[_DETECTABLE] = Patch(color=_BAND)
    return handles


def _write_texts(axes: Any, groups: list[_Group], slots: list[list[float]]) -> None:
    every = [_HEADERS, *(texts for group in groups for texts in group.texts)]
    widths = [max(text_size(texts[column])[0] for texts in every) for column in range(len(_HEADERS))]
    beside(axes, -0.09, _HEADERS, widths, fontsize=SMALL, color="0.35")
    for group, ys in zip(groups, slots, strict=True):
        for texts, y in zip(group.texts, ys, strict=True):
            beside(axes, y, texts, widths)
