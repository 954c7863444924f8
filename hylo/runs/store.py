"""Reads records and studies from disk; files and folders are those of `hylo.runs.layout`."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from hylo.core.errors import RecordError, first_line
from hylo.core.files import write_json, write_table
from hylo.core.sums import SUMS, damaged_files, remove_sums, write_sums
from hylo.runs.earlier import current_manifest, current_result
from hylo.runs.layout import ADAPTER, PROBE, RESULT, SCHEMA_VERSION, STUDY
from hylo.runs.record import RunRecord, StudyRecord

_SECTIONS = (
    "schema_version", "status", "fingerprint", "study", "cell", "seed", "params", "metrics", "training", "audit",
)  # fmt: skip


def read_run(folder: Path) -> RunRecord:
    """Reads one run's record.

    Raises:
        RecordError: result.json is missing, damaged, not JSON, of another schema version, or lacks a section.
    """
    path = folder / RESULT
    if path.exists() and (damaged := damaged_files(folder, lambda name: name == RESULT)):
        raise RecordError(f"{folder / damaged[0]} is damaged (its checksum differs); delete {folder} and run it again")
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; is this the folder of a run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is damaged ({error}); delete {folder} and run the cell again") from error
    missing = [section for section in _SECTIONS if section not in result] if isinstance(result, dict) else ["an object"]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}; delete {folder} and run the cell again")
    if result["schema_version"] != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {result['schema_version']}, this version of hylo reads {SCHEMA_VERSION}; "
            f"run the cell again or read it with the version that wrote it"
        )
    return RunRecord(folder, current_result(result))


def read_study(folder: Path) -> StudyRecord:
    """Reads the manifest and all runs of a study or sweep.

    Raises:
        RecordError: the manifest is missing or damaged, or names a run that is not in the folder.
    """
    path = folder / STUDY
    try:
        manifest = current_manifest(json.loads(path.read_text()))
        listed = {cell["cell"]: list(cell["runs"]) for cell in manifest["cells"]}
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; run a study or a sweep first, for example `make ablation`") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is damaged ({error!r}); run the study again to rewrite it") from error
    for name in (name for runs in listed.values() for name in runs):
        if Path(name).name != name:
            raise RecordError(f"{path} names the run {name!r}; a run is a folder directly inside {folder}")
    return study_of(folder, manifest)


def study_of(folder: Path, manifest: dict[str, Any]) -> StudyRecord:
    """Reads the runs named by a manifest. Those whose record is missing or damaged are named in `unread`."""
    cells: dict[str, list[RunRecord]] = {}
    unread: dict[str, list[str]] = {}
    for entry in manifest["cells"]:
        cell = entry["cell"]
        runs = cells.setdefault(cell, [])
        for name in entry["runs"]:
            if not (folder / name / RESULT).exists():
                unread.setdefault(cell, []).append(f"not run: {cell}, {folder / name}")
                continue
            try:
                runs.append(checked(read_run(folder / name), adapter=False))
            except RecordError as error:
                unread.setdefault(cell, []).append(f"damaged: {cell}, {first_line(error)}")
    return StudyRecord(folder, manifest, cells, unread)


def checked(record: RunRecord, *, adapter: bool = True) -> RunRecord:
    """The record, if all its files are as they were written; those of its adapter only if `adapter`.

    Raises:
        RecordError: a file of a complete record is damaged, or missing. Adapters may be deleted to save space. Records
            without checksums are read instead.
    """
    folder = record.folder

    def wanted(name: str) -> bool:
        return not name.startswith(f"{ADAPTER}/") or (adapter and (folder / name).exists())

    if record.complete and (damaged := damaged_files(folder, wanted)):
        raise RecordError(f"{folder / damaged[0]} is damaged (its checksum differs); delete {folder} and run it again")
    if record.complete and not (folder / SUMS).exists():
        _ = record.eval, record.thirds, record.windows, record.probe
    return record


def add_probe(folder: Path, table: pd.DataFrame, section: dict[str, Any]) -> RunRecord:
    """Adds a probe's result to a complete record, replacing that of any other probe.

    If interrupted, the record is still complete, with either this probe's result or none.
    """
    result = read_run(folder).result
    remove_sums(folder)
    write_json(folder / RESULT, {name: value for name, value in result.items() if name != "probe"})
    write_table(folder / PROBE, table)
    write_json(folder / RESULT, result | {"probe": section})
    write_sums(folder)
    return read_run(folder)
