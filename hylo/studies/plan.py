"""Studies: a question, a protocol and named cells. Complete cells are not run again.

A study is `experiments/<name>/study.yaml` (hylo/studies/spec.py). A sweep (`train.py -m`) and a single call of train.py
are run and reported by the same functions.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hylo.core.devices import is_main_process
from hylo.core.errors import ConfigError, HyloError
from hylo.core.files import write_json
from hylo.core.interruption import Interrupted
from hylo.core.names import file_name
from hylo.core.schema import to_container
from hylo.runs.cell import Cell, check
from hylo.runs.config import Config, Tune
from hylo.runs.fingerprint import fingerprint
from hylo.runs.launcher import LeftRunning
from hylo.runs.layout import NOT_RUN
from hylo.runs.reuse import Listing, reuse_finished
from hylo.runs.shared import Session
from hylo.runs.writer import MAKES_THE_RUN
from hylo.studies.manifest import report_plan, write_manifest
from hylo.studies.part import part_of
from hylo.studies.spec import StudyConfig, key_of, read_study_file
from hylo.studies.states import PLAN, print_states

Compose = Callable[[Sequence[str]], tuple[Config, str]]
"""Composes a typed configuration from overrides, and returns it with the name of its method."""

NO_PART_OF_A_CELL = {"study", "seeds", "most_seeds", "seed", "add", "cells", "tune"}
NO_PART_OF_A_NAME = {"tracking", "launcher", "outputs", "workers", "probe"}
"""Sections and keys of a command line that are not part of a study's folder name: they change no number of its runs."""


