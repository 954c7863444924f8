"""A setting chosen for each cell of a study on the validation split, before its own runs.

The trials are runs like any other, in a group of their own beside the study's, with a seed that the study does not use.
The report tells what was tried and chosen; a choice at the end of the grid is named as such, because the best value may
lie beyond it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hylo.cell import Cell
from hylo.config import Config
from hylo.errors import ConfigError, HyloError, problem
from hylo.fingerprint import fingerprint
from hylo.records import file_name, read_run
from hylo.runtime import is_main_process
from hylo.session import Session
from hylo.study import Compose, Plan, check_plan, plan_study, run_pending
from hylo.study_file import TuningConfig

VALIDATION = "data.eval_split=validation"

Chosen = dict[str, list[str]]
"""Overrides by cell."""


def tune(
    plan: Plan, config: Config, overrides: Sequence[str], compose: Compose, session: Session
) -> tuple[Chosen, dict[str, Any]]:
    """Run the trials that are not complete, and choose for each cell the value with the lowest validation perplexity.

    Returns:
        The chosen override of each tuned cell, and what the manifest says of the choice; both empty where the study
        tunes nothing.

    Raises:
        ConfigError: a trial cannot work, or has the seed of a reported run.
        HyloError: a cell has no trial that ended with a perplexity.
    """
    tuning = plan.study.tuning if plan.study else None
    if tuning is None:
        return {}, {}
    if tuning.seed in {cell.config.seed for cell in plan.cells if cell.config.components}:
        allowed = "a seed that no reported run has: the choice would favour that run"
        raise ConfigError(problem("tuning.seed", tuning.seed, allowed, "other seeds, or tuning.seed in study.yaml"))
    group = file_name(f"tuning-of-{plan.group}")
    trials = {}
    for value in tuning.values:
        for cell in _cells(tuning, value, config, overrides, compose):
            name = file_name(f"{cell.name},{tuning.key}={value:g}")
            trials[cell.name, value] = dataclasses.replace(cell, group=group, name=name)
    tried = Plan(group, plan.outputs, list(trials.values()))
    check_plan(tried, session)
    run_pending(tried, session)
    told = [_choice(name, tuning, trials, session) for name in tuning.cells]
    return {each["cell"]: [f"{tuning.key}={each['chosen']!r}"] for each in told}, {"tuning": told}


def _cells(
    tuning: TuningConfig, value: float, config: Config, overrides: Sequence[str], compose: Compose
) -> list[Cell]:
    """The tuned cells with one value, on the validation split."""
    chosen = {name: [f"{tuning.key}={value!r}"] for name in tuning.cells}
    plan = plan_study(config, [*overrides, VALIDATION], compose, seeds=[tuning.seed], chosen=chosen)
    return [cell for cell in plan.cells if cell.name in tuning.cells]


def _choice(name: str, tuning: TuningConfig, trials: dict[tuple[str, float], Cell], session: Session) -> dict[str, Any]:
    """What was tried for a cell, and the best of it."""
    found = {value: _perplexity(trials[name, value], session) for value in tuning.values}
    known = {value: ppl for value, ppl in found.items() if ppl is not None}
    if not known:
        raise HyloError(f"cell {name}: no trial of {tuning.key} ended with a perplexity; its runs say why")
    best = min(known, key=lambda value: known[value])
    at_end = len(tuning.values) > 1 and best in (min(tuning.values), max(tuning.values))
    if is_main_process():
        end = ", an end of the grid: a better value may lie beyond it" if at_end else ""
        print(f"{name}: {tuning.key}={best:g} has the lowest validation perplexity{end}", flush=True)
    return {
        "cell": name,
        "key": tuning.key,
        "chosen": best,
        "at_an_end_of_the_grid": at_end,
        "validation_ppl": {f"{value:g}": ppl for value, ppl in found.items()},
    }


def _perplexity(cell: Cell, session: Session) -> float | None:
    record = read_run(cell.folder(fingerprint(cell.config, session)))
    return record.result["metrics"]["ppl"] if record.complete else None
