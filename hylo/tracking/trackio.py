"""trackio: a local project with its own dashboard. No account, no server, nothing leaves the machine.

    <outputs>/trackio/                      TRACKIO_DIR=outputs/trackio trackio show --project hylo

One run per cell and seed in the group of its study, with the configuration; final numbers are points at the last step,
text is Markdown. trackio reads TRACKIO_DIR when it is imported: a process keeps the folder of its first run, and a
folder set by the user is kept. Source: own design, tried on trackio 0.43.
"""

import contextvars
import importlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pandas as pd

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.tracking.base import TrackedRun, Tracker, TrackerConfig, need
from hylo.tracking.guard import print_once

SENDING = ("SPACE_ID", "SERVER_URL", "BUCKET_ID", "DATASET_ID", "WEBHOOK_URL")
"""Names of TRACKIO_... variables for remote destinations; runs of this project are local whatever they say."""


@register("tracking", "trackio")
@dataclass(kw_only=True, slots=True)
class TrackioConfig(TrackerConfig):
    """trackio, in files on this machine."""

    project: str = "hylo"
    """Name of the project in the dashboard: letters, digits, - and _."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.project):
            allowed = "letters, digits, - and _"
            raise ConfigError(problem("tracking.project", self.project, allowed, "tracking.project=hylo (the default)"))

    def check(self) -> None:
        need("trackio", "trackio")

    def open(self, run: TrackedRun) -> "TrackioTracker":
        ours = run.folder.absolute() / "trackio"
        with _local(ours):
            import trackio
            from trackio.utils import TRACKIO_DIR

            TRACKIO_DIR.mkdir(parents=True, exist_ok=True)
            config = {"job_type": run.job_type, "tags": list(run.tags), **run.resolved}
            with _loud():
                begun = contextvars.Context().run(  # neither ends nor replaces a run that the user has begun
                    trackio.init, self.project, name=run.name, group=run.group, config=config, embed=False,
                    auto_log_cpu=False, auto_log_gpu=False,
                )  # fmt: skip
        folder = run.folder / "trackio" if ours == TRACKIO_DIR else TRACKIO_DIR
        print_once(f"trackio's dashboard: TRACKIO_DIR={folder} trackio show --project {self.project}")
        return TrackioTracker(begun)


@final
class TrackioTracker(Tracker):
    """A local trackio run. A thread of trackio writes twice per second; its failures are raised by the next call."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._step = 0
        self._failures: list[str] = []
        vars(run)["_warn_once"] = lambda key, message: self._failures.append(message)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._step = step
        self._attempt(lambda: self._run.log(dict(metrics), step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        from trackio import Markdown

        self._add({name: Markdown(value) if isinstance(value, str) else value for name, value in values.items()})

    def table(self, name: str, frame: pd.DataFrame) -> None:
        from trackio import Table

        self._add({name: Table(dataframe=frame)})

    def image(self, name: str, path: Path) -> None:
        from trackio import Image

        self._add({name: Image(path)})

    def finish(self, exit_code: int = 0) -> None:
        try:
            if exit_code:
                self.summary({"status": "failed"})
        finally:
            self._attempt(self._run.finish)

    def _add(self, values: dict[str, Any]) -> None:
        self._attempt(lambda: self._run.log(values, step=self._step))

    def _attempt(self, action: Callable[[], object]) -> None:
        with _loud():
            action()
        if self._failures:
            raise RuntimeError(self._failures[0])


@contextmanager
def _local(folder: Path) -> Iterator[None]:
    """Around trackio's import and the start of a run: sets its folder, without remote destinations or login look-up.

    The environment is restored afterwards.
    """
    before = {key: value for key, value in os.environ.items() if key.startswith("TRACKIO_")}
    for name in SENDING:
        os.environ.pop(f"TRACKIO_{name}", None)
    os.environ.setdefault("TRACKIO_DIR", str(folder))
    try:
        module: Any = importlib.import_module("trackio.run")

        original = module._get_default_namespace  # asks the Hugging Face hub whose login this is
        module._get_default_namespace = str
        try:
            yield
        finally:
            module._get_default_namespace = original
    finally:
        os.environ.pop("TRACKIO_DIR", None)
        os.environ.update(before)


@contextmanager
def _loud() -> Iterator[None]:
    """Turns trackio's warnings into errors, and discards what it prints.

    Raises:
        RuntimeError: trackio has warned.
    """
    from trackio import utils

    with warnings.catch_warnings(record=True) as caught, redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    if said := [str(warning.message) for warning in caught if warning.filename == utils.__file__]:
        raise RuntimeError(said[0])
