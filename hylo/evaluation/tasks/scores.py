"""Scores per item from the samples of lm-eval, whatever a task's metric is.

acc, exact_match, f1 of one answer, ...      the item's number; the task's score is the mean
word_perplexity, bits_per_byte, ...          log-likelihood and words or bytes: `<metric>_nats`, nats per word or
                                             byte, weighted by their number; the perplexity is exp of the mean
mcc, f1 over a whole task, brier_score       the item has no number of its own: the metric is left out, and named
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import pandas as pd

from hylo.evaluation.tasks.columns import COLUMNS

_PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass
class ItemScores:
    """The scores of all items.

    Attributes:
        rows: one per task, metric and item, in the order of COLUMNS.
        main: the first metric of each task, which stands for it.
        left_out: metrics of each task without a number per item.
        higher_is_better: by task and metric.
    """

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    main: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    higher_is_better: dict[str, dict[str, bool]] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Columns COLUMNS, sorted by the first three."""
        table = pd.DataFrame(self.rows, columns=pd.Index(COLUMNS))
        return table.sort_values(COLUMNS[:3], kind="stable").reset_index(drop=True)

    def section(self) -> dict[str, dict[str, Any]]:
        """What the record says about each task: its main metric, and each metric's number of items, mean, and standard
        error as lm-eval computes it, from the items of this run alone."""
        table: Any = self.table()
        found: dict[str, dict[str, Any]] = {}
        for task in sorted({*self.main, *self.left_out}):
            own = table[table["task"] == task]
            better, left_out = self.higher_is_better.get(task, {}), self.left_out.get(task, [])
            found[task] = {
                "main": self.main.get(task),
                "metrics": {metric: _summary(rows) for metric, rows in own.groupby("metric")},
                "lower_is_better": sorted(metric for metric, higher in better.items() if not higher),
                "left_out": left_out,
            }
        return found

    def said(self) -> list[str]:
        """A line per task, and one for metrics that are left out."""
        lines = []
        for task, about in self.section().items():
            shown = (f"{metric} {found['value']:.4f}" for metric, found in about["metrics"].items())
            if about["main"]:
                lines.append(f"{task}: {', '.join(shown)} ({about['metrics'][about['main']]['items']} items)")
        for task, metrics in self.left_out.items():
            lines.append(f"{task}: left out, because an item has no number of its own: {', '.join(metrics)}")
        return lines


def _summary(rows: Any) -> dict[str, Any]:
    value, weight = rows["value"].to_numpy(), rows["weight"].to_numpy()
    alike = len(rows) > 1 and (weight == 1).all()
    return {
        "items": len(rows),
        "value": float((value * weight).sum() / weight.sum()),
        "standard_error": float(value.std(ddof=1) / math.sqrt(len(rows))) if alike else None,
    }


def item_scores(samples: Mapping[str, Iterable[Mapping[str, Any]]], better: Mapping[str, Any]) -> ItemScores:
    """The scores in lm-eval's samples by task.

    Args:
        samples: of each task, one per item and filter.
        better: whether higher is better, by task and metric, as lm-eval says.
    """
    found = ItemScores()
    for task, own in samples.items():
        for sample in own:
            for metric in sample["metrics"]:
                _add(found, task, metric, sample, better.get(task) or {})
    return found


def _add(found: ItemScores, task: str, metric: str, sample: Mapping[str, Any], better: Mapping[str, Any]) -> None:
    score = sample[metric]
    name, value, weight = metric, score, 1.0
    higher = better.get(metric) is not False
    if metric in _PERPLEXITIES:
        name, value, weight, higher = f"{metric}_nats", -score[0] / score[1], float(score[1]), False
    if sample["filter"] != "none":
        name = f"{name}, {sample['filter']}"
    if not isinstance(value, Real) or not math.isfinite(value):
        left = found.left_out.setdefault(task, [])
        left += [name] * (name not in left)
        return
    found.main.setdefault(task, name)
    found.higher_is_better.setdefault(task, {})[name] = higher
    found.rows.append((task, name, int(sample["doc_id"]), float(value), weight))
