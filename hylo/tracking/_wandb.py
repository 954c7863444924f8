"""The client of Weights & Biases: the only file that imports wandb. Source: own design, tried on wandb 0.31.

W&B receives the resolved config, the curve, the summary, and a report's table and figures. Code, console output, git
state, command line, package list, name and paths of the machine are not captured. If the server cannot be reached, the
run is recorded offline; an error of W&B becomes a one-line warning.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pandas as pd
import wandb
from wandb.errors import AuthenticationError
from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
from wandb.sdk.lib.wbauth import authenticate_session
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

from hylo.tracking.base import Tracker
from hylo.tracking.guard import one_line, print_once, warn_once

# W&B's own errors; plain exceptions about its service process; a lost socket or a full disk; values it refuses.
_SERVICE_ERRORS = (WandbServiceConnectionError, MailboxClosedError, HandleAbandonedError, ServerResponseError)
_WANDB_ERRORS = (wandb.Error, *_SERVICE_ERRORS, OSError, ValueError, TypeError)

_PRIVATE: dict[str, Any] = {
    "silent": True, "console": "off", "save_code": False, "disable_code": True, "disable_git": True,
    "label_disable": True, "x_disable_meta": True, "x_save_requirements": False, "symlink": False,
    "use_dot_wandb": False, "host": "localhost",
}  # fmt: skip

_process = SimpleNamespace(offline_only=False)
"""Whether this process has found that W&B cannot be used online: a sweep runs many jobs in one process."""


@final
class WandbTracker(Tracker):
    """A W&B run, online or offline. At its first error it warns once and stops tracking."""

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        self._run: wandb.Run | None = run
        self._folder = folder

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._attempt(lambda run: run.log(dict(metrics), step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._attempt(lambda run: run.summary.update(dict(values)))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        self._attempt(lambda run: run.log({name: wandb.Table(dataframe=frame)}))

    def image(self, name: str, path: Path) -> None:
        self._attempt(lambda run: run.log({name: wandb.Image(str(path))}))

    def finish(self, exit_code: int = 0) -> None:
        self._attempt(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _attempt(self, action: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            with _environment(self._folder):
                action(self._run)
        except _WANDB_ERRORS as error:
            self._run = None
            _drop_service()
            warn_once(f"W&B stopped ({one_line(error)}); the run goes on untracked, its record is unaffected")


def open_run(
    mode: str | None, folder: Path, resolved: Mapping[str, Any], settings: dict[str, Any]
) -> WandbTracker | None:
    """Open a W&B run.

    Args:
        mode: "online", "offline", or None to decide by this user's W&B settings and login.
        folder: W&B writes below `folder/wandb`.
        resolved: The run's configuration.
        settings: Further fields of `wandb.Settings`: the run's identity and time-outs.

    Returns:
        The tracker; None if the user has disabled W&B or not even an offline run could be opened.
    """
    settings = settings | _PRIVATE | {"root_dir": str(folder)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _environment(folder):
            mode = mode or _automatic_mode()
            if mode == "disabled":
                return None
            if mode == "online" and not _process.offline_only:
                try:
                    return _start_online(folder, resolved, settings)
                except _WANDB_ERRORS as error:
                    _process.offline_only = True
                    warn_once(
                        f"W&B cannot be used online ({one_line(error)}), so this process records offline; "
                        "run `wandb login`, or choose tracking.mode=offline or tracking=none"
                    )
                    _drop_service()
            return _start_offline(folder, resolved, settings)
    except _WANDB_ERRORS as error:
        _drop_service()
        warn_once(f"W&B could not start ({one_line(error)}), so nothing is tracked; tracking=none is silent")
        return None


def _start_online(folder: Path, config: Any, settings: dict[str, Any]) -> WandbTracker:
    if not _has_login():
        raise AuthenticationError("no API key for this server")
    options = wandb.Settings(mode="online", **settings)
    run = wandb.init(config=dict(config), settings=options, reinit="create_new")
    print_once(f"W&B records online: {run.project_url}")
    return WandbTracker(run, folder)


def _start_offline(folder: Path, config: Any, settings: dict[str, Any]) -> WandbTracker:
    options = wandb.Settings(mode="offline", **settings)
    run = wandb.init(config=dict(config), settings=options, reinit="create_new")
    print_once(f"W&B records offline; upload with: wandb sync {folder / 'wandb' / 'offline-run-*'}")
    return WandbTracker(run, folder)


def _automatic_mode() -> str:
    """The mode set by `wandb offline` or `wandb disabled` for this user; else online if there is a login."""
    chosen = wandb.setup(wandb.Settings(silent=True)).settings.mode
    return chosen if chosen in ("offline", "disabled") else "online" if _has_login() else "offline"


def _has_login() -> bool:
    """Whether there is a key for the server, well-formed or not: opening the run reports what is wrong with it.

    Checked before any online run, because without a key W&B would prompt in the terminal.
    """
    host = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    try:
        return authenticate_session(host=host, source="hylo", prompt=False, update_session=False) is not None
    except AuthenticationError:
        return True


def _drop_service() -> None:
    """Stop W&B's service process after an error, so that the next run starts a new one.

    It may be dead (then stopping it also fails, or tries to exit this process with its exit code), or still hold the id
    of the run that failed to start.
    """
    with suppress(SystemExit, *_WANDB_ERRORS):
        wandb.teardown()


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Environment variables for calls into W&B, restored afterwards.

    Three settings exist only as variables: without them staged tables and logs go to the home folder, and even an
    offline run looks up W&B's host for telemetry. W&B itself leaves WANDB_SERVICE behind, which would tie every child
    process to this one's service. Variables set by the user are kept.
    """
    before = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
    files = folder.absolute() / "wandb"
    ours = {"DATA_DIR": str(files / "data"), "CACHE_DIR": str(files / "cache"), "ERROR_REPORTING": "false"}
    os.environ.update({f"WANDB_{key}": value for key, value in ours.items() if f"WANDB_{key}" not in before})
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("WANDB_") and key not in before]:
            del os.environ[key]
        os.environ.update(before)
