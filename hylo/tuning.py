"""Settings chosen for each cell of a study on the validation split, before its own runs.

Every tuned cell gets the same number of trials, each with every trial seed; the search (hylo/search.py) puts them where
that cell needs them. Trials are runs like any other, in a group of their own beside the study's: found again across
studies, side by side, and continued where they were interrupted. A published study holds its choices, and whoever runs
it under the same conditions takes them over (`tune=recorded`) instead of searching again.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

import hylo.study_file
from hylo.cell import Cell
from hylo.choices import Choice, condition, no_sums, published_choices, score
from hylo.config import Config, Tune
from hylo.errors import ConfigError, HyloError, problem
from hylo.fingerprint import fingerprint
from hylo.records import FAILED, RESULT, RunRecord, file_name, read_run
from hylo.runtime import say
from hylo.schema import number_bounds, number_range
from hylo.search import Setting, next_setting, start_settings
from hylo.session import Session
from hylo.study import Compose, Plan, check_plan, plan_study, run_pending
from hylo.study_file import TuningConfig, tuned_cells

VALIDATION = "data.eval_split=validation"

Chosen = dict[str, list[str]]
"""Overrides by cell."""
MakeTrials = Callable[[Mapping[str, Sequence[str]]], list[Cell]]
"""Makes the trials, one a seed, of cells by name with overrides of their own."""


@dataclass(eq=False)
class Arm:
    """A tuned cell and its search."""

    cell: str
    grids: dict[str, list[float]]
    """The start of each key's grid."""
    ranges: list[tuple[float, float]]
    """The lowest and highest value that each key may have."""
    trials: dict[Setting, list[Cell]] = field(default_factory=dict)

    def overrides(self, setting: Setting) -> list[str]:
        """A setting as overrides."""
        return [f"{key}={value!r}" for key, value in zip(self.grids, setting, strict=True)]

    def tried(self, session: Session) -> dict[Setting, list[float | None]]:
        """Validation perplexity of each setting by seed."""
        return {setting: [_perplexity(cell, session) for cell in cells] for setting, cells in self.trials.items()}

    def wanted(self, trials: int, session: Session) -> list[Setting]:
        """What comes next; nothing where the arm has had its trials."""
        if not self.trials:
            return start_settings([*self.grids.values()])
        if len(self.trials) >= trials:
            return []
        scores = {setting: score(found) for setting, found in self.tried(session).items()}
        following = next_setting(scores, [*self.grids.values()], self.ranges)
        return [] if following is None else [following]


def tune(
    plan: Plan, config: Config, overrides: Sequence[str], compose: Compose, session: Session
) -> tuple[Chosen, dict[str, Any], pd.DataFrame | None]:
    """Choose the settings of each tuned cell: those that the published study has, or by trials that are run now.

    Returns:
        The chosen overrides of each tuned cell, what the manifest says of the choices, and the trials' sums by window;
        empty where the study tunes nothing or the command line says `tune=off`.

    Raises:
        ConfigError: a trial cannot work, or has the seed of a reported run; nothing has run then.
        HyloError: a cell has no setting that ended with a perplexity for every seed.
    """
    tuning = plan.study.tuning if plan.study else None
    if tuning is None or config.tune is Tune.off:
        return {}, {}, None
    if shared := {cell.config.seed for cell in plan.cells if cell.config.components} & set(tuning.seeds):
        allowed = "seeds that no reported run has: the choice would favour that run"
        fix = "other seeds, or tuning.seeds in study.yaml"
        raise ConfigError(problem("tuning.seeds", sorted(shared), allowed, fix))
    texts = [*overrides, VALIDATION, *tuning.overrides]
    group = file_name(f"tuning-of-{plan.group}")

    def make_trials(chosen: Mapping[str, Sequence[str]]) -> list[Cell]:
        made = plan_study(config, texts, compose, seeds=tuning.seeds, chosen=chosen, only=chosen.keys())
        return [dataclasses.replace(cell, group=group) for cell in made.cells]

    arms = arms_of(plan, tuning)
    first = make_trials({arm.cell: arm.overrides(start_settings([*arm.grids.values()])[0]) for arm in arms})
    conditions = {cell.name: condition(cell, [*tuning.grids(cell.name)], session) for cell in first}
    known, sums = {}, no_sums()
    if config.tune is Tune.recorded:
        published, sums = published_choices(hylo.study_file.EXPERIMENTS / str(config.study))
        known = {
            name: choice
            for name, choice in published.items()
            if choice.condition == conditions.get(name) and choice.keys == [*tuning.grids(name)]
        }
    searched = [arm for arm in arms if arm.cell not in known]
    if searched:
        count = len(searched) * tuning.trials * len(tuning.seeds)
        say(f"{plan.group}: {count} trials on validation text choose {', '.join(tuning.keys)} of {len(searched)} cells")
        search(searched, tuning.trials, Plan(group, plan.outputs, first), make_trials, session)
    choices = [known.get(arm.cell) or _choice(arm, tuning.seeds, conditions[arm.cell], session) for arm in arms]
    for choice in choices:
        say(str(choice))
    table: Any = pd.concat([sums[sums["cell"].isin([*known])], *(_sums(arm, session) for arm in searched)])
    chosen = {choice.cell: choice.overrides() for choice in choices}
    return chosen, {"tuning": [choice.note() for choice in choices]}, table.reset_index(drop=True)


