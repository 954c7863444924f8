"""The figures of a study."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from hylo.records import StudyRecord
from hylo.report.pairs import complete_runs
from hylo.report.style import COLOURS, LINES, MARKERS, fold, framed
from hylo.report.summary import ppl_by_bin
from hylo.report.tables import MISSING, caption, interval, split_by_reference
from hylo.report.trajectories import trajectory_figure

BINS = 10


def improvement_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure:
    """Bars of the improvement over the untuned model in percent, with its interval, one a trained cell."""
    against_untuned, _ = split_by_reference(summary, study).values()
    part: Any = against_untuned[against_untuned["reference"] != ""]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        value, low, high = (part[f"improvement_{end}"].to_numpy(dtype=float) for end in ("pct", "low", "high"))
        rows = np.arange(len(part))
        axes.barh(rows, np.nan_to_num(value), height=0.62, color=COLOURS[0], alpha=0.85)
        # A percentile interval need not hold its estimate, and a whisker has no negative length.
        whiskers = np.nan_to_num(np.maximum([value - low, high - value], 0))
        known = ~np.isnan(value)
        axes.errorbar(
            value[known], rows[known], xerr=whiskers[:, known], fmt="none", ecolor="black", elinewidth=1, capsize=3
        )
        for row, record in enumerate(part.to_dict("records")):
            text = interval(record["improvement_pct"], record["improvement_low"], record["improvement_high"])
            axes.annotate(
                text if known[row] else f"{MISSING} no pair of complete runs",
                (1.01, row),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(rows, [fold(cell) for cell in part["cell"]])
        axes.set_ylim(len(part) - 0.4, -0.6)
        axes.margins(x=0.04)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("improvement of perplexity over the untuned model (%), higher is better")
        axes.set_ylabel("cell")

    lines = ["Bars: 100 (1 - PPL / PPL of the untuned model), whiskers: the interval", *caption(study, summary)]
    return framed(f"{study.name}: improvement over the untuned model", lines, 1.7 + 0.36 * max(2, len(part)), draw)


def position_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure:
    """Perplexity against the position in the window, ten bins, one line a cell, the middle third shaded."""
    bins = ppl_by_bin(study)
    edges, unit = _bin_edges(study)
    centres = (edges[1:] + edges[:-1]) / 2

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        third = (edges[-1] - edges[0]) / 3
        axes.axvspan(edges[0] + third, edges[-1] - third, color="0.93", linewidth=0, label="middle third")
        for place, (cell, line) in enumerate(bins.groupby("cell", sort=False)):
            repeat = place // len(COLOURS) % len(LINES)
            axes.plot(
                centres[line["bin"].to_numpy(dtype=int)],
                line["ppl"],
                color=COLOURS[place % len(COLOURS)],
                linestyle=LINES[repeat],
                marker=MARKERS[repeat],
                markersize=3.5,
                linewidth=1.4,
                label=fold(str(cell)),
            )
        _perplexity_axis(axes)
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel(f"position in the window ({unit}), ten bins")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)

    lines = ["Lines: exp of the mean over seeds of log PPL, no interval drawn", *caption(study, summary)]
    return framed(f"{study.name}: perplexity by position", lines, 4.6, draw)


def loss_figure(study: StudyRecord, *, smoothing: int = 1) -> Figure:
    """Training loss against the step, one line a cell: mean over seeds, then running mean of `smoothing` steps."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, cell in enumerate(study.cells):
            curves = [run.curve[["step", "loss"]] for run in complete_runs(study, cell) if len(run.curve)]
            if not curves:
                continue
            loss: Any = pd.concat(curves).groupby("step")["loss"].mean()
            mean = loss.rolling(smoothing, min_periods=1).mean()
            style = LINES[place // len(COLOURS) % len(LINES)]
            axes.plot(mean.index, mean, color=COLOURS[place % len(COLOURS)], linestyle=style, label=fold(cell))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss (nats a token)")
        if axes.lines:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)

    lines = ["Lines: mean over seeds" + (f", running mean over {smoothing} steps" if smoothing > 1 else "")]
    return framed(f"{study.name}: training loss", lines, 4.0, draw)


FIGURES: dict[str, Callable[[StudyRecord, pd.DataFrame], Figure | None]] = {
    "improvement": improvement_figure,
    "ppl_by_position": position_figure,
    "trajectories": trajectory_figure,
}
"""By file name. None: there is nothing to draw."""


def _bin_edges(study: StudyRecord) -> tuple[np.ndarray, str]:
    """Edges of the ten bins and their unit: tokens, or percent where windows differ in length.

    The first token of a window, position 0, is context and not predicted.
    """
    windows = [run.windows["length"] for cell in study.cells for run in complete_runs(study, cell)]
    lengths = set(pd.concat(windows)) if windows else set()
    if len(lengths) == 1:
        return np.linspace(1, lengths.pop(), BINS + 1), "tokens"
    return np.linspace(0, 100, BINS + 1), "% of its length"


def _perplexity_axis(axes: Any) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_ylabel("perplexity (log scale), lower is better")
