"""What training writes step by step: curve.jsonl, and trajectory.jsonl where a component has something to follow."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CURVE, TRAJECTORY = "curve.jsonl", "trajectory.jsonl"

LINES = 200
"""About as many lines as a trajectory has: more would not be told apart in a figure."""


class Curve:
    """curve.jsonl: one line an optimizer step, each on disk as soon as the step is done."""

    def __init__(self, path: Path, *, keep: int, write: bool) -> None:
        self.path, self.write = path, write
        if write:
            lines = path.read_text().splitlines(keepends=True)[:keep] if path.exists() else []
            path.write_text("".join(lines))

    def add(self, line: dict[str, Any]) -> None:
        """Append a step."""
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class Trajectory:
    """trajectory.jsonl: the observed vectors before the first step and after every so many, and after the last.

    Which steps have a line follows from their number alone, so that a continued run writes those of an undisturbed one.

    Arguments:
        steps: of the whole training.
        done: steps that a continued run does not take again; lines after them are dropped.
        start: the vectors as they are now, by component and name. Empty: there is nothing to follow, and no file.
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
        """Whether the state after this many steps has a line."""
        return step % self.every == 0 or step == self.steps

    def add(self, step: int, vectors: "Mapping[str, Mapping[str, Tensor]]") -> None:
        """Append the vectors as they are after `step` steps, where that step has a line."""
        if self.due(step):
            values = {slot: {name: _listed(t) for name, t in named.items()} for slot, named in vectors.items()}
            self._curve.add({"step": step} | values)


def _listed(vector: "Tensor") -> list[float | None]:
    return [value if math.isfinite(value) else None for value in vector.detach().flatten().tolist()]
