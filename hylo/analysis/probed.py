"""Scores per item of probed runs, paired by seed and item: what the analyses of all probes share.

An item is what a probe asks of every run alike: a list of facts, a question of a task. Its score is a number; a cell's
is the mean over seeds and items, a contrast the same mean of differences, with the intervals of `hylo.stats` (items in
place of windows). One seed covers new items only, several cover new seeds and new items. If all items have one score,
nothing varies and the interval has zero width, which does not prove that other items would score the same.

Shapes: S seeds, N items.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from hylo import stats
from hylo.analysis.pairs import Pair, complete_runs, generator
from hylo.core.errors import RecordError
from hylo.runs.layout import RESULT
from hylo.runs.record import RunRecord, StudyRecord


def probed_runs(study: StudyRecord, probe: str) -> dict[str, list[RunRecord]]:
    """The complete runs of each cell that were asked this probe, by seed; cells in study order, those without left out.

    Raises:
        RecordError: two runs were asked different questions.
    """
    asked = {cell: [run for run in complete_runs(study, cell) if run.probe_name == probe] for cell in study.cells}
    found = {cell: runs for cell, runs in asked.items() if runs}
    first, *others = [run for runs in found.values() for run in runs] or [None]
    for run in others:
        if first and run and run.probe_fingerprint != first.probe_fingerprint:
            raise RecordError(
                f"{first.folder / RESULT} and {run.folder / RESULT} hold the answers to different probes; "
                f"run the study again with one probe"
            )
    return found


def probed_pairs(study: StudyRecord, found: Mapping[str, Sequence[RunRecord]], cell: str, reference: str) -> list[Pair]:
    """Probed runs of a cell, each with the reference's of the same seed; the base model's run pairs with every seed."""
    runs, others = found.get(cell, []), found.get(reference, [])
    if study.is_base(reference):
        return [(run, others[0]) for run in runs] if others else []
    by_seed = {other.seed: other for other in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def interval(
    values_SN: np.ndarray, *names: str, weights: np.ndarray | None = None, low: float = -np.inf, high: float = np.inf
) -> stats.Interval:
    """Mean over seeds and items with its 95 % interval, clipped to [low, high].

    Args:
        values_SN: [S, N], the values to average.
        names: identify what is measured; they seed the one-seed bootstrap, so a row does not depend on other rows.
        weights: [N], of the items in the mean; None: equal ones.
        low, high: smallest and largest possible value.
    """
    weights = np.ones(values_SN.shape[1]) if weights is None else weights
    if len(values_SN) == 1:
        ends = stats.window_bootstrap(values_SN[0] * weights, weights, generator(*names))
    else:
        ends = [float(each) for each in stats.crossed_interval(values_SN * weights, weights)]
    return stats.Interval(ends[0], *np.clip(ends[1:], low, high).tolist())
