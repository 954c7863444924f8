"""What each metric is called, its unit, and which way is better."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    title: str
    """With its unit."""
    show: Callable[[float], str]
    lower_is_better: bool | None = True
    """None: neither; it is there to be equal on both sides, or to explain another."""


METRICS = {
    "seconds_per_step": Metric("s a step", lambda value: f"{value:.3g}"),
    "seconds_per_pass": Metric("s a pass", lambda value: f"{value:.3g}"),
    "seconds_per_cell": Metric("s a cell", lambda value: f"{value:.1f}"),
    "seconds_in_all": Metric("s in all", lambda value: f"{value:.0f}"),
    "tokens_per_second": Metric("tokens/s", lambda value: f"{value:,.0f}", lower_is_better=False),
    "useful_tokens_per_second": Metric("useful tokens/s", lambda value: f"{value:,.0f}", lower_is_better=False),
    "peak_bytes_above_weights": Metric("peak above the weights, GiB", lambda value: f"{value / 2**30:.2f}"),
    "ratio_to_own_lora": Metric("time over hylo's LoRA", lambda value: f"{value:.2f}"),
    "gigaflops": Metric("matrix products, Gflop/s", lambda value: f"{value:,.0f}", lower_is_better=None),
    "perplexity": Metric("perplexity", lambda value: f"{value:.2f}", lower_is_better=None),
    "share": Metric("share", lambda value: f"{value:.1%}", lower_is_better=None),
}