@dataclass(frozen=True)
class Plan:
    """Cells to run and report together. Cells of the same name with different seeds share a row."""

    group: str
    outputs: Path
    cells: list[Cell]
    study: StudyConfig | None = None
    overrides: Sequence[str] = ()
    """Command-line overrides by which the study differs from its file."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further manifest entries: the cells left out, the choice of settings, and the rule that determined the number of
    seeds."""
    trials: pd.DataFrame | None = None
    """NLL sums of the trials behind the choice of settings; None if nothing was tuned."""

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
    """The cells of a study, all composed before any of them runs.

    Args:
        config: the composed command line, with `study` set; `add` names methods to run besides the study's own cells.
        overrides: the command line's own overrides; they apply to every cell.
        compose: composes the configuration of a cell.
        seeds: seeds of each cell that trains; None: those of the command line, or else of the study's file.
        chosen: further overrides by cell name, chosen on the validation split.
        only: names of the cells to compose; None: all. The plan's study is then that part (hylo/studies/part.py).

    Raises:
        ConfigError: the study's file is invalid, or a cell cannot be composed; the message names the cell.
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
        for seed in every_seed if own_config.components else every_seed[:1]:  # without training, all seeds are the same
            cells.append(Cell("", name, dataclasses.replace(own_config, seed=seed), (*texts, f"seed={seed}")))
    group = file_name(",".join([config.study, *named, *(f"+{method}" for method in config.add or [])]))
    plan = Plan(group, Path(config.outputs), [dataclasses.replace(cell, group=group) for cell in cells], study, named)
    return plan if only is None else part_of_plan(plan, only)


def part_of_plan(plan: Plan, names: Collection[str]) -> Plan:
    """The plan of these cells of a study alone; the manifest names the others as not run."""
    assert plan.study is not None
    left = [name for name in plan.study.all_cells() if name not in names]
    cells = [cell for cell in plan.cells if cell.name in names]
    return dataclasses.replace(plan, cells=cells, study=part_of(plan.study, names), notes={NOT_RUN: left})


def with_base_cells(plan: Plan, session: Session) -> Plan:
    """The plan with a base-model cell inserted before the first cell that lacks one.

    A cell and its base model must be evaluated on the same windows, so cells of two context lengths, say, need two.
    """
    known = {fingerprint(cell.config, session) for cell in plan.cells if not cell.config.components}
    names = {cell.name for cell in plan.cells}
    cells: list[Cell] = []
    for cell in plan.cells:
        base_cell = cell.base_cell()
        if (found := fingerprint(base_cell.config, session)) not in known:
            if base_cell.name in names:
                base_cell = dataclasses.replace(base_cell, name=f"none_as_{cell.name}")
            known.add(found)
            names.add(base_cell.name)
            cells.append(base_cell)
        cells.append(cell)
    return dataclasses.replace(plan, cells=cells)


def check_plan(plan: Plan, session: Session) -> None:
    """Reject the plan if one of its cells cannot work, or if two have one name and seed.

    Raises:
        ConfigError: the message names the cell.
    """
    check_names(plan)
    for cell in plan.cells:
        try:
            check(cell, session)
        except ConfigError as error:
            alone = len({cell.name for cell in plan.cells if cell.config.components}) < 2
            raise ConfigError(*(text if alone else f"cell {cell.name}: {text}" for text in error.problems)) from error


def check_names(plan: Plan) -> None:
    """Reject two cells with one name and seed: a value given twice, or one `cell=` for a whole sweep.

    Raises:
        ConfigError: as above.
    """
    named: dict[tuple[str, int], Cell] = {}
    for cell in plan.cells:
        first = named.setdefault((cell.name, cell.config.seed), cell)
        if first is not cell:
            own = [text for text in cell.overrides if text not in first.overrides]
            raise ConfigError(
                f"two cells are called {cell.name!r} (seed {cell.config.seed}); the second one sets "
                f"{', '.join(own) or 'the same'}\n"
                f"    allowed: one cell for each name and seed\n"
                f"    fix:     remove the repeated value, or give the cells names of their own"
            )


def run_plan(plan: Plan, session: Session) -> bool:
    """Run every cell that is not complete, then report. A failed cell does not stop the others.

    Returns:
        Whether all cells are complete.
    """
    check_plan(plan, session)
    return run_checked(plan, session)


def run_checked(plan: Plan, session: Session) -> bool:
    """`run_plan` for a plan that was already checked."""
    plan = freeze(with_base_cells(plan, session), session)
    run_or_stop(plan, session)
    return report_plan(plan, session) if is_main_process() else True


def run_or_stop(plan: Plan, session: Session) -> None:
    """`run_pending`; if a signal stops it, or nobody waits for the cells, reports what there is."""
    try:
        run_pending(plan, session)
    except Interrupted:
        if is_main_process():
            report_plan(plan, session)
        raise
    except LeftRunning:
        write_manifest(plan, session)
        print_states(plan.folder)
        raise


def run_pending(plan: Plan, session: Session) -> None:
    """Run the cells that are not complete, wherever the launcher has them run."""
    listing = Listing()
    left = [cell for cell in plan.cells if not reuse_finished(cell, session, listing)]
    plan.cells[0].config.launcher.run(left, session)


def freeze(plan: Plan, session: Session) -> Plan:
    """The plan with every cell's fingerprint, also written to plan.json with all settings.

    A process that would run something else, because a file was edited meanwhile, refuses. If there was another plan,
    the difference is said, and the other plan kept as before-plan.json.
    """
    cells = [dataclasses.replace(cell, planned=fingerprint(cell.config, session)) for cell in plan.cells]
    if is_main_process():
        _write(plan, cells)
    return dataclasses.replace(plan, cells=cells)


def _write(plan: Plan, cells: Sequence[Cell]) -> None:
    planned = {
        f"{cell.name} (seed {cell.config.seed})": {
            "run": cell.folder(str(cell.planned)).name,
            "fingerprint": cell.planned,
            "overrides": list(cell.overrides),
            "config": {part: to_container(getattr(cell.config, part)) for part in MAKES_THE_RUN},
        }
        for cell in cells
    }
    path = plan.folder / PLAN
    try:
        before = json.loads(path.read_text())["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        before = planned
    if changed := [name for name in planned if planned[name]["fingerprint"] != _fingerprint_of(before.get(name))]:
        same = [name for name in changed if name in before and before[name]["config"] == planned[name]["config"]]
        print(f"{path} had another plan: {_difference(changed, same, before)}", flush=True)
        write_json(plan.folder / f"before-{PLAN}", {"cells": before})
    write_json(path, {"cells": planned})


def _fingerprint_of(planned: Any) -> Any:
    return planned.get("fingerprint") if isinstance(planned, dict) else None


def _difference(changed: Sequence[str], same: Sequence[str], before: Mapping[str, Any]) -> str:
    added = [name for name in changed if name not in before]
    edited = [name for name in changed if name in before and name not in same]
    parts = {"new": added, "other settings": edited, "other source, libraries or inputs": same}
    return "; ".join(f"{kind}: {', '.join(names[:3])} ({len(names)} in all)" for kind, names in parts.items() if names)


def _merged(earlier: Sequence[str], later: Sequence[str]) -> list[str]:
    """All overrides; of two with the same key, the later one wins."""
    return list({key_of(text): text for text in (*earlier, *later)}.values())
