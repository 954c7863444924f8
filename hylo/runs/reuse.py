"""Finished runs are reused: the record of the same run is found by its fingerprint, in whatever group it lies."""

import shutil
from pathlib import Path

from hylo.core.devices import process_count
from hylo.core.errors import RecordError
from hylo.core.files import LOCK, exclusive, replacing_folder, write_json
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint, probe_mark
from hylo.runs.shared import Session
from hylo.runs.store import RESULT, RunRecord, read_run


def recorded(cell: Cell, mark: str) -> RunRecord | None:
    """The complete record of the same run, with the cell's probe where one has it; else its own, or any; or None."""
    config = cell.config
    wanted = probe_mark(config.asked) if config.asked else None
    return find_complete(Path(config.outputs), mark, folder=cell.folder(mark), probe=wanted)


def probed(cell: Cell, record: RunRecord) -> bool:
    """Whether the record has what the cell's probe asks."""
    return cell.config.asked is None or record.probe_mark == probe_mark(cell.config.asked)


def taken_up(cell: Cell, session: Session) -> bool:
    """Whether the same run, probe included, is complete already, in this group or another; the record is then its own.

    False where several processes share a run: they agree about it in `run_cell`.
    """
    if process_count() > 1:
        return False
    mark = fingerprint(cell.config, session)
    folder = cell.folder(mark)
    if (done := recorded(cell, mark)) is None or not probed(cell, done):
        return False
    with exclusive(folder):
        adopt(done, folder, study=cell.group, cell=cell.name, seed=cell.config.seed)
    return True


def find_complete(
    outputs: Path, fingerprint: str, *, folder: Path | None = None, probe: str | None = None
) -> RunRecord | None:
    """The complete record with this fingerprint in any group below `outputs`, or None.

    Of several, one with the result of the probe of this mark, and then the one in `folder`, comes first. A damaged
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
        return probe is not None and record.probe_mark == probe, record.folder == folder

    return max(found, key=fitness, default=None)


def adopt(record: RunRecord, folder: Path, *, study: str, cell: str, seed: int) -> RunRecord:
    """The same result under another study's, cell's or seed's name: a copy of the record with these three changed."""
    if record.folder != folder or (record.result["study"], record.cell, record.seed) != (study, cell, seed):
        with replacing_folder(folder) as draft:
            shutil.copytree(record.folder, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK))
            write_json(draft / RESULT, record.result | {"study": study, "cell": cell, "seed": seed})
    return read_run(folder)
