"""Checkpoints from which interrupted training resumes bit for bit: tensors, optimizer, counters. No pickle.

state.safetensors     trained tensors, and the optimizer's state tensors for each
optimizer.json        the optimizer's scalars per trained tensor and per parameter group
counters.json         training progress
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hylo.adapters.model import AdaptedModel
from hylo.core.files import replacing_folder

CHECKPOINT = "checkpoint"
"""Name of the checkpoint folder inside a run's folder."""
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

    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.folder / STATE).exists()

    def save_if_due(self, counters: dict[str, Any]) -> None:
        """Saves if the last checkpoint is older than `every_seconds`."""
        if time.monotonic() - self._saved_at >= self.every_seconds:
            self.save(counters)

    def save(self, counters: dict[str, Any]) -> None:
        """Saves the state atomically: readers see either the old or the new checkpoint."""
        flat = {f"model.{name}": tensor.detach().cpu() for name, tensor in self._tensors.items()}
        optimizer = self._optimizer.state_dict()
        numbers: dict[str, Any] = {"state": {}, "groups": [_numbers(group) for group in optimizer["param_groups"]]}
        for index, state in optimizer["state"].items():
            tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            flat |= {f"optimizer.{index}.{key}": tensor.detach().cpu() for key, tensor in tensors.items()}
            numbers["state"][index] = {key: value for key, value in state.items() if key not in tensors}
        with replacing_folder(self.folder) as draft:
            save_file({name: tensor.contiguous() for name, tensor in flat.items()}, draft / STATE)
            (draft / OPTIMIZER).write_text(json.dumps(numbers))
            (draft / COUNTERS).write_text(json.dumps(counters))
        self._saved_at = time.monotonic()

    @torch.no_grad()
    def restore(self) -> dict[str, Any]:
        """Restores model and optimizer and returns the counters; {} if nothing was saved."""
        if not self.exists():
            return {}
        saved = load_file(self.folder / STATE)
        for name, tensor in self._tensors.items():
            tensor.copy_(saved[f"model.{name}"])
        numbers = json.loads((self.folder / OPTIMIZER).read_text())
        state: dict[int, dict[str, Any]] = {int(index): values for index, values in numbers["state"].items()}
        for name, tensor in saved.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
        fresh = self._optimizer.state_dict()["param_groups"]
        groups = [group | kept for group, kept in zip(fresh, numbers["groups"], strict=True)]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        return json.loads((self.folder / COUNTERS).read_text())


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, int | float)}
