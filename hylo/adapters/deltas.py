"""Trained changes of a base model's own tensors, outside of its linear layers.

    W' = W + D        D = 0 at step 0

While a module runs, it finds W' where it looks for W; W itself is never written, so the base model comes back bit for
bit. The sum is taken in float32 or wider and rounded to the dtype of W. Weight decay pulls W' to W, not to zero.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hylo.adapters.component import SEPARATOR, BuildContext, Component, ComponentConfig, zeros
from hylo.core.errors import problem
from hylo.core.registry import name_of


@dataclass(kw_only=True, slots=True)
class DeltasConfig(ComponentConfig):
    """No settings except the learning-rate multiplier. Subclasses say which tensors change."""

    what: ClassVar[str]
    """What a model must have, for the message of one that has none of these tensors."""

    @abc.abstractmethod
    def tensors(self, model: PreTrainedModel) -> dict[str, list[str]]:
        """The tensors by path, each with the paths of all modules that read it; empty: the model has none."""

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        if not self.tensors(context.model):
            allowed = f"a model with {self.what}; {type(context.model).__name__} has none"
            yield problem(key, name_of("component", type(self)), allowed, f"{key}=null")

    def build(self, context: BuildContext) -> "Deltas":
        return Deltas(self.tensors(context.model), context)

    def parameter_count(self, context: BuildContext) -> int:
        return sum(context.model.get_parameter(path).numel() for path in self.tensors(context.model))


class Deltas(Component):
    """One change D per tensor.

    Args:
        tensors: for each tensor of the base model, by its path, the paths of all modules that read it.
        context: what the component is built from.
    """

    def __init__(self, tensors: Mapping[str, Sequence[str]], context: BuildContext) -> None:
        super().__init__()
        self._tensors = {path: list(readers) for path, readers in tensors.items()}
        self.D = nn.ParameterDict(
            {
                path.replace(".", SEPARATOR): context.parameter(f"D.{path}", _shape(context.model, path), zeros)
                for path in tensors
            }
        )
        self._hooks: list[RemovableHandle] = []

    def attach(self, model: PreTrainedModel) -> None:
        read: dict[str, dict[str, nn.Parameter]] = {}
        for path, readers in self._tensors.items():
            for reader in readers:
                read.setdefault(reader, {})[path.rpartition(".")[2]] = self.D[path.replace(".", SEPARATOR)]
        for reader, deltas in read.items():
            module, passing = model.get_submodule(reader), _Passing(deltas)
            self._hooks.append(module.register_forward_pre_hook(passing.begin))
            # Recomputed passes (gradient checkpointing) may end in the middle of a module.
            self._hooks.append(module.register_forward_hook(passing.end, always_call=True))

    def detach(self, model: PreTrainedModel) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def merge_refusal(self) -> str | None:
        return None

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> None:
        for path in self._tensors:
            own = model.get_parameter(path)
            own.copy_(changed(own, self.D[path.replace(".", SEPARATOR)]))
        self.detach(model)


class _Passing:
    """Puts the changed tensors in a module's way for the length of a pass.

    Args:
        deltas: D by the module's name for the tensor.
    """

    def __init__(self, deltas: dict[str, nn.Parameter]) -> None:
        self._deltas = deltas

    def begin(self, module: nn.Module, args: Any) -> None:
        for name, delta in self._deltas.items():
            # An attribute of the instance, which Python finds before torch looks among the parameters.
            own = module._parameters[name]
            assert own is not None
            vars(module)[name] = changed(own, delta)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        for name in self._deltas:
            vars(module).pop(name, None)


def changed(own: Tensor, delta: Tensor) -> Tensor:
    """W + D in the dtype of W."""
    return (own.to(torch.promote_types(own.dtype, delta.dtype)) + delta).to(own.dtype)


def _shape(model: PreTrainedModel, path: str) -> tuple[int, ...]:
    return tuple(model.get_parameter(path).shape)
