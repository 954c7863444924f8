"""Studies: a question, a protocol and named cells, run one after the other or not at all where they are complete.

A study is `experiments/<name>/study.yaml` (hylo/studies/spec.py). A sweep (`train.py -m`) and a single call of train.py
are run and reported by the same functions.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hylo.core.devices import is_main_process
from hylo.core.errors import ConfigError, HyloError
from hylo.launch.local import run_cells
from hylo.runs.cell import Cell, check
from hylo.runs.config import Config, Tune
from hylo.runs.fingerprint import fingerprint
from hylo.runs.reuse import reuse_finished
from hylo.runs.shared import Session
from hylo.runs.store import file_name
from hylo.studies.manifest import report_plan
from hylo.studies.spec import StudyConfig, key_of, read_study_file

Compose = Callable[[Sequence[str]], tuple[Config, str]]
"""Makes a typed configuration of a list of overrides, and tells the name of its method."""

NO_PART_OF_A_CELL = {"study", "seeds", "most_seeds", "seed", "add", "tune"}
NO_PART_OF_A_NAME = {"tracking", "outputs", "workers", "probe"}
"""Sections and keys of a command line that are no part of a study's folder: they change no number of its runs."""


@dataclass(frozen=True)
class Plan:
    """Cells to run and to report together. One cell of them, or more under one name with different seeds, is a row."""

    group: str
    outputs: Path
    cells: list[Cell]
    study: StudyConfig | None = None
    overrides: Sequence[str] = ()
    """Those of the command line by which the study differs from its file."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the manifest says besides: of the choice of settings, and of the rule that chose the number of seeds."""
    trials: pd.DataFrame | None = None
    """NLL sums of the trials behind the choice of settings; None: nothing was chosen."""

    @property
    def folder(self) -> Path:
        return self.outputs / self.group


def plan_study(
    config: Config,
    overrides: Sequence[str],
    compose: Compose,
    *,
    seeds: Sequence[int] | None = None,
    chosen: Mapping[str, Sequence[str]] | None = None,
    only: Collection[str] | None = None,
) -> Plan:
    """The cells of a study, all composed before any runs.

    Arguments:
        config: the composed command line, with `study` set; `add` names methods that it runs besides its own cells.
        overrides: the command line's own overrides; they hold for every cell.
        compose: makes the configuration of a cell.
        seeds: of each cell that trains; None: those of the command line, or else of the study's file.
        chosen: further overrides of cells by name: what was chosen on the validation split.
        only: names of the cells to compose; None: all.

    Raises:
        ConfigError: the study's file is wrong, or a cell cannot be composed; the message names the cell.
    """
    assert config.study is not None
    study = read_study_file(config.study)
    shared = [text for text in overrides if key_of(text) not in NO_PART_OF_A_CELL]
    named = [text for text in shared if key_of(text).partition(".")[0] not in NO_PART_OF_A_NAME]
    named += ["tune=off"] * (config.tune is Tune.off and study.tuning is not None)
    cells = []
    every = study.all_cells() | {method: [f"method={method}"] for method in config.add or []}
    for name, own in every.items():
        if only is not None and name not in only:
            continue
        if clash := {key_of(text) for text in own} & {key_of(text) for text in named}:
            raise ConfigError(
                f"study={config.study}: the cell {name} sets {', '.join(sorted(clash))} itself; remove the override"
            )
        texts = [*_merged(study.overrides, shared), *own, *(chosen or {}).get(name, [])]
        every_seed = [*dict.fromkeys(seeds or config.fixed_seeds or study.seeds)]
        try:
            own_config, _ = compose([*texts, f"seed={every_seed[0]}"])
        except HyloError as error:
            raise ConfigError(f"study={config.study}, cell {name}:\n{error}") from error
        for seed in every_seed if own_config.components else every_seed[:1]:  # else nothing trains: seeds are all one
            cells.append(Cell("", name, dataclasses.replace(own_config, seed=seed), (*texts, f"seed={seed}")))
    group = file_name(",".join([config.study, *named, *(f"+{method}" for method in config.add or [])]))
    return Plan(group, Path(config.outputs), [dataclasses.replace(cell, group=group) for cell in cells], study, named)


def with_base_cells(plan: Plan, session: Session) -> Plan:
    """The plan with a cell that evaluates the base model before the first cell that lacks one: what it is compared
    with must be evaluated on the same windows, so cells of two context lengths, say, have two."""
    known = {fingerprint(cell.config, session) for cell in plan.cells if not cell.config.components}
    cells: list[Cell] = []
    for cell in plan.cells:
        base_cell = cell.base_cell("none" if not known else f"none_as_{cell.name}")
        if (found := fingerprint(base_cell.config, session)) not in known:
            known.add(found)
            cells.append(base_cell)
        cells.append(cell)
    return dataclasses.replace(plan, cells=cells)


def check_plan(plan: Plan, session: Session) -> None:
    """Refuse the plan if one of its cells cannot work.

    Raises:
        ConfigError: the message names the cell.
    """
    for cell in plan.cells:
        try:
            check(cell, session)
        except ConfigError as error:
            alone = len({cell.name for cell in plan.cells if cell.config.components}) < 2
            raise ConfigError(*(text if alone else f"cell {cell.name}: {text}" for text in error.problems)) from error


def run_plan(plan: Plan, session: Session) -> bool:
    """Run every cell that is not complete; one that fails does not stop the others. Then report.

    Returns:
        Whether all cells are complete.
    """
    check_plan(plan, session)
    return run_checked(plan, session)


def run_checked(plan: Plan, session: Session) -> bool:
    """`run_plan` of a plan that was checked already."""
    plan = with_base_cells(plan, session)
    run_pending(plan, session)
    return report_plan(plan, session) if is_main_process() else True


def run_pending(plan: Plan, session: Session) -> None:
    """Run the cells that are not complete, several at once where that is better."""
    run_cells([cell for cell in plan.cells if not reuse_finished(cell, session)], session)


def _merged(earlier: Sequence[str], later: Sequence[str]) -> list[str]:
    """Overrides of which the later one of the same key holds."""
    return list({key_of(text): text for text in (*earlier, *later)}.values())
