"""The manifest of a study, the report made from it and the records, and the logging of the report to the tracker."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hylo.analysis.cost import cost_of
from hylo.core.errors import HyloError, RecordError
from hylo.core.files import write_json, write_table
from hylo.core.schema import to_container
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint
from hylo.runs.layout import SCHEMA_VERSION, STUDY, TRIALS
from hylo.runs.reuse import probed
from hylo.runs.shared import Session
from hylo.runs.store import read_run
from hylo.tracking.base import TrackedRun, log_report
from hylo.tracking.guard import open_tracker

if TYPE_CHECKING:
    from hylo.report import Report
    from hylo.studies.plan import Plan


def report_plan(plan: "Plan", session: Session) -> bool:
    """Write the plan's manifest and its report from the records, print the report, and log it if runs are tracked.

    Returns:
        Whether all cells are complete, including the results of their probe, and all figures drawn.
    """
    from hylo.report import SUMMARY, print_report, write_report  # imports matplotlib, which only reports need

    content = write_manifest(plan, session)
    summary = plan.folder / SUMMARY
    before = summary.read_bytes() if summary.exists() else b""
    try:
        report = write_report(plan.folder)
    except OSError as error:
        raise HyloError(
            f"the report cannot be written to {plan.folder}: {error}\n"
            f"    fix:     make room, then run this again; all records are kept"
        ) from error
    if cost := cost_of(report.study):
        write_json(plan.folder / STUDY, content | {"cost": asdict(cost)})
    if summary.read_bytes() != before:
        track_report(plan, content, report)
    print_report(report)
    return not report.missing and all(_done(cell, session) for cell in plan.cells)


def write_manifest(plan: "Plan", session: Session) -> dict[str, Any]:
    """Write what a report needs beyond the records of single runs: study.json, and the sums of the trials, if any."""
    content = manifest(plan, session)
    write_json(plan.folder / STUDY, content)
    if plan.trials is not None:
        write_table(plan.folder / TRIALS, plan.trials)
    return content


def _done(cell: Cell, session: Session) -> bool:
    try:
        record = read_run(cell.folder(fingerprint(cell.config, session)))
    except RecordError:
        return False
    return record.complete and probed(cell, record)


def manifest(plan: "Plan", session: Session) -> dict[str, Any]:
    """study.json: everything a report needs beyond the records of single runs."""
    fingerprints = {id(cell): fingerprint(cell.config, session) for cell in plan.cells}
    base_cells = {fingerprints[id(cell)]: cell.name for cell in plan.cells if not cell.config.components}
    rows: dict[str, dict[str, Any]] = {}
    for cell in plan.cells:
        compared_with = base_cells[fingerprint(cell.base_cell().config, session)]
        row = rows.setdefault(cell.name, {"cell": cell.name, "runs": [], "base": compared_with})
        row["runs"].append(cell.folder(fingerprints[id(cell)]).name)
    study = plan.study
    return {
        "schema_version": SCHEMA_VERSION,
        "study": plan.group,
        "question": study.question if study else None,
        "protocol": study.protocol if study else None,
        "overrides": list(plan.overrides),
        "base": next(iter(base_cells.values())),
        "cells": list(rows.values()),
        "contrasts": [to_container(contrast) for contrast in study.contrasts] if study else [],
        "claims": [asdict(claim) for claim in study.tested()] if study else [],
        "factorial": _factorial(plan),
        **plan.notes,
    }


def _factorial(plan: "Plan") -> list[dict[str, Any]]:
    factorial = plan.study.factorial if plan.study else None
    return [{"on": sorted(on), "cell": factorial.name(on)} for on in factorial.combinations()] if factorial else []


def track_report(plan: "Plan", content: dict[str, Any], report: "Report") -> None:
    """Log the study's table and figures as a separate run in the group of its cells."""
    config = plan.cells[0].config
    run = TrackedRun(
        folder=plan.outputs,
        group=plan.group,
        name=f"{plan.group}-report",
        resolved=content,
        job_type="report",
        tags=(config.model.name, config.data.name),
    )
    tracker = open_tracker(config.tracking, run)
    log_report(tracker, report.summary, report.figures, {each.name: each.frame for each in report.decisions})
    tracker.finish()
