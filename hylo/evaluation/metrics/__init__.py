"""Metrics, one file each. `all_metrics` discovers them; verdicts on components use the first by order.

A metric needs no new evaluation: it is computed from the sums by window and position in every record, so it also works
for runs recorded before it was added.
"""

from hylo.evaluation.metrics.base import Metric, all_metrics, main_metric, metric_named

__all__ = ["Metric", "all_metrics", "main_metric", "metric_named"]
