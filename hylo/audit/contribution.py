"""What components contribute: how far training moved the model, each component's share, and whether moving it further
would lower the loss. A component that hardly moved says nothing about its idea, only about its learning rate and steps.

    contribution   |h - h_base| / |h_base|                    h: the input of the output head, on a few training windows
    change         |h - h with the component as it started| / |h_base|
    gain doubled   loss - loss with the component moved twice as far from its start, nats per token

To first order, the last is what doubling the learning rate would gain: under AdamW a tensor moves in proportion to it.
Own design.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.model import AdaptedModel
from hylo.audit.finding import Finding, Status
from hylo.data.windows import IGNORED, Windows, model_inputs, next_tokens

WINDOWS, TOKENS = 2, 512
"""Training windows that are read at most; one is enough if it has this many tokens. A few hundred predicted tokens tell
whether anything moved, and every component is read twice more after training."""
LEAST_CHANGE = 0.01
"""Relative change of the hidden state below which a component's change counts as small."""


class Reading(NamedTuple):
    """A model's outputs on the windows."""

    hidden: Tensor
    """[tokens, D], without padding."""
    losses: Tensor
    """[predicted tokens], nats."""

    def to(self, device: torch.device) -> "Reading":
        """The same on a device."""
        return Reading(self.hidden.to(device), self.losses.to(device))


@dataclass(frozen=True)
class SlotContribution:
    """One component's contribution, as defined in the module docstring."""

    change: float
    gain_doubled: float
    gain_error: float
    """Standard error of the gain, over tokens."""

    @property
    def undertrained(self) -> bool:
        """Whether it hardly moved, and moving further would lower the loss by more than two standard errors."""
        return self.change < LEAST_CHANGE and self.gain_doubled > 2 * self.gain_error

    def __str__(self) -> str:
        return f"{self.change:.2%} (twice as far: {self.gain_doubled:+.2g} +- {self.gain_error:.1g} nats per token)"

    def record(self) -> dict[str, float | None]:
        """As JSON; non-finite values are null."""
        values = {"change": self.change, "gain_doubled": self.gain_doubled, "gain_error": self.gain_error}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


class Contributions:
    """Measures an adapted model before and after training. Leaves it unchanged.

    Args:
        model: the model as built, before the first step.
        windows: the training windows to read, see `chosen_windows`.
        base: the base model's `read` of the same windows.
    """

    def __init__(self, model: AdaptedModel, windows: Windows, base: Reading) -> None:
        self._model, self._windows, self._base = model, windows, base
        # Copying the base model would double its memory: methods that train it are measured as a whole.
        self._start = {
            slot: {name: tensor.detach().clone() for name, tensor in tensors.items()}
            for slot, tensors in model.tensors().items()
            if tensors and not type(model.method[slot]).trains_base
        }
        self.section: dict[str, Any] = {"at_start": self._contribution(self._read())}
        """The record's section: `at_start` and `at_end`, the contribution of the whole method; `slots`, each with its
        `change`, `gain_doubled` and `gain_error`; and `undertrained`, the names of undertrained slots."""

    def after_training(self) -> Finding:
        """Measure the trained model and fill the section. Never fails: a small change may be all an idea is worth."""
        trained = self._read()
        slots = {slot: self._of_slot(slot, trained) for slot in self._start}
        small = [slot for slot, found in slots.items() if found.undertrained]
        self.section["at_end"] = self._contribution(trained)
        self.section["slots"] = {slot: found.record() for slot, found in slots.items()}
        self.section["undertrained"] = small
        told = "; ".join(f"{slot} {found}" for slot, found in slots.items())
        return Finding(
            check="contribution",
            status=Status.noted if small else Status.passed if slots else Status.skipped,
            value=min((found.change for found in slots.values() if math.isfinite(found.change)), default=None),
            detail=f"change of the hidden state: {told}" if slots else "the base model itself is trained",
            names=tuple(small),
        )

    def _of_slot(self, slot: str, trained: Reading) -> SlotContribution:
        with self._moved(slot, 0.0):
            change = _distance(trained.hidden, self._read().hidden, self._base.hidden)
        with self._moved(slot, 2.0):
            gains = (trained.losses - self._read().losses).double()
        return SlotContribution(change, float(gains.mean()), float(gains.std() / math.sqrt(len(gains))))

    @contextmanager
    def _moved(self, slot: str, times: float) -> Iterator[None]:
        """A component moved `times` as far from its start as training moved it; restored bit for bit afterwards."""
        tensors = self._model.tensors()[slot]
        kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        with torch.no_grad():
            for name, tensor in tensors.items():
                start = self._start[slot][name]
                tensor.copy_(start + times * (tensor - start))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(kept[name])

    def _read(self) -> Reading:
        return read(self._model, self._model.base, self._windows)

    def _contribution(self, reading: Reading) -> float | None:
        found = _distance(reading.hidden, self._base.hidden, self._base.hidden)
        return found if math.isfinite(found) else None


def chosen_windows(windows: Windows) -> Windows:
    """The windows that are read: the first of the longest ones, or of long ones the first alone."""
    longest = np.argsort(-windows.lengths, kind="stable")[:WINDOWS]
    count = 1 if windows.lengths.max(initial=0) >= TOKENS else WINDOWS
    return windows.take(np.sort(longest[:count]))


@torch.no_grad()
def read(model: nn.Module, base: PreTrainedModel, windows: Windows) -> Reading:
    """Hidden states before the base model's output head, and token losses of the (possibly adapted) model, in
    evaluation mode. Training modes and random state are restored."""
    head = base.get_output_embeddings()
    assert head is not None, "a causal language model has an output head"
    caught: list[Tensor] = []
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    handle = head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    losses, hidden = [], []
    model.eval()
    try:
        with torch.random.fork_rng():
            for row in range(len(windows)):
                window = windows.take(np.array([row]))
                length = int(window.lengths[0])
                positions = None if window.positions is None else window.positions[:, :length]
                inputs = model_inputs(window.ids[:, :length], window.lengths, device, positions=positions)
                logits = model(**inputs, use_cache=False).logits[0].float()
                targets = next_tokens(window.labels()[:, :length], device)[0, :-1]
                predicted = targets != IGNORED
                losses.append(nn.functional.cross_entropy(logits[:-1][predicted], targets[predicted], reduction="none"))
                hidden.append(caught.pop()[0].float())
    finally:
        handle.remove()
        for module, training in modes.items():
            module.training = training
    return Reading(torch.cat(hidden), torch.cat(losses))


def _distance(one: Tensor, other: Tensor, scale: Tensor) -> float:
    return float((one - other).norm() / scale.norm())
