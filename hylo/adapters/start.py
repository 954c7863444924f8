"""What an adapter's function depends on besides its trained tensors: frozen ones that training does not move.

Most components have none: their start is the base model, whatever the trained tensors were. One that begins with a part
of the base model's weights (PiSSA) computes that part again when it is built, to the same bits on one machine. Another
machine's libraries may round a decomposition otherwise, so a run keeps what it began with in a file of its own, beside
the trained tensors: it continues from it, and an adapter's folder with it gives the same function anywhere.
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
    from hylo.adapters.model import AdaptedModel  # which imports every module beside it, this one too

START = "start.safetensors"
"""Beside the trained tensors in the folder of an adapter."""


class KeepsStart(Component, ABC):
    """A component with frozen tensors that its function depends on."""

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """These tensors by name; empty where the settings make none."""

    @abstractmethod
    def take_start(self, start: Mapping[str, Tensor], *, untrained: bool) -> None:
        """Depend on these tensors instead; `untrained`: the trained tensors begin anew with them.

        Called while attached; names and shapes are those of `start`.
        """


def save_start(model: "AdaptedModel", folder: Path) -> None:
    """Write what the components began with; no file where there is nothing."""
    if start := _start(model):
        flat = {name: tensor.detach().contiguous().cpu() for name, tensor in start.items()}
        with replacing(folder / START) as draft:
            save_file(flat, draft, metadata={"format": "pt"})


def load_start(model: "AdaptedModel", folder: Path, *, untrained: bool) -> bool:
    """Let the components depend on what `save_start` wrote, and tell whether there was anything to take.

    Arguments:
        untrained: the trained tensors begin anew with it; else they stay as they are, for example as loaded.

    Raises:
        RecordError: the file is damaged or does not fit; the model is as before.
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
