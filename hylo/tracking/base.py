"""Where the metrics of runs go besides their records: what a tracker is, and what it is told of a run and of a report.

The record on disk is the result; a tracker is a view of it. Each tracker is a file of this room with its config, chosen
by a file of conf/tracking/, and opened by `hylo.tracking.guard.open_tracker`. Source: own design.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from hylo.core.errors import MissingDependency


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """What is told of a run when it begins."""

    folder: Path
    """The folder of all records. A tracker writes into a folder of its own name in it, and nowhere else."""
    group: str
    """Name of the study or sweep."""
    name: str
    """Name shown for the run, for example "lora-seed0"."""
    resolved: Mapping[str, Any]
    """The resolved configuration, nested and JSON-serializable; of a report its manifest."""
    job_type: str
    """"cell", "probe" (asked of a complete run of the same name) or "report"."""
    tags: tuple[str, ...] = ()
    """Labels to filter runs by."""


class Tracker(abc.ABC):
    """Receives what a run produces.

    Numbers are finite: others are left out before, so that a curve has a gap there. A method may raise: the first error
    is one line of warning, and the run goes on untracked.
    """

    @abc.abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each named curve; steps do not decrease."""

    @abc.abstractmethod
    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values of the run: numbers and text."""

    @abc.abstractmethod
    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Store a table without its index. A column holds values of one kind, and None where there is none."""

    @abc.abstractmethod
    def image(self, name: str, path: Path) -> None:
        """Store an image file (PNG)."""

    @abc.abstractmethod
    def finish(self, exit_code: int = 0) -> None:
        """Close the run; an exit code other than 0 marks it failed. Nothing is sent afterwards."""


@dataclass(kw_only=True, slots=True)
class TrackerConfig(abc.ABC):
    """How runs are tracked. Subclasses add their settings.

    Nothing here can change a result, so none of it belongs in a run's fingerprint.
    """

    @abc.abstractmethod
    def check(self) -> None:
        """Refuse what cannot work on this machine, before anything expensive runs.

        Raises:
            MissingDependency: a library is not installed.
            ConfigError: the environment contradicts the settings.
        """

    @abc.abstractmethod
    def open(self, run: TrackedRun) -> Tracker:
        """Begin a run. The tracker's library is imported here, and not before."""


def need(library: str, choice: str) -> None:
    """Refuse a tracker whose library is missing, without importing it.

    Raises:
        MissingDependency: it is not installed; the message names the extra `hylo[<choice>]`.
    """
    if find_spec(library) is None:
        raise MissingDependency(
            f"tracking={choice} needs the library {library}, which is not installed\n"
            f"    fix:     pip install 'hylo[{choice}]', or tracking=none"
        )


def log_step(tracker: Tracker, row: Mapping[str, Any]) -> None:
    """Log one optimizer step.

    Args:
        tracker: Where to.
        row: A line of the curve: step, loss (nats a token), learning_rate, grad_norm, regularization, and the tokens
            and seconds of this step. What is missing is left out.
    """
    names = ("loss", "learning_rate", "grad_norm", "regularization")
    metrics = {f"train/{name}": row[name] for name in names if row.get(name) is not None}
    if row.get("tokens") and row.get("seconds"):
        metrics["train/tokens_per_second"] = row["tokens"] / row["seconds"]
    tracker.log(metrics, step=int(row["step"]))


def log_run(tracker: Tracker, result: Mapping[str, Any]) -> None:
    """Log the numbers of a run's result.

    Args:
        tracker: Where to.
        result: The content of result.json. Summary names are its paths, with `metrics` called `eval`: `eval/ppl`,
            `eval/lim_ppl`, `params/trainable`, `training/seconds`, and of a probe `probe/60/ends_minus_middle`. `audit`
            names what failed, or says passed. Other lists and text stay in the record.
    """
    sections = {"eval": "metrics", "params": "params", "training": "training"}
    numbers = {name: result[section] for name, section in sections.items() if section in result}
    if "probe" in result:
        found = {key: value for key, value in result["probe"].items() if key not in ("name", "fingerprint", "config")}
        numbers["probe"] = found.get("facts", found)
    texts = {key: result[key] for key in ("status", "fingerprint") if key in result}
    if failed := result.get("audit", {}).get("failed"):
        texts["audit"] = ", ".join(failed)
    elif "audit" in result:
        texts["audit"] = "passed"
    tracker.summary(dict(_numbers(numbers)) | texts)


def log_report(
    tracker: Tracker, summary: pd.DataFrame, figures: Sequence[Path], tables: Mapping[str, pd.DataFrame] | None = None
) -> None:
    """Log a study's table as `summary`, further ones by name, and the PNGs among its figures by the names of files."""
    for name, frame in {"summary": summary, **(tables or {})}.items():
        tracker.table(name, frame)
    for figure in figures:
        if figure.suffix.lower() == ".png":
            tracker.image(figure.stem, figure)


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers in nested mappings, under their paths joined by `/`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
