"""Per-step training logs: curve.jsonl, and trajectory.jsonl if a component has vectors to track."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CURVE, TRAJECTORY = "curve.jsonl", "trajectory.jsonl"

LINES = 200
"""Approximate number of lines in a trajectory: more could not be distinguished in a figure."""


def logged_steps(path: Path) -> int | None:
    """Number of lines of a training log; None: there is no file."""
    return len(path.read_bytes().splitlines()) if path.exists() else None


class Curve:
    """curve.jsonl: one line per optimizer step, each written as soon as the step is done."""

    def __init__(self, path: Path, *, keep: int, write: bool) -> None:
        self.path, self.write = path, write
        if write:
            lines = path.read_text().splitlines(keepends=True)[:keep] if path.exists() else []
            path.write_text("".join(lines))

    def add(self, line: dict[str, Any]) -> None:
        """Appends a step."""
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class Trajectory:
    """trajectory.jsonl: the observed vectors before the first step, at regular intervals, and after the last step.

    The logged steps depend only on the step number, so a resumed run writes the same lines as an uninterrupted one.

    Args:
        steps: total number of training steps.
        done: steps already done when resuming; lines after them are dropped.
        start: the current vectors by component and name. Empty: nothing to track, and no file.
    """

    def __init__(
        self, path: Path, start: "Mapping[str, Mapping[str, Tensor]]", *, steps: int, done: int, write: bool
    ) -> None:
        self.steps, self.every = steps, math.ceil(steps / LINES)
        kept = sum(self.due(step) for step in range(done + 1)) if done else 0
        self._curve = Curve(path, keep=kept, write=write and bool(start))
        if not done:
            self.add(0, start)

    def due(self, step: int) -> bool:
        """Whether the state after this many steps is logged."""
        return step % self.every == 0 or step == self.steps

    def add(self, step: int, vectors: "Mapping[str, Mapping[str, Tensor]]") -> None:
        """Appends the vectors after `step` steps, if that step is logged."""
        if self.due(step):
            values = {slot: {name: _listed(t) for name, t in named.items()} for slot, named in vectors.items()}
            self._curve.add({"step": step} | values)


def _listed(vector: "Tensor") -> list[float | None]:
    return [value if math.isfinite(value) else None for value in vector.detach().flatten().tolist()]
