"""Columns of the table of a task probe. No libraries: reports need no model."""

COLUMNS = ["task", "metric", "item", "value", "weight"]
"""task, metric, item (index of the question in the task), value (the item's score in the metric's own unit), weight (of
the item in the mean: 1, or the words or bytes behind it); one row per task, metric and item."""
