"""Studies: a question, a protocol and named cells, run one after the other or not at all where they are complete.

A study is `experiments/<name>/study.yaml`. A sweep (`train.py -m`) and a single call of train.py are run and
reported by the same functions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hylo.cell import Cell, check
from hylo.config import Config
from hylo.errors import ConfigError, HyloError, problem
from hylo.fingerprint import fingerprint
from hylo.records import SCHEMA_VERSION, STUDY, file_name, read_run, write_json
from hylo.run import probed, taken_up
from hylo.runtime import is_main_process
from hylo.session import Session
from hylo.side_by_side import run_cells
from hylo.tracking import log_report, open_tracker

if TYPE_CHECKING:
    from hylo.report import Report

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

UNNAMED = {"tracking", "outputs", "workers", "probe"}
"""Sections and keys of a command line that are no part of a study's folder: they change no number of its runs."""

Compose = Callable[[Sequence[str]], tuple[Config, str]]
"""Makes a typed configuration of a list of overrides, and tells the name of its method."""


@dataclass(kw_only=True, slots=True)
class StudyConfig:
    """The content of a study.yaml."""

    question: str
    """What the study asks, in one sentence."""
    protocol: str
    """How it answers, in a few sentences: they stand under its tables."""
    cells: dict[str, list[str]]
    """Overrides of each cell, by its name in tables; in the order of the rows. One cell is the untuned model."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of all cells."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of each cell that trains, unless the command line names others."""


@dataclass(frozen=True)
class Plan:
    """Cells to run and to report together. One cell of them, or more under one name with different seeds, is a row."""

    group: str
    outputs: Path
    cells: list[Cell]
    question: str | None = None
    protocol: str | None = None

    @property
    def folder(self) -> Path:
        return self.outputs / self.group

    @property
    def untuned(self) -> str:
        """Name of the untuned cell."""
        return next(cell.name for cell in self.cells if not cell.config.components)


def study_names() -> list[str]:
    """The studies there are."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob("*/study.yaml"))


def read_study_file(name: str) -> StudyConfig:
    """Read and check experiments/<name>/study.yaml.

    Raises:
        ConfigError: there is no such study, or its file has unknown keys, wrong types or no cells.
    """
    path = EXPERIMENTS / name / "study.yaml"
    if name not in study_names():
        raise ConfigError(problem("study", name, f"one of {', '.join(study_names())}", "correct the name"))
    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(study, StudyConfig)
    if not study.cells or not study.seeds:
        raise ConfigError(f"{path}: a study needs at least one cell and one seed")
    return study


def plan_study(config: Config, overrides: Sequence[str], compose: Compose) -> Plan:
    """The cells of a study, all composed before any runs.

    Arguments:
        config: the composed command line, with `study` set; `add` names methods that it runs besides its own cells.
        overrides: the command line's own overrides; they hold for every cell.
        compose: makes the configuration of a cell.

    Raises:
        ConfigError: the study's file is wrong, or a cell cannot be composed; the message names the cell.
    """
    assert config.study is not None
    study = read_study_file(config.study)
    shared = [text for text in overrides if _key(text) not in {"study", "seeds", "seed", "add"}]
    named = [text for text in shared if _key(text).partition(".")[0] not in UNNAMED]
    cells = []
    for name, own in (study.cells | {method: [f"method={method}"] for method in config.add or []}).items():
        if clash := {_key(text) for text in own} & {_key(text) for text in named}:
            raise ConfigError(
                f"study={config.study}: the cell {name} sets {', '.join(sorted(clash))} itself; remove the override"
            )
        for seed in dict.fromkeys(config.seeds or study.seeds):
            texts = [*_merged(study.overrides, shared), *own]
            try:
                own_config, _ = compose([*texts, f"seed={seed}"])
            except HyloError as error:
                raise ConfigError(f"study={config.study}, cell {name}:\n{error}") from error
            cells.append(Cell("", name, own_config, (*texts, f"seed={seed}")))
            if not own_config.components:
                break  # nothing trains, so seeds make no difference
    group = file_name(",".join([config.study, *named, *(f"+{method}" for method in config.add or [])]))
    plan = Plan(group, Path(config.outputs), [dataclasses.replace(cell, group=group) for cell in cells])
    return with_untuned(dataclasses.replace(plan, question=study.question, protocol=study.protocol))


def with_untuned(plan: Plan) -> Plan:
    """The plan with a first cell that evaluates the untuned model, where it has none."""
    if any(not cell.config.components for cell in plan.cells):
        return plan
    return dataclasses.replace(plan, cells=[plan.cells[0].untuned("none"), *plan.cells])


def check_plan(plan: Plan, session: Session) -> None:
    """Refuse the plan if one of its cells cannot work.

    Raises:
        ConfigError: the message names the cell.
    """
    for cell in plan.cells:
        try:
            check(cell, session)
        except ConfigError as error:
            raise ConfigError(
                *(f"cell {cell.name}: {text}" if len(plan.cells) > 2 else text for text in error.problems)
            ) from error


def run_plan(plan: Plan, session: Session) -> bool:
    """Run every cell that is not complete; one that fails does not stop the others. Then report.

    Returns:
        Whether all cells are complete.
    """
    check_plan(plan, session)
    run_pending(plan, session)
    return report_plan(plan, session) if is_main_process() else True


def run_pending(plan: Plan, session: Session) -> None:
    """Run the cells that are not complete, several at once where that is better."""
    run_cells([cell for cell in plan.cells if not taken_up(cell, session)], session)


def report_plan(plan: Plan, session: Session) -> bool:
    """Write the plan's manifest and its report from the records, print it, and log it where runs are tracked.

    Returns:
        Whether all cells are complete, with the answers to their probe.
    """
    from hylo.report import SUMMARY, print_report, write_report  # matplotlib comes in where a report is made

    folders: dict[str, list[str]] = {}
    for cell in plan.cells:
        folders.setdefault(cell.name, []).append(cell.folder(fingerprint(cell.config, session)).name)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "study": plan.group,
        "question": plan.question,
        "protocol": plan.protocol,
        "untuned": plan.untuned,
        "cells": [{"cell": name, "runs": runs} for name, runs in folders.items()],
    }
    write_json(plan.folder / STUDY, manifest)
    summary = plan.folder / SUMMARY
    before = summary.read_bytes() if summary.exists() else b""
    report = write_report(plan.folder)
    if summary.read_bytes() != before:
        track_report(plan, manifest, report)
    print_report(report)
    records = [(cell, read_run(cell.folder(fingerprint(cell.config, session)))) for cell in plan.cells]
    return all(record.complete and probed(cell, record) for cell, record in records)


def track_report(plan: Plan, manifest: dict[str, Any], report: "Report") -> None:
    """Log the study's table and figures as a run of their own, in the group of its cells."""
    config = plan.cells[0].config
    tracker = open_tracker(
        config.tracking,
        folder=plan.outputs,
        group=plan.group,
        name=f"{plan.group}-report",
        run_id=None,
        resolved=manifest,
        job_type="report",
        tags=[config.model.name, config.data.name],
    )
    log_report(tracker, report.summary, report.figures)
    tracker.finish()


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _merged(earlier: Sequence[str], later: Sequence[str]) -> list[str]:
    """Overrides of which the later one of the same key holds."""
    return list({_key(text): text for text in (*earlier, *later)}.values())
