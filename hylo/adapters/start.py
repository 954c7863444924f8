"""Frozen tensors, besides the trained ones, that an adapter's function depends on.

Most components have none. A component that takes over part of the base model's weights (PiSSA) recomputes that part
when it is built, bit-identically on the same machine. Another machine's libraries may round the decomposition
differently, so a run stores its starting tensors in a separate file next to the trained tensors: the run resumes from
it, and an adapter folder that contains it computes the same function on any machine.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hylo.adapters.component import Component
from hylo.core.errors import RecordError
from hylo.core.files import replacing

if TYPE_CHECKING:
    from hylo.adapters.model import AdaptedModel  # circular: it imports every module of this package

START = "start.safetensors"
"""File name, next to the trained tensors in an adapter's folder."""


class KeepsStart(Component, ABC):
    """A component whose function also depends on frozen tensors of its own."""

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """The frozen tensors by name; empty if the settings need none."""

    @abstractmethod
    def take_start(self, start: Mapping[str, Tensor], *, untrained: bool) -> None:
        """Replace the frozen tensors with these. Called while attached.

        Args:
            start: tensors with the names and shapes of `start()`.
            untrained: also reset the trained tensors to their initial values.
        """


def save_start(model: "AdaptedModel", folder: Path) -> None:
    """Write the components' frozen starting tensors; no file is written if there are none."""
    if start := _start(model):
        flat = {name: tensor.detach().contiguous().cpu() for name, tensor in start.items()}
        with replacing(folder / START) as draft:
            save_file(flat, draft, metadata={"format": "pt"})


def load_start(model: "AdaptedModel", folder: Path, *, untrained: bool) -> bool:
    """Load the tensors written by `save_start` into the components.

    Args:
        untrained: also reset the trained tensors to their initial values; otherwise they are left as they are, for
            example as loaded.

    Returns:
        Whether there was anything to load.

    Raises:
        RecordError: the file is damaged or does not fit; the model is unchanged.
    """
    own, path = _start(model), folder / START
    if not own or not path.exists():
        return False
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path} cannot be read ({error}); train the adapter again") from error
    wrong = [name for name in own.keys() | saved.keys() if name not in own or name not in saved]
    wrong += [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
    if wrong:
        raise RecordError(f"{path} does not fit this method and model: {', '.join(sorted(wrong)[:5])}")
    for slot, component in _keeping(model).items():
        start = {name.partition(".")[2]: saved[name] for name in own if name.startswith(f"{slot}.")}
        component.take_start(start, untrained=untrained)
    return True


def _keeping(model: "AdaptedModel") -> dict[str, KeepsStart]:
    return {slot: component for slot, component in model.slots() if isinstance(component, KeepsStart)}


def _start(model: "AdaptedModel") -> dict[str, Tensor]:
    parts = _keeping(model).items()
    return {f"{slot}.{name}": tensor for slot, part in parts for name, tensor in part.start().items()}