def arms_of(plan: Plan, tuning: TuningConfig) -> list[Arm]:
    """The tuned cells of a study, with every key checked: a number of that cell, whose grid starts within its range.

    Raises:
        ConfigError: it is not, or the cell trains nothing; the message names cell and key.
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
        ranges = []
        for key, grid in tuning.grids(name).items():
            bounds = number_bounds(cells[name].config, key)
            where = f"tuning of {name}: {key}"
            if bounds is None:
                problems.append(problem(where, grid, "a key of this cell that holds a real number", "correct the key"))
                continue
            problems += [problem(where, value, str(bounds), "correct it") for value in grid if not bounds.allows(value)]
            ranges.append(number_range(bounds))
        arms.append(Arm(name, tuning.grids(name), ranges))
    if problems:
        raise ConfigError(*problems)
    return arms


def search(arms: Sequence[Arm], trials: int, first: Plan, make_trials: MakeTrials, session: Session) -> None:
    """Run the trials of all arms: the start of each grid, then one setting more of each arm at a time.

    Arguments:
        trials: settings of each arm.
        first: a trial of each arm; all are checked before any runs.
    """
    check_plan(first, session)
    while wave := {arm.cell: settings for arm in arms if (settings := arm.wanted(trials, session))}:
        cells: list[Cell] = []
        for place in range(max(map(len, wave.values()))):
            settings = {arm: wave[arm.cell][place] for arm in arms if place < len(wave.get(arm.cell, []))}
            made = make_trials({arm.cell: arm.overrides(setting) for arm, setting in settings.items()})
            for arm, setting in settings.items():
                arm.trials[setting] = [_named(cell, setting, arm) for cell in made if cell.name == arm.cell]
                cells += arm.trials[setting]
        run_pending(dataclasses.replace(first, cells=[cell for cell in cells if not _diverged(cell, session)]), session)


def _named(cell: Cell, setting: Setting, arm: Arm) -> Cell:
    values = ",".join(f"{key}={value:g}" for key, value in zip(arm.grids, setting, strict=True))
    return dataclasses.replace(cell, name=file_name(f"{cell.name},{values}"))


def _choice(arm: Arm, seeds: list[int], condition: str, session: Session) -> Choice:
    choice = Choice(arm.cell, [*arm.grids], arm.tried(session), seeds, condition)
    if not any(map(math.isfinite, choice.scores.values())):
        raise HyloError(
            f"cell {arm.cell}: no trial of {', '.join(arm.grids)} ended with a perplexity; its runs say why"
        )
    return choice


def _record(cell: Cell, session: Session) -> RunRecord | None:
    """The record of a trial, complete or failed; None where it has not run."""
    folder = cell.folder(fingerprint(cell.config, session))
    return read_run(folder) if (folder / RESULT).exists() else None


def _diverged(cell: Cell, session: Session) -> bool:
    """Whether a trial was run and diverged: it counts as tried, and would only do so again."""
    record = _record(cell, session)
    return record is not None and record.result["status"] == FAILED and "TrainingDiverged" in record.result["error"]


def _perplexity(cell: Cell, session: Session) -> float | None:
    record = _record(cell, session)
    return record.result["metrics"]["ppl"] if record is not None and record.complete else None


def _sums(arm: Arm, session: Session) -> pd.DataFrame:
    """NLL sums of an arm's trials: cell, setting (its place among those tried), seed, window, nll_sum, tokens."""
    return pd.concat([no_sums(), *_tables(arm, session)])


def _tables(arm: Arm, session: Session) -> Iterator[pd.DataFrame]:
    for place, cells in enumerate(arm.trials.values()):
        for cell in cells:
            record = _record(cell, session)
            if record is not None and record.complete:
                table: Any = record.eval.groupby("window", as_index=False)[["nll_sum", "tokens"]].sum()
                yield table.assign(cell=arm.cell, setting=place, seed=cell.config.seed)
