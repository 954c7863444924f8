"""Checkpoints from which interrupted training resumes bit for bit: tensors, optimizer, counters. No pickle.

state.safetensors     trained tensors, and the optimizer's state tensors for each
optimizer.json        the optimizer's scalars per trained tensor and per parameter group
counters.json         training progress
sha256.json           checksums of the others

The last two checkpoints are kept. One that is damaged is named and set aside, and training resumes from the one before.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hylo.adapters.model import AdaptedModel
from hylo.core.devices import is_main_process
from hylo.core.files import flush, remove_folder, replacing_folder
from hylo.core.sums import damaged_files, write_sums

CHECKPOINT = "checkpoint"
"""Name of the checkpoint folder inside a run's folder."""
BEFORE, DAMAGED = "checkpoint-before", "checkpoint-damaged"
"""Its neighbours: the checkpoint before, and the last one that was damaged."""
CHECKPOINTS = (CHECKPOINT, BEFORE, DAMAGED)
STATE, OPTIMIZER, COUNTERS = "state.safetensors", "optimizer.json", "counters.json"


class Checkpoint:
    """Periodically saves the state of a model and its optimizer to a folder, and restores it."""

    def __init__(
        self, folder: Path, model: AdaptedModel, optimizer: torch.optim.Optimizer, *, every_seconds: float
    ) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self._optimizer = optimizer
        self._tensors = {
            f"{slot}.{name}": t for slot, tensors in model.tensors().items() for name, t in tensors.items()
        }
        self._saved_at = time.monotonic()

    def save_if_due(self, counters: dict[str, Any], *, now: bool = False, every: float | None = None) -> None:
        """Saves if the last checkpoint is older than `every` seconds (by default `every_seconds`), or `now`."""
        limit = self.every_seconds if every is None else min(every, self.every_seconds)
        if now or time.monotonic() - self._saved_at >= limit:
            self.save(counters)

    def save(self, counters: dict[str, Any]) -> None:
        """Saves the state. At every moment a complete checkpoint stands, once there was one."""
        flat = {f"model.{name}": tensor.detach().cpu() for name, tensor in self._tensors.items()}
        optimizer = self._optimizer.state_dict()
        numbers: dict[str, Any] = {"state": {}, "groups": [_numbers(group) for group in optimizer["param_groups"]]}
        for index, state in optimizer["state"].items():
            tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            flat |= {f"optimizer.{index}.{key}": tensor.detach().cpu() for key, tensor in tensors.items()}
            numbers["state"][index] = {key: value for key, value in state.items() if key not in tensors}
        with replacing_folder(self.folder, keep=self.folder.with_name(BEFORE)) as draft:
            save_file({name: tensor.contiguous() for name, tensor in flat.items()}, draft / STATE)
            (draft / OPTIMIZER).write_text(json.dumps(numbers))
            (draft / COUNTERS).write_text(json.dumps(counters))
            write_sums(draft)
            flush(draft)
        self._saved_at = time.monotonic()

    def restore(self, *, logged: int | None = None) -> dict[str, Any]:
        """Restores model and optimizer and returns the counters; {} if nothing was saved, or all of it is damaged.

        Args:
            logged: number of steps in the training log. A checkpoint of a later step does not fit it; None: any does.
        """
        for folder in (self.folder, self.folder.with_name(BEFORE)):
            if not folder.exists():
                continue
            if (reason := _unusable(folder, logged)) is None:
                return self._restore(folder)
            if is_main_process():
                print(f"{folder} {reason}; it is set aside as {DAMAGED}", file=sys.stderr, flush=True)
                remove_folder(self.folder.with_name(DAMAGED))
                folder.rename(self.folder.with_name(DAMAGED))
        return {}

    @torch.no_grad()
    def _restore(self, folder: Path) -> dict[str, Any]:
        saved = load_file(folder / STATE)
        for name, tensor in self._tensors.items():
            tensor.copy_(saved[f"model.{name}"])
        numbers = json.loads((folder / OPTIMIZER).read_text())
        state: dict[int, dict[str, Any]] = {int(index): values for index, values in numbers["state"].items()}
        for name, tensor in saved.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
        fresh = self._optimizer.state_dict()["param_groups"]
        groups = [group | kept for group, kept in zip(fresh, numbers["groups"], strict=True)]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        return json.loads((folder / COUNTERS).read_text())


def _unusable(folder: Path, logged: int | None) -> str | None:
    """Why training cannot resume from a checkpoint; None: it can."""
    missing = [name for name in (STATE, OPTIMIZER, COUNTERS) if not (folder / name).exists()]
    if damaged := missing or damaged_files(folder):
        return f"is damaged ({', '.join(damaged)})"
    try:
        step = json.loads((folder / COUNTERS).read_text())["step"]
    except (ValueError, KeyError, TypeError) as error:  # of an earlier version, without checksums
        return f"is damaged ({COUNTERS}: {error!r})"
    if logged is not None and step > logged:
        return f"is of step {step}, but the training log ends with step {logged}"
    return None


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, int | float)}
