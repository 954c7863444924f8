"""The interface of trackers, and what is logged of a run and of a report.

The record on disk is the result; a tracker is a view of it. Each tracker is a module of this package with its config,
selected by a file of conf/tracking/ and opened by `hylo.tracking.guard.open_tracker`. Source: own design.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hylo.core import extras


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """What a tracker is told when a run begins."""

    folder: Path
    """The folder of all records. A tracker writes into the subfolder with its own name, and nowhere else."""
    group: str
    """Name of the study or sweep."""
    name: str
    """Name shown for the run, for example "lora-seed0"."""
    resolved: Mapping[str, Any]
    """The resolved configuration, nested and JSON-serializable; for a report, its manifest."""
    job_type: str
    """"cell", "probe" (on a complete run of the same name) or "report"."""
    tags: tuple[str, ...] = ()
    """Labels to filter runs by."""


class Tracker(abc.ABC):
    """Receives what a run produces.

    Numbers are finite: others are dropped beforehand, which leaves a gap in the curve. A method may raise: the first
    error becomes a one-line warning, and the run continues untracked.
    """

    @abc.abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each named curve; steps never decrease."""

    @abc.abstractmethod
    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values of the run: numbers and text."""

    @abc.abstractmethod
    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Store a table without its index. A column holds values of one kind, or None where a value is missing."""

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
        """Reject what cannot work on this machine, before anything expensive runs.

        Raises:
            MissingDependency: a library is not installed.
            ConfigError: the environment contradicts the settings.
        """

    @abc.abstractmethod
    def open(self, run: TrackedRun) -> Tracker:
        """Begin a run. The tracker's library is imported here, not earlier."""


def need(library: str, choice: str) -> None:
    """Reject a tracker whose library is missing, without importing it.

    Raises:
        MissingDependency: the library is not installed; the message names the extra `hylo[<choice>]`.
    """
    extras.need(library, f"tracking={choice}", choice, "tracking=none")


def log_step(tracker: Tracker, row: Mapping[str, Any]) -> None:
    """Log one optimizer step.

    Args:
        tracker: Receives the step.
        row: A row of the curve: step, loss (nats per token), learning_rate, grad_norm, regularization, and the tokens
            and seconds of this step. Missing values are left out.
    """
    names = ("loss", "learning_rate", "grad_norm", "regularization")
    metrics = {f"train/{name}": row[name] for name in names if row.get(name) is not None}
    if row.get("tokens") and row.get("seconds"):
        metrics["train/tokens_per_second"] = row["tokens"] / row["seconds"]
    tracker.log(metrics, step=int(row["step"]))


def log_run(tracker: Tracker, result: Mapping[str, Any]) -> None:
    """Log the numbers of a run's result.

    Args:
        tracker: Receives the numbers.
        result: The content of result.json. Summary names are its paths, with `metrics` called `eval`: `eval/ppl`,
            `eval/lim_ppl`, `params/trainable`, `training/seconds`, and for a probe `probe/60/ends_minus_middle`.
            `audit` names the failed checks, or says passed. Other lists and text stay in the record.
    """
    sections = {"eval": "metrics", "params": "params", "training": "training"}
    numbers = {name: result[section] for name, section in sections.items() if section in result}
    if "probe" in result:
        found = {key: value for key, value in result["probe"].items() if key not in ("name", "fingerprint", "config")}
        only = next(iter(found.values()), None)
        numbers["probe"] = only if len(found) == 1 and isinstance(only, Mapping) else found
    texts = {key: result[key] for key in ("status", "fingerprint") if key in result}
    if failed := result.get("audit", {}).get("failed"):
        texts["audit"] = ", ".join(failed)
    elif "audit" in result:
        texts["audit"] = "passed"
    tracker.summary(dict(_numbers(numbers)) | texts)


def log_report(
    tracker: Tracker, summary: pd.DataFrame, figures: Sequence[Path], tables: Mapping[str, pd.DataFrame] | None = None
) -> None:
    """Log a study's table as `summary`, further tables by name, and its PNG figures by file name."""
    for name, frame in {"summary": summary, **(tables or {})}.items():
        tracker.table(name, frame)
    for figure in figures:
        if figure.suffix.lower() == ".png":
            tracker.image(figure.stem, figure)


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers in nested mappings, by their paths joined with `/`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
