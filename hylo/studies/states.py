"""How the runs of a study or sweep fare, from its folder alone: while they run elsewhere, and afterwards."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hylo.core.errors import HyloError, RecordError
from hylo.launch.ledger import Ledger
from hylo.launch.slurm_commands import in_queue
from hylo.runs.layout import COMPLETE, RESULT
from hylo.runs.status import MISSING, Status, status_of

PLAN = "plan.json"
"""What a study or sweep was to run when it began."""
QUEUED = "queued"
"""State of a run whose job waits for its turn."""
SHOWN = 40
"""Rows of the table at most: of thousands of runs, the first that are not complete are enough to act on."""


def states(folder: Path) -> dict[str, Status]:
    """The status of each planned run, by its folder's name; without a plan, of each that has begun or is in a job.

    Raises:
        RecordError: the folder holds neither a plan nor a run.
    """
    jobs = Ledger(folder).job_of()
    found = {name: status_of(folder / name) for name in _planned(folder, jobs)}
    queue = _queue() if jobs else set()
    for name, status in found.items():
        if status.state == MISSING and (job := jobs.get(name)):
            found[name] = (
                Status(QUEUED, f"job {job}") if job in queue else Status(MISSING, f"job {job} ended without it")
            )
    return found


def print_states(folder: Path, console: Console | None = None) -> bool:
    """Print how many runs are in each state, and a table of those that are not complete.

    Returns:
        Whether all are complete.
    """
    console, found = console or Console(), states(folder)
    counts = Counter(status.state for status in found.values())
    said = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    console.print(f"{folder}: {len(found)} runs: {said}", markup=False, highlight=False, soft_wrap=True)
    left = {name: status for name, status in found.items() if status.state != COMPLETE}
    if left:
        console.print(_table(dict([*left.items()][:SHOWN])))
    if len(left) > SHOWN:
        console.print(f"... and {len(left) - SHOWN} more", markup=False, highlight=False)
    return not left


def _table(rows: dict[str, Status]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, status in rows.items():
        table.add_row(Text(name), Text(status.state), Text(status.note))
    return table


def _planned(folder: Path, jobs: Iterable[str]) -> list[str]:
    """Names of the runs' folders; `jobs` are the runs that jobs were handed."""
    begun = sorted({*jobs, *(path.parent.name for path in folder.glob(f"*/{RESULT}"))})
    try:
        plan = json.loads((folder / PLAN).read_text())["cells"]
        return [cell["run"] for cell in plan.values()]
    except FileNotFoundError:
        if not begun:
            raise RecordError(f"{folder} holds neither a plan nor a run; start a study or a sweep first") from None
        return begun
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{folder / PLAN} is damaged ({error!r}); run the study again to rewrite it") from error


def _queue() -> set[str]:
    """The jobs in the queue, where Slurm can be asked."""
    try:
        return in_queue() if shutil.which("squeue") else set()
    except HyloError:
        return set()
