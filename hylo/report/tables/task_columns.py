"""Columns for the scores of tasks: a column per task in a summary, and the tables of cells and contrasts."""

from typing import Any

import pandas as pd

from hylo.report.tables.columns import Column, estimate, quantity, text
from hylo.report.tables.decision_columns import CELL, COMPONENT, REFERENCE, significant

MOST = 3
"""Tasks with a column of their own in a summary; of more, only the table of scores is shown."""

TASK = text("Task", "task", "The task's name in lm-eval, in its file, or in hylo.")
METRIC = text("Metric", "metric", "The task's own score of an item; the first of a task stands for it.")
BETTER = text("Better", "better", "Whether a higher or a lower score is better.")
ITEMS = quantity("Items", "items", "Questions behind the score.", decimals=0)
SEEDS = quantity("Seeds", "seeds", "Seeds behind the row. With one, new items only.", decimals=0)
SCORES = [
    CELL,
    TASK,
    METRIC,
    BETTER,
    ITEMS,
    SEEDS,
    estimate("Score [95 %]", "score", "low", "high", "Mean over seeds and items, in the metric's own unit."),
]
DIFFERENCE = estimate(
    "Difference [95 %]",
    "difference",
    "low",
    "high",
    "Cell minus reference, paired by seed and item.",
)
P = significant("p", "p_holm", "Test for no difference; two-sided, Holm-corrected over the rows of a task and metric.")
PAIRED = significant("Paired ±", "paired", "Half-width of the interval.")
UNPAIRED = significant(
    "Unpaired ±", "unpaired", "Half-width from the two standard errors that lm-eval gives, as if the items differed."
)
CONTRASTS = [CELL, REFERENCE, COMPONENT, TASK, METRIC, BETTER, ITEMS, SEEDS, DIFFERENCE, P, PAIRED, UNPAIRED]
CONTRASTS_IN_BRIEF = [CELL, REFERENCE, TASK, METRIC, ITEMS, SEEDS, DIFFERENCE, P, PAIRED, UNPAIRED]


def with_scores(summary: pd.DataFrame, scores: pd.DataFrame) -> tuple[pd.DataFrame, list[Column]]:
    """A summary with the main score of each task beside its other columns, and these columns.

    Args:
        summary: rows by cell.
        scores: as `hylo.analysis.task_scores.task_scores` returns them; may be empty.
    """
    table: Any = scores[scores["main"].astype(bool)] if len(scores) else scores
    tasks = list(dict.fromkeys(table["task"])) if len(table) else []
    columns: list[Column] = []
    for task in tasks if len(tasks) <= MOST else ():
        own: Any = table[table["task"] == task].set_index("cell")
        metric, items = own["metric"].iloc[0], own["items"].iloc[0]
        keys = {end: f"{task} {end}" for end in ("score", "low", "high")}
        summary = summary.assign(**{key: summary["cell"].map(own[end]) for end, key in keys.items()})
        about = f"Mean {metric} over the {items} items of the task {task}. Table tasks.csv."
        columns.append(
            estimate(f"{task.replace('_', ' ')} {metric} [95 %]", keys["score"], keys["low"], keys["high"], about)
        )
    return summary, columns
