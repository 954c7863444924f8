"""What a contrast rests on: whether its arms had tuned learning rates, how long they trained, and signs that one of
them could go further. From the manifest and the records alone.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hylo import stats
from hylo.analysis.pairs import Pair, complete_runs, paired_runs, paired_sums, value_of
from hylo.analysis.rates import LEARNING_RATE, MULTIPLIER, choices, lead
from hylo.analysis.verdicts import Basis
from hylo.evaluation.metrics import Metric, main_metric
from hylo.runs.record import RunRecord, StudyRecord


def basis_of(study: StudyRecord, cell: str, reference: str, *, direction: float, metric: Metric | None = None) -> Basis:
    """What the contrast of a cell with its reference rests on.

    Args:
        study: the recorded study.
        cell: its cell.
        reference: the cell it is compared with.
        direction: 1 to look for an improvement by the cell, -1 for a loss. A contrast that moves the other way will not
            get there with more training.
        metric: of the contrast; perplexity by default.
    """
    arms = [arm for arm in (cell, reference) if any(map(_trained, complete_runs(study, arm)))]
    chosen = choices(study)
    tokens = [value_of(run, "training", "tokens") for arm in arms for run in complete_runs(study, arm)]
    shortfalls = [*_at_an_end(study, arms), *_hardly_moved(study, cell, reference)]
    if metric in (None, main_metric()) and (share := still_moving(paired_runs(study, cell, reference), direction)):
        shortfalls.append(share)
    return Basis(all(arm in chosen for arm in arms), min(tokens, default=None), tuple(shortfalls))


def still_moving(pairs: list[Pair], direction: float) -> str:
    """What the second half of the steps added to a contrast, as text.

    Empty unless it exceeds the noise of seeds and windows (95 %) and moves in the given direction.
    """
    halves = [_half_sums(run, other) for run, other in pairs]
    found = [half for half in halves if half is not None]
    if not pairs or len(found) < len(pairs):
        return ""
    full, tokens = paired_sums(pairs)
    if tokens.size < 2:
        return ""
    gained = stats.effect(full - np.stack(found), tokens)
    improvement = -gained.value
    if gained.low <= 0 <= gained.high or improvement * direction <= 0:
        return ""
    return f"still moving: {100 * improvement:+.2g} % in the second half of the steps"


def _half_sums(run: RunRecord, other: RunRecord) -> np.ndarray | None:
    """NLL of a cell minus that of its reference by window, half-way; None where a record lacks it."""
    tables = [run.half if _trained(run) else run.eval, other.half if _trained(other) else other.eval]
    if any(table is None for table in tables):
        return None
    sums: list[Any] = [table.groupby("window")[["nll_sum", "tokens"]].sum() for table in tables if table is not None]
    ours, theirs = sums
    kept = ours["tokens"].to_numpy() > 0
    return (ours["nll_sum"].to_numpy() - theirs["nll_sum"].to_numpy())[kept]


def _at_an_end(study: StudyRecord, arms: list[str]) -> Iterator[str]:
    chosen = choices(study)
    for arm in arms:
        for key in chosen.get(arm, {}).get("at_an_end", []):
            gained = lead(chosen[arm], key)
            over = f", by {gained:.3f} % over the next value" if math.isfinite(gained) else ""
            yield f"{arm}: best {key} at the edge of its grid{over}"


def _hardly_moved(study: StudyRecord, cell: str, reference: str) -> Iterator[str]:
    """Components only the cell has that, in any of its runs, hardly moved although moving further would pay off.

    Components whose own rate was tuned are exempt: trials at larger rates have shown on validation text that they do
    not pay off.
    """
    runs, others = complete_runs(study, cell), complete_runs(study, reference)
    known = {slot for other in others for slot in other.result.get("contribution", {}).get("slots", {})}
    found = [run.result.get("contribution", {}) for run in runs]
    small = {slot for section in found for slot in section.get("undertrained", [])} - known
    small -= _searched(study, cell, {slot for section in found for slot in section.get("slots", {})})
    for slot in sorted(small):
        change = max(section["slots"][slot]["change"] or 0.0 for section in found if slot in section.get("slots", {}))
        yield f"{slot} changed the hidden state by only {100 * change:.2g} %"


def _searched(study: StudyRecord, cell: str, slots: set[str]) -> set[str]:
    """Components whose own rate was tuned: by their multiplier, or because they are the whole method."""
    keys = choices(study).get(cell, {}).get("keys", [])
    own = {slot for slot in slots if f"method.{slot}.{MULTIPLIER}" in keys}
    return own | (slots if len(slots) == 1 and LEARNING_RATE in keys else set())


def _trained(run: RunRecord) -> bool:
    return value_of(run, "training", "steps") > 0
