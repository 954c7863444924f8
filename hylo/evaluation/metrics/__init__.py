"""Metrics: one file each. `all_metrics` finds them; the first by order is the one that verdicts on components rest on.

A metric needs no new evaluation: it is computed from the sums by window and position that every record keeps, so it can
be asked of runs that were recorded before it was written.
"""

from hylo.evaluation.metrics.base import Metric, all_metrics, main_metric, metric_named

__all__ = ["Metric", "all_metrics", "main_metric", "metric_named"]
