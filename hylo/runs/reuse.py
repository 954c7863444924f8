"""Finished runs are reused: the record of the same run is found by its fingerprint, in whatever group it lies."""

import shutil
from pathlib import Path

from hylo.core.devices import process_count
from hylo.core.errors import RecordError
from hylo.core.files import LOCK, exclusive, replacing_folder, write_json
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint, probe_fingerprint
from hylo.runs.shared import Session
from hylo.runs.store import RESULT, RunRecord, read_run


def finished_run(cell: Cell, run_fingerprint: str) -> RunRecord | None:
    """The complete record of the same run, with the cell's probe where one has it; else its own, or any; or None."""
    config = cell.config
    wanted = probe_fingerprint(config.probe_config) if config.probe_config else None
    return find_complete(Path(config.outputs), run_fingerprint, folder=cell.folder(run_fingerprint), probe=wanted)


def probed(cell: Cell, record: RunRecord) -> bool:
    """Whether the record has what the cell's probe asks."""
    return cell.config.probe_config is None or record.probe_fingerprint == probe_fingerprint(cell.config.probe_config)


def reuse_finished(cell: Cell, session: Session) -> bool:
    """Whether the same run, probe included, is complete already, in this group or another; the record is then its own.

    False where several processes share a run: they agree about it in `run_cell`.
    """
    if process_count() > 1:
        return False
    run_fingerprint = fingerprint(cell.config, session)
    folder = cell.folder(run_fingerprint)
    if (done := finished_run(cell, run_fingerprint)) is None or not probed(cell, done):
        return False
    with exclusive(folder):
        copy_record(done, folder, study=cell.group, cell=cell.name, seed=cell.config.seed)
    return True


def find_complete(
    outputs: Path, fingerprint: str, *, folder: Path | None = None, probe: str | None = None
) -> RunRecord | None:
    """The complete record with this fingerprint in any group below `outputs`, or None.

    Of several, one with the result of this probe, and then the one in `folder`, comes first. A damaged
    record is passed over: the run is done again and replaces it.
    """
    found: list[RunRecord] = []
    for path in sorted(outputs.glob(f"*/*-{fingerprint}/{RESULT}")):
        try:
            record = read_run(path.parent)
        except RecordError:
            continue
        if record.complete and record.result["fingerprint"] == fingerprint:
            found.append(record)

    def fitness(record: RunRecord) -> tuple[bool, bool]:
        return probe is not None and record.probe_fingerprint == probe, record.folder == folder

    return max(found, key=fitness, default=None)


def copy_record(record: RunRecord, folder: Path, *, study: str, cell: str, seed: int) -> RunRecord:
    """The same result under another study's, cell's or seed's name: a copy of the record with these three changed."""
    if record.folder != folder or (record.result["study"], record.cell, record.seed) != (study, cell, seed):
        with replacing_folder(folder) as draft:
            shutil.copytree(record.folder, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK))
            write_json(draft / RESULT, record.result | {"study": study, "cell": cell, "seed": seed})
    return read_run(folder)
