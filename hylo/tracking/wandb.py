"""Weights & Biases: the only file that imports wandb. Source: own design, tried on wandb 0.31.

W&B receives the resolved config, the curve, the summary, and a report's table and figures. Code, console output, git
state, command line, package list and paths of the machine are not captured. A server out of reach turns into an offline
file; an error of W&B turns into one line of warning.
"""

import logging
import math
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, final

import pandas as pd
import wandb
from wandb.errors import AuthenticationError
from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
from wandb.sdk.lib.wbauth import authenticate_session
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

from hylo.tracking.base import Tracker

_log = logging.getLogger(__name__)

# W&B's own errors; plain exceptions about its service process; a lost socket or a full disk; values it refuses.
_SERVICE_ERRORS = (WandbServiceConnectionError, MailboxClosedError, HandleAbandonedError, ServerResponseError)
_WANDB_ERRORS = (wandb.Error, *_SERVICE_ERRORS, OSError, ValueError, TypeError)

_PRIVATE: dict[str, Any] = {
    "silent": True, "console": "off", "save_code": False, "disable_code": True, "disable_git": True,
    "label_disable": True, "x_disable_meta": True, "x_save_requirements": False, "symlink": False,
    "use_dot_wandb": False,
}  # fmt: skip


@final
class WandbTracker(Tracker):
    """A W&B run, online or offline. At the first error it says so once and stays quiet from then on."""

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        self._run: wandb.Run | None = run
        self._folder = folder

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if finite := _finite(metrics):
            self._attempt(lambda run: run.log(finite, step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._attempt(lambda run: run.summary.update(_finite(values)))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        cells = pd.DataFrame({str(key): _cells(column) for key, column in frame.items()}, dtype=object)
        self._attempt(lambda run: run.log({name: wandb.Table(dataframe=cells)}))

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
            _process.warn_once(f"W&B stopped ({_one_line(error)}); the run goes on untracked, its record is unaffected")


def open_wandb(
    mode: str | None, folder: Path, resolved: Mapping[str, Any], settings: dict[str, Any]
) -> WandbTracker | None:
    """Open a W&B run.

    Args:
        mode: "online", "offline", or None to decide by this user's W&B settings and login.
        folder: W&B writes below `folder/wandb`.
        resolved: The run's configuration.
        settings: Further fields of `wandb.Settings`: the run's identity and time-outs.

    Returns:
        The tracker. None where the user has disabled W&B, or where not even an offline run could be opened.
    """
    config = _without_home(resolved)
    settings = settings | _PRIVATE | {"root_dir": str(folder)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _environment(folder):
            mode = mode or _automatic_mode()
            if mode == "disabled":
                return None
            if mode == "online" and not _process.offline_only:
                try:
                    return _start_online(folder, config, settings)
                except _WANDB_ERRORS as error:
                    _process.offline_only = True
                    _process.warn_once(
                        f"W&B cannot be used online ({_one_line(error)}), so this process records offline; "
                        "run `wandb login`, or choose tracking.mode=offline or tracking=none"
                    )
                    _drop_service()
            return _start_offline(folder, config, settings)
    except _WANDB_ERRORS as error:
        _drop_service()
        _process.warn_once(f"W&B could not start ({_one_line(error)}), so nothing is tracked; tracking=none is silent")
        return None


def _start_online(folder: Path, config: Any, settings: dict[str, Any]) -> WandbTracker:
    if not _has_login():
        raise AuthenticationError("no API key for this server")
    resume = "allow" if settings["run_id"] else None
    options = wandb.Settings(mode="online", resume=resume, **settings)
    run = wandb.init(config=config, settings=options, reinit="create_new")
    _process.print_once(f"W&B records online: {run.project_url}")
    return WandbTracker(run, folder)


def _start_offline(folder: Path, config: Any, settings: dict[str, Any]) -> WandbTracker:
    options = wandb.Settings(mode="offline", **settings)
    run = wandb.init(config=config, settings=options, reinit="create_new")
    _process.print_once(f"W&B records offline; upload with: wandb sync {folder / 'wandb' / 'offline-run-*'}")
    return WandbTracker(run, folder)


@dataclass(slots=True)
class _Process:
    """What this process has learnt and said about W&B: a sweep runs many jobs in one process."""

    offline_only: bool = False
    said: set[str] = field(default_factory=set)

    def warn_once(self, message: str) -> None:
        self._once(_log.warning, message)

    def print_once(self, message: str) -> None:
        self._once(print, message)

    def _once(self, say: Callable[[str], None], message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            say(message)


_process = _Process()


def _automatic_mode() -> str:
    """What `wandb offline` or `wandb disabled` chose for this user, else online where there is a login."""
    chosen = wandb.setup(wandb.Settings(silent=True)).settings.mode
    return chosen if chosen in ("offline", "disabled") else "online" if _has_login() else "offline"


def _has_login() -> bool:
    """Whether there is a key for the server, well-formed or not: opening the run says what is wrong with it.

    Asked before any online run, because without a key W&B would wait for an answer in the terminal.
    """
    host = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    try:
        return authenticate_session(host=host, source="hylo", prompt=False, update_session=False) is not None
    except AuthenticationError:
        return True


def _drop_service() -> None:
    """End W&B's service process after an error, so that the next run starts a new one.

    It may be dead (then ending it fails too, or wants to end this process with its exit code), or still hold the id of
    the run that failed to start.
    """
    with suppress(SystemExit, *_WANDB_ERRORS):
        wandb.teardown()


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Environment variables for calls into W&B, restored afterwards.

    Three settings exist as variables only: without them staged tables and logs go to the home folder, and even an
    offline run looks up W&B's host for telemetry. W&B itself leaves WANDB_SERVICE behind, which would tie every child
    process to this one's service. What the user has set stays.
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


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not isinstance(value, Real) or math.isfinite(value)}


def _cells(column: pd.Series) -> pd.Series:
    """A column as W&B accepts it: Python values of one kind, None for what is missing or not finite."""
    cells = column.astype(object).where(column.notna() & ~column.isin([math.inf, -math.inf]), None)
    kinds = {Real if isinstance(cell, Real) and not isinstance(cell, bool) else type(cell) for cell in cells.dropna()}
    return cells if len(kinds) <= 1 else cells.map(str, na_action="ignore")


def _without_home(node: Any) -> Any:
    """The same tree with the user's home folder written as `~`."""
    if isinstance(node, Mapping):
        return {key: _without_home(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_home(value) for value in node]
    home = str(Path.home())
    return node.replace(home, "~") if isinstance(node, str) and home != "/" else node


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 200)
