"""Training loss of each cell."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hylo.analysis.pairs import complete_runs
from hylo.report.figures.multiples import TOGETHER, grid, label_outer, panels, same_scale
from hylo.report.figures.style import FAINT, GRID, cell_style, framed, legend, legend_columns
from hylo.report.render.hover import hover
from hylo.runs.record import StudyRecord


def loss_figure(study: StudyRecord, *, smoothing: int = 1) -> Figure:
    """Training loss by step, one line per cell: mean over seeds, then running mean over `smoothing` steps.

    With several seeds, a band spans the lowest to the highest of them. Many cells get one panel each.
    """
    every = {cell: _losses(study, cell, smoothing) for cell in study.cells}
    losses = {cell: loss for cell, loss in every.items() if len(loss)}
    styles = {cell: cell_style(place) for place, cell in enumerate(study.cells)}
    counts = sorted({loss.shape[1] for loss in losses.values()})

    def together(figure: Figure) -> None:
        axes, names = figure.subplots(2, 1, height_ratios=[3.0, legend_columns(list(losses))[1]])
        for cell, loss in losses.items():
            _line(axes, cell, loss, styles[cell])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss (nats per token)")
        legend(names, axes.lines, list(losses))

    def apart(figure: Figure) -> None:
        shape = grid(list(losses))
        axes = panels(figure, shape)
        for panel, (cell, loss) in zip(axes, losses.items(), strict=True):
            for other in losses.values():
                panel.plot(other.index, other.mean(axis=1), color=FAINT, linewidth=0.4)
            _line(panel, cell, loss, cell_style(0))
            panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        same_scale(axes)
        label_outer(axes, shape, "optimizer step", "loss (nats per token)")

    lines = ["Lines: mean over seeds" + (f", running mean over {smoothing} steps" if smoothing > 1 else "")]
    if counts and counts[-1] > 1:
        lines.append("bands: lowest to highest seed")
    lines.append(f"seeds per cell: {' to '.join(str(count) for count in dict.fromkeys([*counts[:1], *counts[-1:]]))}")
    title = f"{study.name}: training loss"
    if len(losses) <= TOGETHER:
        return framed(title, lines, 3.8 + legend_columns(list(losses))[1], together)
    return framed(
        title,
        ["One panel per cell, other cells in grey", lines[0].lower(), *lines[1:]],
        grid(list(losses)).height + 0.7,
        apart,
    )


def _line(axes: Any, cell: str, loss: Any, style: dict[str, Any]) -> None:
    mean, seeds = loss.mean(axis=1), loss.shape[1]
    (line,) = axes.plot(mean.index, mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.2, label=cell)
    text = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    hover(line, f"{cell}: {mean.iloc[-1]:.3f} nats per token at step {mean.index[-1]}, {text}")
    if seeds > 1:
        low, high = loss.min(axis=1), loss.max(axis=1)
        band = axes.fill_between(mean.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
        last = f"{low.iloc[-1]:.3f} to {high.iloc[-1]:.3f} nats per token at step {mean.index[-1]}"
        hover(band, f"{cell}: lowest to highest of {seeds} seeds, {last}")


def _losses(study: StudyRecord, cell: str, smoothing: int) -> Any:
    """Loss in nats per token by step (rows) and seed (columns)."""
    runs = [run for run in complete_runs(study, cell) if len(run.curve)]
    if not runs:
        return pd.DataFrame()
    curves: Any = {run.seed: run.curve.groupby("step")["loss"].mean() for run in runs}
    return pd.concat(curves, axis=1).rolling(smoothing, min_periods=1).mean()
