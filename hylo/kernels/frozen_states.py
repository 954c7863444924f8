"""What a frozen decoder computes for a batch, kept on disk: components that act after the final norm need no more.

All cells of a study read the same windows in the same order, and for such components (landmarks after the final norm,
or none at all) everything before that norm is the base model's. Its input is stored for each batch; later passes over
the same batch, of this cell or of one with another learning rate, begin there. First and later passes go the same way
from the stored states on, so the numbers are the same bits. Source: own design.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from hylo.core.cache import cache_folder, cached_folder, text_hash
from hylo.core.devices import is_out_of_memory
from hylo.models.architecture import decoder, final_norm

FOLDER, STATES = "states", "states.safetensors"
"""The folder in the cache, and the file in the folder of a batch."""
TRIED = 16
"""Tokens on which a model is tried."""


class FrozenStates:
    """The final norm's inputs of a model whose decoder is frozen, by batch. Constructed on the plain model.

    Args:
        model: the base model, in evaluation mode.
        name: everything besides the batch that the states depend on, such as a base model's fingerprint.
        budget: bytes on disk for the states of all models; those unused for longest make room.

    Attributes:
        declined: why nothing is kept; None: it is.
        read, computed: number of batches whose states were read, and computed.
        trained: number of those that were read in training, which its time leaves out.
    """

    def __init__(self, model: PreTrainedModel, name: str, budget: float) -> None:
        self._model, self._name, self._budget = model, name, budget
        self.read, self.computed, self.trained = 0, 0, 0
        self._output: type[Any] = BaseModelOutputWithPast
        self.declined = self._refusal()

    @property
    def counts(self) -> dict[str, int]:
        """The entries of the record's `training` section."""
        return {"states_read": self.read, "states_computed": self.computed, "steps_from_states": self.trained}

    def __str__(self) -> str:
        return f"{self.read} batches began at stored states of the frozen layers, {self.computed} computed them"

    @contextmanager
    def of(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Inside the block, passes over this batch begin at the final norm."""
        if self.declined:
            yield
            return
        with _forward_of(decoder(self._model), self._from(self._states(inputs))):
            yield

    def _states(self, inputs: dict[str, Any]) -> Tensor:
        """The final norm's input for a batch, [B, T, D]: read, or computed and kept."""
        parts = (part for name in sorted(inputs) for part in (name, *_described(inputs[name])))
        name = f"{FOLDER}/{text_hash(self._name, str(self._model.training), *parts)[:24]}"
        folder = cache_folder() / name
        computed: list[Tensor] = []

        def make(draft: Path) -> None:
            computed.append(self._compute(inputs))
            save_file({"states": computed[0].contiguous()}, draft / STATES)
            _make_room(folder.parent, self._budget)

        try:
            path = cached_folder(name, make) / STATES
            os.utime(path)  # the last to be thrown away
            states = computed[0] if computed else load_file(path, device=str(self._model.device))["states"]
        except (OSError, SafetensorError):  # the disk is full, or another process made room for its own
            computed = computed or [self._compute(inputs)]
            states = computed[0]
        self.computed += bool(computed)
        self.read += not computed
        self.trained += not computed and self._model.training
        return states

    def _compute(self, inputs: dict[str, Any]) -> Tensor:
        def stop(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Reached(args[0])

        handle = final_norm(self._model).register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                self._model(**inputs, use_cache=False)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise AssertionError("the model was tried on a few tokens and used its final norm")

    def _from(self, states: Tensor) -> Callable[..., Any]:
        norm = final_norm(self._model)

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._output(last_hidden_state=norm(states))

        return forward

    @torch.no_grad()
    def _refusal(self) -> str | None:
        """Tried on a few tokens: the head must get what it gets otherwise, in training the same in every pass."""
        model, name = self._model, type(self._model).__name__
        inputs = {"input_ids": torch.arange(TRIED, device=model.device).unsqueeze(0)}
        modes = [(module, module.training) for module in model.modules()]
        try:
            expected, states = self._logits(inputs), self._compute(inputs)
            with _forward_of(decoder(model), self._from(states)):
                same = torch.equal(expected, model(**inputs, use_cache=False).logits)
            model.train()
            with torch.random.fork_rng():
                steady = all(torch.equal(states, self._compute(inputs)) for _ in range(2))
        except Exception as error:  # a model that this cannot be done with still does its work
            if is_out_of_memory(error):
                raise
            return f"{name} cannot begin at its final norm ({type(error).__name__})"
        finally:
            for module, mode in modes:
                module.training = mode
        if not same:
            return f"{name} does more after its layers than its final norm"
        return None if steady else f"{name} draws random numbers in training (dropout), so every pass has other states"

    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        """Of a whole pass, which also shows the class of the decoder's output."""

        def look(module: nn.Module, args: Any, output: Any) -> None:
            self._output = type(output)

        handle = decoder(self._model).register_forward_hook(look)
        try:
            return self._model(**inputs, use_cache=False).logits
        finally:
            handle.remove()


class _Reached(BaseException):
    """Ends a pass at the final norm."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _described(value: Any) -> tuple[str | bytes, ...]:
    if isinstance(value, Tensor):
        return str(value.dtype), str(tuple(value.shape)), value.detach().cpu().contiguous().numpy().tobytes()
    return (repr(value),)


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward of a module, for the length of a block."""
    before = vars(module).get("forward")
    vars(module)["forward"] = MethodType(forward, module)
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def _make_room(folder: Path, budget: float) -> None:
    """Throw away the states that were unused for longest until the rest fits the budget."""
    files = []
    for path in folder.glob(f"*/{STATES}"):
        try:
            files.append((path.stat().st_mtime, path.stat().st_size, path.parent))
        except FileNotFoundError:  # another process makes room, too
            continue
    left = sum(size for _, size, _ in files)
    for _, size, parent in sorted(files):
        if left <= budget:
            return
        shutil.rmtree(parent, ignore_errors=True)
        left -= size
