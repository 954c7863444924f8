"""What runs in the process that a launcher starts: cells, one after the other."""

from collections.abc import Sequence

from hylo.core.devices import say
from hylo.core.interruption import stop_if_asked
from hylo.runs.cell import Cell
from hylo.runs.run import run_or_report
from hylo.runs.shared import Session


def run_in_turn(cells: Sequence[Cell], session: Session, *, total: int) -> None:
    """Run the last cells of `total` one after the other.

    Raises:
        Interrupted: a signal asked to stop.
    """
    for number, cell in enumerate(cells, total - len(cells) + 1):
        stop_if_asked()
        run_one(cell, f"[{number}/{total}]", session)


def run_one(cell: Cell, place: str, session: Session) -> None:
    """Run a cell after saying so; `place` is its number among the others."""
    say(f"{place} {cell.group}: {cell.name}, seed {cell.config.seed}")
    run_or_report(cell, session)
