"""Experiment tracking: one run per cell and seed, one for a study's report, or none.

The record on disk is the result; a tracker is a view of it. So tracking never fails a run and never waits longer than
configured. W&B itself is in hylo/tracking/wandb.py, which is imported only when it is used. Source: own design.
"""

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, final

import pandas as pd

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.schema import bounded


class Backend(Enum):
    """Where runs are tracked."""

    wandb = "wandb"
    none = "none"


class Mode(Enum):
    """Whether W&B runs are uploaded as they run (`auto`: when there is a login)."""

    auto = "auto"
    online = "online"
    offline = "offline"


@register("tracking", "tracking")
@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """How runs are tracked. Nothing here can change a result, so none of it belongs in a run's fingerprint."""

    backend: Backend = Backend.wandb
    """`wandb`, or `none` to track nothing; the record on disk is written either way. WANDB_MODE=disabled means none."""

    project: str = "hylo"
    """W&B project. It is created on first use."""

    entity: str | None = None
    """W&B user or team that owns the project. None: the default of the login."""

    mode: Mode = Mode.auto
    """`online`, `offline`, or `auto`: what WANDB_MODE says, else what `wandb offline` chose for this user, else online
    when there is a login (WANDB_API_KEY or a netrc entry for the host), else offline."""

    init_timeout_seconds: float = bounded(20.0, gt=0)
    """Seconds to wait for the server when a run opens. After that the process records offline."""

    finish_timeout_seconds: float = bounded(60.0, gt=0)
    """Seconds to wait for uploads when a run ends. What is left stays on disk for `wandb sync`."""

    def __post_init__(self) -> None:
        forbidden = "/\\#?%:"  # an offline run would accept them and fail when it is uploaded
        if not self.project or set(self.project) & set(forbidden):
            allowed = f"a name without any of {' '.join(forbidden)}"
            raise ConfigError(problem("tracking.project", self.project, allowed, "tracking.project=hylo (the default)"))


class Tracker(abc.ABC):
    """Receives what a run produces. No method raises because of the tracking service."""

    @abc.abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each named curve; steps do not decrease.

        Numbers that are not finite are left out, so a curve has a gap there: W&B would store them as text.
        """

    @abc.abstractmethod
    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values of the run. Numbers that are not finite are left out."""

    @abc.abstractmethod
    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Store a table without its index. Missing and non-finite cells are empty; a column of mixed kinds is text."""

    @abc.abstractmethod
    def image(self, name: str, path: Path) -> None:
        """Store an image file (PNG or JPEG)."""

    @abc.abstractmethod
    def finish(self, exit_code: int = 0) -> None:
        """Close the run; an exit code other than 0 marks it failed. What is sent afterwards is dropped."""


@final
class NullTracker(Tracker):
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def summary(self, values: Mapping[str, Any]) -> None: ...
    def table(self, name: str, frame: pd.DataFrame) -> None: ...
    def image(self, name: str, path: Path) -> None: ...
    def finish(self, exit_code: int = 0) -> None: ...


def open_tracker(
    config: TrackingConfig,
    *,
    folder: Path,
    group: str,
    name: str,
    run_id: str | None,
    resolved: Mapping[str, Any],
    job_type: str,
    tags: list[str],
) -> Tracker:
    """Open a run in the configured backend.

    Args:
        config: The `tracking` section.
        folder: Where files may be written; W&B uses `folder/wandb`.
        group: Name of the study or sweep.
        name: Name shown for the run, for example "lora-seed0".
        run_id: Identity of the run, so that an interrupted run goes on where it was; None for a new one.
        resolved: The resolved configuration, nested and JSON-serializable. The home folder in it is written as `~`.
        job_type: "cell" or "report".
        tags: Labels to filter runs by.

    Raises:
        ConfigError: WANDB_MODE has a value that W&B does not know.
    """
    mode = _requested_mode(config)
    if mode == "disabled":
        return NullTracker()
    from hylo.tracking.wandb import open_wandb

    identity = {
        "project": config.project, "entity": config.entity, "run_group": group, "run_name": name, "run_id": run_id,
        "run_job_type": job_type, "run_tags": tuple(tags),
    }  # fmt: skip
    timeouts = {"init_timeout": config.init_timeout_seconds, "finish_timeout": config.finish_timeout_seconds}
    return open_wandb(mode, folder, resolved, identity | timeouts) or NullTracker()


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


def log_run(tracker: Tracker, curve: pd.DataFrame, result: Mapping[str, Any]) -> None:
    """Log a whole run: every step of its curve and the numbers of its result.

    Args:
        tracker: Where to.
        curve: One row an optimizer step, in order; see `log_step`. Empty where every step was logged as it happened.
        result: The content of result.json. Summary names are its paths, with `metrics` called `eval`: `eval/ppl`,
            `eval/lim_ppl`, `params/trainable`, `training/seconds`, and of a probe `probe/60/ends_minus_middle`. `audit`
            names what failed, or says passed. Other lists and text stay in the record.
    """
    for row in curve.to_dict("records"):
        log_step(tracker, {str(key): value for key, value in row.items()})
    sections = {"eval": "metrics", "params": "params", "training": "training"}
    numbers = {name: result[section] for name, section in sections.items() if section in result}
    if "probe" in result:
        found = {key: value for key, value in result["probe"].items() if key not in ("name", "mark", "config")}
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


def _requested_mode(config: TrackingConfig) -> str | None:
    """What the configuration and WANDB_MODE ask for: online, offline, disabled, or None to decide by the login."""
    variable = os.environ.get("WANDB_MODE")
    if config.backend is Backend.none or variable == "disabled":
        return "disabled"
    if config.mode is not Mode.auto:
        return config.mode.value
    known = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
    if variable and variable not in known:
        fix = "unset WANDB_MODE, or set tracking.mode"
        raise ConfigError(problem("WANDB_MODE", variable, f"{', '.join(known)}, disabled", fix))
    return known[variable] if variable else None


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers in nested mappings, under their paths joined by `/`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
