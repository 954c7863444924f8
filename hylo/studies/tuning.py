"""Settings chosen for each cell of a study on the validation split, before its own runs.

Every tuned cell gets the same number of trials, each with every trial seed; the search (hylo/studies/grid_search.py)
places them where that cell needs them. Trials are ordinary runs in a group beside the study's: finished ones are reused
across studies, they run side by side, and they resume after an interruption. A published study stores its choices, and
running it under the same conditions reuses them (`tune=recorded`) instead of searching again.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from hylo.runs.fingerprint import fingerprint
from hylo.runs.shared import Session
from hylo.runs.status import status_of
from hylo.runs.store import CHOICES, COMPLETE, FAILED, RESULT, TRIALS, RunRecord, read_run
from hylo.studies.choices import Choice, condition, no_sums, published_choices, score
from hylo.studies.grid_search import Setting, next_setting, start_settings
from hylo.studies.plan import Compose, Plan, check_plan, plan_study, run_pending
from hylo.studies.spec import TuningConfig, key_of, tuned_cells

VALIDATION = "data.eval_split=validation"
PRECISION = "trainer.precision"

Chosen = dict[str, list[str]]
"""Overrides by cell."""
MakeTrials = Callable[[Mapping[str, Sequence[str]]], list[Cell]]
"""Makes the trials, one per seed, of cells given by name with their own overrides."""


@dataclass(eq=False)
class Arm:
    """A tuned cell and its search."""

    cell: str
    grids: dict[str, list[float]]
    """The initial grid of each key."""
    ranges: list[tuple[float, float]]
    """The lowest and highest allowed value of each key."""
    defaults: list[float]
    """The value of each key in the cell's files and overrides."""
    published: dict[Setting, list[float | None]] = field(default_factory=dict)
    """Published validation perplexities by seed that are valid here too: these trials are not run again."""
    published_sums: pd.DataFrame = field(default_factory=no_sums)
    """NLL sums of these trials."""
    trials: dict[Setting, list[Cell]] = field(default_factory=dict)
    """The settings tried, in order; without cells if they were published."""

    def overrides(self, setting: Setting) -> list[str]:
        """A setting as overrides."""
        return [f"{key}={value!r}" for key, value in zip(self.grids, setting, strict=True)]

    def tried(self, session: Session) -> dict[Setting, list[float | None]]:
        """Validation perplexity of each setting by seed."""
        return {
            setting: [_perplexity(cell, session) for cell in cells] if cells else self.published[setting]
            for setting, cells in self.trials.items()
        }

    def wanted(self, trials: int, session: Session) -> list[Setting]:
        """The settings to run next, once all published ones are reused; none if the arm has used up its trials."""
        settings = start_settings([*self.grids.values()]) if not self.trials else self._next(trials, session)
        while settings and all(setting in self.published for setting in settings):
            self.trials |= {setting: [] for setting in settings}
            settings = self._next(trials, session)
        return settings

    def _next(self, trials: int, session: Session) -> list[Setting]:
        if len(self.trials) >= trials:
            return []
        scores = {setting: score(found) for setting, found in self.tried(session).items()}
        following = next_setting(scores, [*self.grids.values()], self.ranges)
        return [] if following is None else [following]


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
        choices = [_choice(arm, tuning.seeds, conditions[arm.cell], session) for arm in known]
        return choices, pd.concat([_sums(arm, session) for arm in known], ignore_index=True)

    def keep() -> None:
        """Save the choices so far beside the trials."""
        choices, table = found()
        if is_main_process():
            write_json(trials.folder / CHOICES, {"tuning": [choice.note() for choice in choices]})
            write_table(trials.folder / TRIALS, table)

    together = max(1, config.launcher.at_once(first, session) // len(tuning.seeds))
    # Only as many arms at once as keep all workers busy, so that each completes as early as possible.
    for place in range(0, len(arms), together):
        search(arms[place : place + together], tuning.trials, trials, make_trials, session, after=keep)
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
    while wave := {arm: settings for arm in arms if (settings := arm.wanted(trials, session))}:
        cells: list[Cell] = []
        for place in range(max(map(len, wave.values()))):
            settings = {arm: each[place] for arm, each in wave.items() if place < len(each)}
            made = make_trials({arm.cell: arm.overrides(setting) for arm, setting in settings.items()})
            for arm, setting in settings.items():
                arm.trials[setting] = [_named(cell, setting, arm) for cell in made if cell.name == arm.cell]
                cells += arm.trials[setting]
        open_ = [cell for cell in cells if not _diverged(cell, session)]
        done = sum(len(arm.trials) for arm in arms) - sum(map(len, wave.values()))
        say(
            f"{plan.group}: {done} of {trials * len(arms)} settings tried; now {len(cells)} trials of {len(wave)} cells"
        )
        run_pending(dataclasses.replace(plan, cells=open_), session)
        if lost := [text for cell in open_ if (text := _lost(cell, session))]:
            raise HyloError(
                f"{plan.group}: no setting can be chosen while trials are missing: {'; '.join(lost)}\n"
                f"    fix:     run the study again; complete trials are kept"
            )
        after()


def _named(cell: Cell, setting: Setting, arm: Arm) -> Cell:
    values = ",".join(f"{key}={value:g}" for key, value in zip(arm.grids, setting, strict=True))
    return dataclasses.replace(cell, name=file_name(f"{cell.name},{values}"))


def _choice(arm: Arm, seeds: list[int], condition: str, session: Session) -> Choice:
    recorded = sum(not cells for cells in arm.trials.values())
    return Choice(arm.cell, [*arm.grids], arm.tried(session), seeds, arm.defaults, condition, recorded)


def _record(cell: Cell, session: Session) -> RunRecord | None:
    """The record of a trial, complete or failed; None if it has not run."""
    folder = cell.folder(fingerprint(cell.config, session))
    return read_run(folder) if (folder / RESULT).exists() else None


def _lost(cell: Cell, session: Session) -> str:
    """Why a trial is neither complete nor diverged; empty if it is one of the two."""
    status = status_of(cell.folder(fingerprint(cell.config, session)))
    if status.state == COMPLETE or _diverged(cell, session):
        return ""
    return f"{cell.name} (seed {cell.config.seed}): {status.state}{f', {status.note}' * bool(status.note)}"


def _diverged(cell: Cell, session: Session) -> bool:
    """Whether a trial ran and diverged: it counts as tried, and would only diverge again."""
    record = _record(cell, session)
    return record is not None and record.result["status"] == FAILED and "TrainingDiverged" in record.result["error"]


def _perplexity(cell: Cell, session: Session) -> float | None:
    record = _record(cell, session)
    return record.result["metrics"]["ppl"] if record is not None and record.complete else None


def _sums(arm: Arm, session: Session) -> pd.DataFrame:
    """NLL sums of an arm's trials: cell, setting (its index among those tried), seed, window, nll_sum, tokens."""
    return pd.concat([no_sums(), *_tables(arm, session)])


def _tables(arm: Arm, session: Session) -> Iterator[pd.DataFrame]:
    published: Any = arm.published_sums
    places = {setting: place for place, setting in enumerate(arm.published)}
    for place, (setting, cells) in enumerate(arm.trials.items()):
        if not cells:
            yield published[published["setting"] == places[setting]].assign(cell=arm.cell, setting=place)
        for cell in cells:
            record = _record(cell, session)
            if record is not None and record.complete:
                table: Any = record.eval.groupby("window", as_index=False)[["nll_sum", "tokens"]].sum()
                yield table.assign(cell=arm.cell, setting=place, seed=cell.config.seed)
