"""The figures of the benchmarks: ratios for every workload, and seconds against what they grow with."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from benchmarks.results import Results, Row
from hylo.report.figures.style import COLOURS, framed

GROUPS = {
    ("step", "seconds_per_step"): "time of a training step",
    ("memory", "peak_bytes_above_weights"): "peak memory above the weights",
    ("evaluation", "seconds_per_pass"): "time of an evaluation",
    ("ablation", "seconds_in_all"): "time of the whole study",
}
"""What the ratio figure shows, from top to bottom; lower is better for all."""
TICKS = (0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 1, 1.5, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512)
SCALED = {"context": "tokens per window", "rank": "rank", "cells": "cells in one call"}
SERIES = (("hylo", COLOURS[0], "o"), ("peft", COLOURS[1], "s"), ("floor", "0.45", "D"))


def ratios_figure(results: Results) -> Figure | None:
    """Dots of the ratios to peft and to the floor with their spread, one row per workload; None if there are none."""
    groups = {
        title: [row for row in results.rows if (row.part, row.metric) == key and row.ratio_to_peft is not None]
        for key, title in GROUPS.items()
    }
    groups = {title: rows for title, rows in groups.items() if rows}
    if not groups:
        return None
    lines = sum(len(rows) + 1.35 for rows in groups.values())
    rounds = max(row.rounds for rows in groups.values() for row in rows)
    caption = [
        f"{results.subject}, {results.machine['cpu']}, threads: {results.machine['threads']}",
        f"medians over alternating rounds (rounds: {rounds}); memory and study: one measurement",
        "whiskers: plus and minus the ratio times its spread (benchmarks/results.md)",
        "the floor is the matrix products alone; the number at the end of a row is hylo / peft",
    ]

    def draw(figure: Figure) -> None:
        _draw_ratios(figure.add_subplot(), groups)

    return framed("hylo compared with peft + transformers and the floor", caption, 1.4 + 0.21 * lines, draw)


def _draw_ratios(axes: Axes, groups: dict[str, list[Row]]) -> None:
    place, places, names = 0.0, [], []
    axes.axvline(1, color="black", linewidth=0.9, zorder=1)
    for title, rows in groups.items():
        axes.text(-0.02, place, title, transform=axes.get_yaxis_transform(), ha="right", va="center", weight="bold")
        for row in rows:
            place += 1
            places.append(place)
            names.append(row.work)
            _dot(axes, place, row.ratio_to_peft, row.spread, COLOURS[0], "o")
            _dot(axes, place, row.ratio_to_floor, row.spread_to_floor, COLOURS[1], "D")
            ends = axes.get_yaxis_transform()
            axes.text(1.015, place, f"{row.ratio_to_peft:.2f}", transform=ends, va="center", fontsize=8)
        place += 1.35
    axes.plot([], [], "o", color=COLOURS[0], label="hylo / peft")
    if any(row.ratio_to_floor for rows in groups.values() for row in rows):
        axes.plot([], [], "D", color=COLOURS[1], markersize=5, label="hylo / floor")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    axes.set_yticks(places, names)
    axes.set_ylim(place - 0.65, -0.7)
    axes.tick_params(axis="y", length=0)
    _ratio_axis(axes)


def _dot(axes: Axes, place: float, ratio: float | None, spread: float | None, colour: str, marker: str) -> None:
    if ratio is None:
        return
    size = 5 if marker == "D" else 6
    axes.errorbar(
        ratio,
        place,
        xerr=ratio * spread if spread else None,
        fmt=marker,
        color=colour,
        markersize=size,
        elinewidth=1.1,
        capsize=2.5,
        zorder=3,
    )


def _ratio_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high, 1.25)
    inside = [tick for tick in TICKS if low <= tick <= high]
    every = 1 if len(inside) < 11 else 2
    axes.xaxis.set_major_locator(FixedLocator(inside[inside.index(1) % every :: every]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlim(low, high)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("ratio (log scale): left of 1, hylo takes less")


def scaling_figure(results: Results) -> Figure | None:
    """Seconds against context length, rank and number of cells; None if none of these was measured."""
    panels = {
        name: [row for row in results.rows if row.part == "scaling" and row.work.startswith(f"{name} ")]
        for name in SCALED
    }
    panels = {name: rows for name, rows in panels.items() if rows}
    if not panels:
        return None
    caption = [
        f"{results.subject.model}, {results.machine['cpu']}, threads: {results.machine['threads']}; "
        "LoRA of all linear layers",
        "contexts: 2,048 tokens per step; ranks: 4 windows of 256 tokens; cells: 2 steps, one peft script per cell",
        f"rounds: {max(row.rounds for rows in panels.values() for row in rows)}; cells: one measurement",
    ]

    def draw(figure: Figure) -> None:
        for axes, (name, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            _draw_growth(axes, name, rows)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3)

    return framed("How the cost grows", caption, 2.9, draw)


def _draw_growth(axes: Axes, name: str, rows: list[Row]) -> None:
    sizes = [int(row.work.split()[1]) for row in rows]
    for series, colour, marker in SERIES:
        values = [getattr(row, series) for row in rows]
        if None not in values:
            line = ":" if series == "floor" else "-"
            axes.plot(sizes, values, line, marker=marker, color=colour, markersize=5, linewidth=1.4, label=series)
    if name != "cells":
        axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45 if max(sizes) > 999 else 0)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.margins(x=0.1)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(SCALED[name])
    axes.set_ylabel("seconds per cell" if name == "cells" else "seconds per step")
