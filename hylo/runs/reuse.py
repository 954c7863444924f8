"""Reuse of finished runs: an identical run is found by its fingerprint, in any group."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import Timeout

from hylo.core.devices import process_count
from hylo.core.errors import RecordError, first_line
from hylo.core.files import exclusive, replacing_folder, write_json
from hylo.core.sums import remove_sums, write_sums
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint, probe_fingerprint
from hylo.runs.layout import RESULT
from hylo.runs.record import RunRecord
from hylo.runs.shared import Session
from hylo.runs.store import checked, read_run


def finished_run(cell: Cell, run_fingerprint: str, results: Sequence[Path] | None = None) -> RunRecord | None:
    """The complete record of the same run: preferably one with the cell's probe, then the cell's own; or None.

    `results` are those to look at; None: all below the cell's outputs.
    """
    if results is None:
        results = sorted(_results(Path(cell.config.outputs), run_fingerprint))
    wanted = probe_fingerprint(cell.config.probe_config) if cell.config.probe_config else None
    return find_complete(results, run_fingerprint, folder=cell.folder(run_fingerprint), probe=wanted)


def probed(cell: Cell, record: RunRecord) -> bool:
    """Whether the record has the answers to the cell's probe, if any."""
    return cell.config.probe_config is None or record.probe_fingerprint == probe_fingerprint(cell.config.probe_config)


class Listing:
    """Where results are, listed once below each folder of outputs: a plan of many cells asks for each of them."""

    def __init__(self) -> None:
        self._found: dict[Path, dict[str, list[Path]]] = {}

    def results(self, outputs: Path, fingerprint: str) -> list[Path]:
        """The results of all runs with this fingerprint, as of the first question about these outputs."""
        if outputs not in self._found:
            by_fingerprint = self._found[outputs] = {}
            for path in sorted(_results(outputs, "*")):
                by_fingerprint.setdefault(path.parent.name.rpartition("-")[2], []).append(path)
        return self._found[outputs].get(fingerprint, [])


def reuse_finished(cell: Cell, session: Session, listing: Listing | None = None) -> bool:
    """Whether the same run, including its probe, is complete in any group; if so, copies its record to the cell.

    Always False if several processes share a run: they agree on reuse in `run_cell`.

    Args:
        cell: the cell.
        session: its resources.
        listing: shared by the cells of a plan.
    """
    if process_count() > 1:
        return False
    run_fingerprint = fingerprint(cell.config, session)
    folder = cell.folder(run_fingerprint)
    results = (listing or Listing()).results(Path(cell.config.outputs), run_fingerprint)
    if not results:  # then there is nothing to lock
        return False
    with suppress(Timeout), exclusive(folder, wait=False):
        if (done := finished_run(cell, run_fingerprint, results)) is None or not probed(cell, done):
            return False
        copy_record(done, folder, study=cell.group, cell=cell.name, seed=cell.config.seed)
        return True
    return False  # another process works on it


def find_complete(
    results: Sequence[Path], fingerprint: str, *, folder: Path | None = None, probe: str | None = None
) -> RunRecord | None:
    """The complete record with this fingerprint among these results, or None.

    Of several, one with this probe's results is preferred, then the one in `folder`. Damaged records are named and
    skipped: the run is repeated and replaces them.
    """
    found: list[RunRecord] = []
    for path in results:
        try:
            record = checked(read_run(path.parent))
        except RecordError as error:
            if path.exists():  # else another process is replacing it
                print(first_line(error), file=sys.stderr, flush=True)
            continue
        if record.complete and record.result["fingerprint"] == fingerprint:
            found.append(record)

    def fitness(record: RunRecord) -> tuple[bool, bool]:
        return probe is not None and record.probe_fingerprint == probe, record.folder == folder

    return max(found, key=fitness, default=None)


def _results(outputs: Path, fingerprint: str) -> Iterator[Path]:
    """The results of all runs with this fingerprint."""
    return outputs.glob(f"*/*-{fingerprint}/{RESULT}")


def copy_record(record: RunRecord, folder: Path, *, study: str, cell: str, seed: int) -> RunRecord:
    """Copies a record to another folder, with study, cell and seed changed to those given."""
    if record.folder != folder or (record.result["study"], record.cell, record.seed) != (study, cell, seed):
        with replacing_folder(folder) as draft:
            shutil.copytree(record.folder, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
            remove_sums(draft)
            write_json(draft / RESULT, record.result | {"study": study, "cell": cell, "seed": seed})
            write_sums(draft)
    return read_run(folder)
