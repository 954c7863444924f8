"""TensorBoard: event files below the folder of all records, written by torch. Nothing leaves the machine.

    <outputs>/tensorboard/<group>/<name>/events.out.tfevents.*      tensorboard --logdir outputs/tensorboard

Curves and final numbers are scalars, the configuration is text and hyperparameters, tables are Markdown text. A run
that is repeated, or resumed from a checkpoint, replaces the points from its first step on. Source: own design, tried on
tensorboard 2.21 and torch 2.13.
"""

import importlib
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pandas as pd

from hylo.core.registry import register
from hylo.tracking.base import TrackedRun, Tracker, TrackerConfig, need
from hylo.tracking.guard import print_once


@register("tracking", "tensorboard")
@dataclass(kw_only=True, slots=True)
class TensorBoardConfig(TrackerConfig):
    """TensorBoard. It has no settings."""

    def check(self) -> None:
        need("tensorboard", "tensorboard")

    def open(self, run: TrackedRun) -> "TensorBoardTracker":
        tracker = TensorBoardTracker(run)
        print_once(f"TensorBoard's files: tensorboard --logdir {run.folder / 'tensorboard'}")
        return tracker


@final
class TensorBoardTracker(Tracker):
    """The event file of a run. It is opened by the first call, whose step tells where the run resumes."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._folder = run.folder / "tensorboard" / run.group / run.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        self._step = 0
        # The writer thread keeps its error for the next call, but also prints a traceback.
        self._excepthook = threading.excepthook
        threading.excepthook = partial(_other_threads, self._excepthook)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        writer, self._step = self._begun(step), step
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        writer = self._begun()
        for name, value in values.items():
            if isinstance(value, str):
                writer.add_text(name, value, self._step)
            else:
                writer.add_scalar(name, value, self._step)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        self._begun().add_text(name, _markdown(frame), self._step)

    def image(self, name: str, path: Path) -> None:
        module: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # from the PNG's header
        image = module.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        writer = self._begun()
        writer.file_writer.add_summary(module.Summary(value=[{"tag": name, "image": image}]), self._step)

    def finish(self, exit_code: int = 0) -> None:
        try:
            if exit_code:
                self._begun().add_text("status", "failed", self._step)
            if self._writer is not None:
                self._writer.flush()  # raises errors that closing would hide
                self._writer.close()
        finally:
            threading.excepthook = self._excepthook

    def _begun(self, step: int | None = None) -> Any:
        """The writer; a new one hides what an earlier run of this name wrote from this step on."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams

            with _nameless_machine():
                self._writer = SummaryWriter(str(self._folder), purge_step=step)
            facts = {"job_type": self._run.job_type, "tags": list(self._run.tags), **self._run.resolved}
            self._writer.add_text("config", f"```json\n{json.dumps(facts, indent=2)}\n```", step or 0)
            if self._run.job_type == "cell":
                # Not `add_hparams`: it also writes a summary of all settings, and methods differ in theirs.
                for part in hparams(dict(_settings(self._run.resolved)), {})[1:]:
                    self._writer.file_writer.add_summary(part)
        return self._writer


@contextmanager
def _nameless_machine() -> Iterator[None]:
    """Event file names contain the machine's name; here it is `localhost`."""
    from tensorboard.summary.writer import event_file_writer as module

    socket, module.socket = module.socket, SimpleNamespace(gethostname=lambda: "localhost")
    try:
        yield
    finally:
        module.socket = socket


def _other_threads(excepthook: Any, args: Any) -> None:
    """Report a thread's error, unless the thread writes an event file."""
    if type(args.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
        excepthook(args)


def _settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float | bool]]:
    """The values in nested mappings, by their dotted paths; lists as text, nulls left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float) else json.dumps(value)


def _markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown; missing values are empty cells."""
    rows = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    rows += [["" if cell is None else str(cell) for cell in row] for row in frame.itertuples(index=False)]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
