"""The title, unit and better direction of each metric."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    title: str
    """With its unit."""
    show: Callable[[float], str]
    lower_is_better: bool | None = True
    """None: neither; the metric should be equal on both sides, or explains another one."""


METRICS = {
    "seconds_per_step": Metric("s per step", lambda value: f"{value:.3g}"),
    "seconds_per_pass": Metric("s per pass", lambda value: f"{value:.3g}"),
    "seconds_per_cell": Metric("s per cell", lambda value: f"{value:.1f}"),
    "seconds_in_all": Metric("s in total", lambda value: f"{value:.0f}"),
    "tokens_per_second": Metric("tokens/s", lambda value: f"{value:,.0f}", lower_is_better=False),
    "useful_tokens_per_second": Metric("useful tokens/s", lambda value: f"{value:,.0f}", lower_is_better=False),
    "peak_bytes_above_weights": Metric("peak above the weights, GiB", lambda value: f"{value / 2**30:.2f}"),
    "cpu_seconds": Metric("CPU s", lambda value: f"{value:.1f}"),
    "peak_bytes": Metric("peak memory, MiB", lambda value: f"{value / 2**20:.0f}"),
    "page_bytes": Metric("report.html, MB", lambda value: f"{value / 1e6:.1f}"),
    "ratio_to_own_lora": Metric("time over hylo's LoRA", lambda value: f"{value:.2f}"),
    "gigaflops": Metric("matrix products, Gflop/s", lambda value: f"{value:,.0f}", lower_is_better=None),
    "perplexity": Metric("perplexity", lambda value: f"{value:.2f}", lower_is_better=None),
    "share": Metric("share", lambda value: f"{value:.1%}", lower_is_better=None),
}
