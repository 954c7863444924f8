"""The interface of launchers: how the cells of a plan reach the machines that run them.

Each launcher is a module of hylo/launch/ with its config, selected by a file of conf/launcher/. Studies, their trials
and sweeps all go through it. Source: own design.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hylo.core import extras
from hylo.core.devices import process_count
from hylo.core.errors import ConfigError, problem

if TYPE_CHECKING:
    from hylo.runs.cell import Cell
    from hylo.runs.shared import Session


class LeftRunning(BaseException):
    """Cells were handed over and run elsewhere; nobody waits for them here. No Exception: it is not a failure."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        """The folder of the group."""

    def __str__(self) -> str:
        look = f"`python -m hylo.studies status {self.folder}` says how they fare"
        return (
            f"{self.folder.name}: its cells run without this process; {look}, and the same command goes on from there"
        )


@dataclass(kw_only=True, slots=True)
class LauncherConfig(abc.ABC):
    """Where cells run. Subclasses add their settings.

    Nothing here can change a result beyond the last bits, so none of it belongs in a run's fingerprint.
    """

    @abc.abstractmethod
    def check(self) -> None:
        """Reject what cannot work on this machine, before anything expensive runs.

        Raises:
            MissingDependency: a library or program is not installed.
            ConfigError: the settings ask for what is not there.
        """

    @abc.abstractmethod
    def at_once(self, cells: Sequence["Cell"], session: "Session") -> int:
        """How many of these cells run at the same time, at most."""

    @abc.abstractmethod
    def run(self, cells: Sequence["Cell"], session: "Session") -> None:
        """Run cells, all of one group, and return when none of them runs any more. A failed cell stops no other.

        Raises:
            Interrupted: a signal asked to stop.
            LeftRunning: the cells run on, and it was asked not to wait for them.
        """


def need(library: str, choice: str) -> None:
    """Reject a launcher whose library is missing, without importing it, or that cannot start processes of its own.

    Raises:
        MissingDependency: the library is not installed; the message names the extra `hylo[<choice>]`.
        ConfigError: this process is one of several that share a cell.
    """
    extras.need(library, f"launcher={choice}", choice, "launcher=local")
    if process_count() > 1:
        allowed = "launcher=local in processes started by `accelerate launch` or `torchrun`: they share one cell"
        raise ConfigError(problem("launcher", choice, allowed, "start train.py on its own"))
