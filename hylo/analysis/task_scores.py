"""Scores of tasks (probe=tasks) by cell, and their contrasts, paired by seed and item.

lm-eval gives each model's score a standard error over its items. Two such errors say little about a difference, because
most items are hard or easy for both models alike; the difference of each item says what the items leave open. Contrasts
here are of that kind, with the half-width that two standard errors would give beside them (`unpaired`).

Shapes: S seeds, N items.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from hylo import stats
from hylo.analysis.contrasts import contrasts_of, level, p_value
from hylo.analysis.probed import interval, probed_pairs, probed_runs
from hylo.analysis.summary import compared
from hylo.core.errors import RecordError
from hylo.evaluation.tasks.columns import COLUMNS
from hylo.runs.layout import PROBE
from hylo.runs.record import RunRecord, StudyRecord

TASKS = "tasks"
"""The probe whose answers these are."""
SCORES = ["cell", "task", "metric", "main", "better", "items", "seeds", "score", "low", "high"]
CONTRASTS = [
    "cell", "reference", "component", "task", "metric", "main", "better", "items", "seeds", "difference", "low", "high",
    "p_holm", "paired", "unpaired",
]  # fmt: skip
_NORMAL = 1.96
"""Standard errors of a 95 % interval, as lm-eval's are commonly read."""


def task_scores(study: StudyRecord) -> pd.DataFrame:
    """One row per probed cell, task and metric; columns SCORES.

    - `main`: whether the metric is the task's first, which stands for it.
    - `better`: higher or lower.
    - `score`: mean over seeds and items, in the metric's own unit.

    Raises:
        RecordError: a record is damaged, or two runs were asked different questions.
    """
    rows = []
    for cell, runs in probed_runs(study, TASKS).items():
        for task, metric, about in _metrics(runs[0]):
            values, weights = _values(runs, task, metric)
            ends = {"low": 0.0, "high": 1.0} if ((values >= 0) & (values <= 1)).all() else {}
            found = interval(values, cell, task, metric, weights=weights, **ends)
            rows.append((cell, task, metric, *about, values.shape[1], len(runs), *found))
    return pd.DataFrame(rows, columns=pd.Index(SCORES))


def task_contrasts(study: StudyRecord) -> pd.DataFrame:
    """One row per comparison of two probed cells, task and metric: every cell against the base model, then the study's
    named contrasts or, if it names none, every cell against the previous one; columns CONTRASTS.

    - `difference`: score of the cell minus that of the reference, in the metric's own unit.
    - `p_holm`: test for no difference, Holm-corrected over the rows of a task and metric.
    - `paired`, `unpaired`: half-width of the interval, and the one that the two standard errors of a seed would give.

    Raises:
        RecordError: as in `task_scores`.
    """
    found = probed_runs(study, TASKS)
    named = {(each["cell"], each["reference"]): each["component"] or "" for each in contrasts_of(study)}
    rows: list[dict[str, Any]] = []
    for cell, reference in compared(study):
        for task, metric, about in _metrics(found[cell][0]) if {cell, reference} <= found.keys() else ():
            pairs = probed_pairs(study, found, cell, reference)
            if pairs and (row := _contrast(study, [*zip(*pairs, strict=True)], task, metric)):
                known = {"cell": cell, "reference": reference, "component": named.get((cell, reference), "")}
                known |= {"task": task, "metric": metric, "main": about[0], "better": about[1]}
                rows.append(known | row)
    return pd.DataFrame(_corrected(rows), columns=pd.Index(CONTRASTS))


def _contrast(study: StudyRecord, sides: list[Any], task: str, metric: str) -> dict[str, Any] | None:
    (one, weights), (other, other_weights) = (_values(side, task, metric) for side in sides)
    if one.shape != other.shape or not np.array_equal(weights, other_weights):
        raise RecordError(f"{sides[0][0].folder / PROBE} and {sides[1][0].folder / PROBE} hold different items")
    if weights.size < 2:
        return None
    difference = (one - other) * weights
    effect = stats.effect(difference, weights, level=level(study))
    errors = [_error(values, weights) for values in (one, other)]
    return {
        "items": effect.windows,
        "seeds": effect.seeds,
        "difference": effect.value,
        "low": effect.low,
        "high": effect.high,
        "p": p_value(study, difference, weights),
        "paired": (effect.high - effect.low) / 2,
        "unpaired": _NORMAL * math.sqrt(sum(errors)),
    }


def _error(values_SN: np.ndarray, weights: np.ndarray) -> float:
    """Squared standard error of a run's mean over items, as lm-eval computes it, mean over seeds; NaN with weights."""
    alike = (weights == 1).all()
    return float((values_SN.var(axis=1, ddof=1) / values_SN.shape[1]).mean()) if alike else math.nan


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    of_metric: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        of_metric.setdefault((row["task"], row["metric"]), []).append(row)
    for own in of_metric.values():
        for row, adjusted in zip(own, stats.holm([row.pop("p") for row in own]), strict=True):
            row["p_holm"] = float(adjusted)
    return rows


def _metrics(run: RunRecord) -> list[tuple[str, str, tuple[bool, str]]]:
    """Task and metric of each score in a record, the main metric of a task first; whether it is that, and what is
    better."""
    found = []
    for task, about in run.result["probe"]["tasks"].items():
        for metric in sorted(about["metrics"], key=lambda name: name != about["main"]):
            better = "lower" if metric in about["lower_is_better"] else "higher"
            found.append((task, metric, (metric == about["main"], better)))
    return found


def _values(runs: list[RunRecord], task: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores [S, N] and weights [N] of all items.

    Raises:
        RecordError: a run lacks an item that another has, or gives it another weight.
    """
    tables = [_of(run, task, metric) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        same = table.index.equals(tables[0].index) and table["weight"].equals(tables[0]["weight"])
        if not same or not np.isfinite(table["value"].to_numpy(dtype=float, na_value=np.nan)).all():
            raise RecordError(f"{run.folder / PROBE} lacks answers; delete it and run the cell again")
    return np.stack([table["value"].to_numpy(dtype=float) for table in tables]), tables[0]["weight"].to_numpy()


def _of(run: RunRecord, task: str, metric: str) -> Any:
    table: Any = run.probe_table(COLUMNS)
    return table[(table["task"] == task) & (table["metric"] == metric)].set_index("item")
