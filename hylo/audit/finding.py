"""Findings of the audit's checks, and how they are printed and recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Status(Enum):
    """Outcome of a check."""

    passed = "green"
    failed = "bold red"
    noted = "yellow"
    """No failure, but worth knowing: a declared difference from the base model, or an undertrained component."""
    skipped = "dim"
    """Does not apply to this method."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's result."""

    check: str
    status: Status
    detail: str
    """What was measured, as text with the numbers."""
    value: float | None = None
    """The measured number; None if the check measures none or the number is not finite."""
    limit: float | None = None
    """The largest value that passes."""
    names: tuple[str, ...] = ()
    """The tensors or components that failed or are noted."""

    def record(self) -> dict[str, Any]:
        """The finding as JSON."""
        columns = {"check": self.check, "status": self.status.name, "value": self.value, "limit": self.limit}
        return columns | {"detail": self.detail, "names": list(self.names)}


def verdict(failed: bool) -> Status:
    """The status of a check that failed or passed."""
    return Status.failed if failed else Status.passed


def failed_checks(findings: Sequence[Finding]) -> list[str]:
    """Names of the checks that failed, in order."""
    return [finding.check for finding in findings if finding.status is Status.failed]


def print_findings(title: str, findings: Sequence[Finding]) -> None:
    """Print a table, one row per check. Output that is not a terminal gets lines of up to 120 columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    for header in ("check", "result", "found"):
        table.add_column(header, overflow="fold")
    for finding in findings:
        style = finding.status.value
        table.add_row(finding.check.replace("_", " "), Text(finding.status.name, style), Text(finding.detail))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table, Text())
