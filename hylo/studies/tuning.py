"""Settings chosen for each cell of a study on the validation split, before its own runs.

Every tuned cell gets the same number of trials, each with every trial seed; the search (hylo/studies/grid_search.py)
places them where that cell needs them. Trials are ordinary runs in a group beside the study's: finished ones are reused
across studies, they run side by side, and they resume after an interruption. A published study stores its choices, and
running it under the same conditions reuses them (`tune=recorded`) instead of searching again.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

import hylo.studies.spec
from hylo.core.devices import has_bfloat16, is_main_process, say
from hylo.core.errors import ConfigError, HyloError, problem
from hylo.core.files import write_json, write_table
from hylo.core.names import file_name
from hylo.core.schema import number_at, number_range
from hylo.runs.cell import Cell
from hylo.runs.config import Config, Tune
from hylo.runs.layout import CHOICES, TRIALS
from hylo.runs.shared import Session
from hylo.studies.arm import Arm, diverged, lost
from hylo.studies.choices import Choice, condition, published_choices
from hylo.studies.grid_search import start_settings
from hylo.studies.plan import Compose, Plan, check_plan, plan_study, run_pending
from hylo.studies.spec import Start, TuningConfig, key_of, tuned_cells
from hylo.studies.starts import starts_of, waves

VALIDATION = "data.eval_split=validation"
PRECISION = "trainer.precision"

Chosen = dict[str, list[str]]
"""Overrides by cell."""
MakeTrials = Callable[[Mapping[str, Sequence[str]]], list[Cell]]
"""Makes the trials, one per seed, of cells given by name with their own overrides."""


def tune(
    plan: Plan, config: Config, overrides: Sequence[str], compose: Compose, session: Session
) -> tuple[Chosen, dict[str, Any], pd.DataFrame | None]:
    """Choose the settings of each tuned cell by trials. Trials published with studies are not run again.

    Returns:
        The chosen overrides of each tuned cell, the manifest's notes on the choices, and the trials' sums by window;
        empty if the study tunes nothing or the command line says `tune=off`.

    Raises:
        ConfigError: a trial cannot work, or has the seed of a reported run; nothing has run by then.
        HyloError: a trial was lost, or no setting of a cell finished with a perplexity for every seed.
    """
    tuning = plan.study.tuning if plan.study else None
    if tuning is None or config.tune is Tune.off:
        return {}, {}, None
    if shared := {cell.config.seed for cell in plan.cells if cell.config.components} & set(tuning.seeds):
        allowed = "seeds that no reported run has, because the choice would favour that run"
        fix = "other seeds, or tuning.seeds in study.yaml"
        raise ConfigError(problem("tuning.seeds", sorted(shared), allowed, fix))
    narrow = tuning.bfloat16 and PRECISION not in map(key_of, overrides) and has_bfloat16(config.trainer.device)
    texts = [*overrides, VALIDATION, *tuning.overrides, *[f"{PRECISION}=bfloat16"] * narrow]
    group = file_name(f"tuning-of-{plan.group}")

    def make_trials(chosen: Mapping[str, Sequence[str]]) -> list[Cell]:
        made = plan_study(config, texts, compose, seeds=tuning.seeds, chosen=chosen, only=chosen.keys())
        return [dataclasses.replace(cell, group=group) for cell in made.cells]

    arms = arms_of(plan, tuning)
    first = make_trials({arm.cell: arm.overrides(start_settings([*arm.grids.values()])[0]) for arm in arms})
    trials = Plan(group, plan.outputs, first)
    check_plan(trials, session)
    conditions = {cell.name: condition(cell, [*tuning.grids(cell.name)], session) for cell in first}
    if config.tune is Tune.recorded:
        take_over(arms, conditions, tuning.seeds)

    def found() -> tuple[list[Choice], pd.DataFrame]:
        known = [arm for arm in arms if arm.trials]
        choices = [arm.choice(tuning.seeds, conditions[arm.cell], session) for arm in known]
        return choices, pd.concat([arm.sums(session) for arm in known], ignore_index=True)

    def keep() -> None:
        """Save the choices so far beside the trials."""
        choices, table = found()
        if is_main_process():
            write_json(trials.folder / CHOICES, {"tuning": [choice.note() for choice in choices]})
            write_table(trials.folder / TRIALS, table)

    # Only as many arms at once as keep all workers busy, so that each completes as early as possible.
    at_once = max(1, config.launcher.at_once(first, session) // len(tuning.seeds))
    starts = {arm.cell: arm.start.cell for arm in arms if arm.start is not None}
    for names in waves([arm.cell for arm in arms], starts, at_once):
        together = [arm for arm in arms if arm.cell in names]
        search(together, tuning.trials, trials, make_trials, session, after=keep)
    choices, table = found()
    for choice in choices:
        if not any(map(math.isfinite, choice.scores.values())):
            raise HyloError(
                f"cell {choice.cell}: no trial finished with a perplexity; its runs in {trials.folder} say why"
            )
        say(str(choice))
    chosen = {choice.cell: choice.overrides() for choice in choices}
    return chosen, {"tuning": [choice.note() for choice in choices]}, table


def take_over(arms: Sequence[Arm], conditions: Mapping[str, str], seeds: list[int]) -> None:
    """Give each arm the published trials made under the same conditions; of several studies, those with the most."""
    for choice, sums in published_choices(hylo.studies.spec.EXPERIMENTS):
        for arm in arms:
            here = conditions[arm.cell], [*arm.grids], seeds
            if (choice.condition, choice.keys, choice.seeds) == here and len(choice.tried) > len(arm.published):
                arm.published, arm.published_sums = choice.tried, sums


def arms_of(plan: Plan, tuning: TuningConfig) -> list[Arm]:
    """The tuned cells of a study, with every key checked: it must be a number of that cell, its initial grid in range.

    Raises:
        ConfigError: a key is invalid, or a named cell trains nothing; the message names cell and key.
    """
    cells = {cell.name: cell for cell in reversed(plan.cells)}
    order = dict.fromkeys(cell.name for cell in plan.cells)
    trained = [name for name in tuned_cells(tuning, order) if cells[name].config.components]
    named = [*(tuning.cells if isinstance(tuning.cells, list) else ()), *tuning.own]
    problems = [
        problem("tuning", name, "cells that train something and are not in tuning.fixed", "remove it from tuning")
        for name in dict.fromkeys(named)
        if name not in trained
    ]
    arms = []
    for name in trained:
        ranges, defaults = [], []
        for key, grid in tuning.grids(name).items():
            found, where = number_at(cells[name].config, key), f"tuning of {name}: {key}"
            if found is None:
                problems.append(problem(where, grid, "a key of this cell that holds a real number", "correct the key"))
                continue
            default, bounds = found
            problems += [problem(where, value, str(bounds), "correct it") for value in grid if not bounds.allows(value)]
            ranges.append(number_range(bounds))
            defaults.append(default)
        arms.append(Arm(name, tuning.grids(name), ranges, defaults))
    if problems:
        raise ConfigError(*problems)
    if plan.study and tuning.start is Start.compared:
        by_name = {arm.cell: arm for arm in arms}
        for name, other in starts_of([*by_name], plan.study.contrasts).items():
            by_name[name].start_at(by_name[other])
    return arms


def search(
    arms: Sequence[Arm],
    trials: int,
    plan: Plan,
    make_trials: MakeTrials,
    session: Session,
    *,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Run the trials of all arms: the initial grids first, then one more setting per arm at a time.

    Args:
        trials: number of settings per arm.
        plan: the plan of the trials; its cells are replaced.
        after: called after every wave of trials.

    Raises:
        HyloError: a trial ended otherwise than complete or diverged. It says nothing about its setting, so the search
            cannot go on from it.
    """
    for arm in arms:
        arm.begin(session)
        if said := arm.begun_elsewhere():
            say(f"{plan.group}: {said}")
    while wave := {arm: settings for arm in arms if (settings := arm.wanted(trials, session))}:
        cells: list[Cell] = []
        for place in range(max(map(len, wave.values()))):
            settings = {arm: each[place] for arm, each in wave.items() if place < len(each)}
            made = make_trials({arm.cell: arm.overrides(setting) for arm, setting in settings.items()})
            for arm, setting in settings.items():
                arm.trials[setting] = [arm.trial(cell, setting) for cell in made if cell.name == arm.cell]
                cells += arm.trials[setting]
        open_ = [cell for cell in cells if not diverged(cell, session)]
        done = sum(len(arm.trials) for arm in arms) - sum(map(len, wave.values()))
        names = ", ".join(arm.cell for arm in wave)
        say(f"{plan.group}: {done} of {trials * len(arms)} settings tried; now {len(cells)} trials of {names}")
        run_pending(dataclasses.replace(plan, cells=open_), session)
        if missing := [text for cell in open_ if (text := lost(cell, session))]:
            raise HyloError(
                f"{plan.group}: no setting can be chosen while trials are missing: {'; '.join(missing)}\n"
                f"    fix:     run the study again; complete trials are kept"
            )
        after()
