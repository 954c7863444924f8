"""Settings of Weights & Biases. The client is in _wandb.py, which is imported only when a run is opened.

Tried on wandb 0.31. Source: own design.
"""

import os
from dataclasses import dataclass
from enum import Enum

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.tracking.base import TrackedRun, Tracker, TrackerConfig
from hylo.tracking.none import NullTracker


class Mode(Enum):
    """Whether W&B runs are uploaded as they run (`auto`: when there is a login)."""

    auto = "auto"
    online = "online"
    offline = "offline"


@register("tracking", "wandb")
@dataclass(kw_only=True, slots=True)
class WandbConfig(TrackerConfig):
    """Weights & Biases. WANDB_MODE=disabled tracks nothing."""

    project: str = "hylo"
    """W&B project. It is created on first use."""

    entity: str | None = None
    """W&B user or team that owns the project. None: the default of the login."""

    mode: Mode = Mode.auto
    """`online`, `offline`, or `auto`: what WANDB_MODE says, else what `wandb offline` set for this user, else online
    when there is a login (WANDB_API_KEY or a netrc entry for the host), else offline."""

    init_timeout_seconds: float = bounded(20.0, gt=0)
    """Seconds to wait for the server when a run opens. After that the process records offline."""

    finish_timeout_seconds: float = bounded(60.0, gt=0)
    """Seconds to wait for uploads when a run ends. What is left stays on disk for `wandb sync`."""

    def __post_init__(self) -> None:
        forbidden = "/\\#?%:"  # an offline run would accept them and fail on upload
        if not self.project or set(self.project) & set(forbidden):
            allowed = f"a name without any of {' '.join(forbidden)}"
            raise ConfigError(problem("tracking.project", self.project, allowed, "tracking.project=hylo (the default)"))

    def check(self) -> None:
        requested_mode(self)

    def open(self, run: TrackedRun) -> Tracker:
        mode = requested_mode(self)
        if mode == "disabled":
            return NullTracker()
        from hylo.tracking._wandb import open_run

        identity = {
            "project": self.project, "entity": self.entity, "run_group": run.group, "run_name": run.name,
            "run_job_type": run.job_type, "run_tags": run.tags,
        }  # fmt: skip
        timeouts = {"init_timeout": self.init_timeout_seconds, "finish_timeout": self.finish_timeout_seconds}
        return open_run(mode, run.folder, run.resolved, identity | timeouts) or NullTracker()


def requested_mode(config: WandbConfig) -> str | None:
    """The mode that the configuration and WANDB_MODE request: online, offline, disabled, or None to decide by login.

    Raises:
        ConfigError: WANDB_MODE has a value that W&B does not know.
    """
    variable = os.environ.get("WANDB_MODE")
    if variable == "disabled":
        return "disabled"
    if config.mode is not Mode.auto:
        return config.mode.value
    known = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
    if variable and variable not in known:
        fix = "unset WANDB_MODE, or set tracking.mode"
        raise ConfigError(problem("WANDB_MODE", variable, f"{', '.join(known)}, disabled", fix))
    return known[variable] if variable else None
