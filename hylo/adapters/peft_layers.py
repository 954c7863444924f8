"""Layers of the `peft` library in a base model, and out of it again.

The library replaces modules of the model it is given. Here it does so once, the replaced modules are put back at once,
and a component swaps the two sets when it attaches and detaches: the base model is the same object before and after,
with the same modules and weights. What the library would change in another way is refused.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.adapters.component import SEPARATOR, Component
from hylo.adapters.peft_library import has_transposed_layers, make_config, rates_of, tuner_class

ADAPTER = "default"
"""The library's name for an adapter; no part of a saved tensor's name."""
LIBRARY_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, OSError, AssertionError)
"""What the library raises for settings that it cannot use on a model."""


@dataclass
class Layers:
    """What the library made for a model."""

    replaced: dict[str, nn.Module]
    """The new modules by the path of those that they stand for."""
    shared: dict[str, nn.Module]
    """Tensors that layers share, such as VeRA's projections, by the library's name."""


def make_layers(peft_type: str, kwargs: dict[str, Any], model: PreTrainedModel) -> Layers:
    """The library's layers for a model, which is left as it was.

    A type that does not know GPT-2's transposed Conv1D is given linear layers on the same weights instead.

    Raises:
        ValueError, TypeError, ...: the library cannot use the settings on this model, or would change more of it than
            layers (LIBRARY_ERRORS).
    """
    transposed = has_transposed_layers(model)
    try:
        return _inject(peft_type, kwargs, model, transposed=transposed)
    except LIBRARY_ERRORS:
        if not transposed:
            raise
        try:
            with _linear_views(model):
                return _inject(peft_type, kwargs, model, transposed=False)
        except LIBRARY_ERRORS as error:
            if needs_weights(error):
                raise
        raise


def outline(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model on the meta device: everything but the numbers."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo | {id(buffer): buffer.to("meta") for buffer in model.buffers()})


def needs_weights(error: Exception) -> bool:
    """Whether an error says no more than that an outline has no numbers: some types start from the weights."""
    return isinstance(error, NotImplementedError) and "meta" in str(error)


def _inject(peft_type: str, kwargs: dict[str, Any], model: PreTrainedModel, *, transposed: bool) -> Layers:
    config = make_config(peft_type, kwargs, model, transposed=transposed)
    own = {id(parameter) for parameter in model.parameters()}
    modules = list(model.modules())
    hooks = _hooks(modules)
    with _restored(model) as replaced, warnings.catch_warnings():
        # peft 0.21.2 reads a property that transformers 5.23.0 calls deprecated (November 2026).
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        tuner = tuner_class(peft_type)(model, config, ADAPTER)
        trained = [name for name, p in model.named_parameters() if p.requires_grad and id(p) in own]
        hooked = _hooks(modules) != hooks
    shared = {name: child for name, child in tuner.named_children() if name != "model"}
    layers = Layers(replaced, shared)
    for module in nn.ModuleList([*shared.values(), *replaced.values()]).modules():
        _freeze_what_is_not_trained(module)
    if trained:
        raise ValueError(f"it would train the base model's own {trained[0]}")
    if hooked:
        raise ValueError("it would put hooks into the base model")
    if not replaced:
        raise ValueError("it finds no layer to adapt in this model")
    return layers


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[dict[str, nn.Module]]:
    """Takes out of the model, at the end of the block, all modules that came into it, and yields them by path."""
    before = dict(model.named_modules(remove_duplicate=False))
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    replaced: dict[str, nn.Module] = {}
    try:
        yield replaced
    finally:
        for path, module in before.items():
            if path and (now := model.get_submodule(path)) is not module:
                replaced[path] = now
                model.set_submodule(path, module)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        vars(model).pop("peft_config", None)


@contextmanager
def _linear_views(model: PreTrainedModel) -> Iterator[None]:
    """Linear layers on the same weights stand in for every Conv1D in the block."""
    transposed = {path: module for path, module in model.named_modules() if isinstance(module, Conv1D)}
    for path, module in transposed.items():
        model.set_submodule(path, LinearView(module))
    try:
        yield
    finally:
        for path, module in transposed.items():
            model.set_submodule(path, module)


def _hooks(modules: list[nn.Module]) -> int:
    """Number of hooks of the modules together."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def _freeze_what_is_not_trained(module: nn.Module) -> None:
    """Moving a layer to a device makes some of the library's constants (AdaLoRA's `ranknum`) trainable."""
    for name in getattr(module, "other_param_names", ()):
        constants = getattr(module, name, None)
        if isinstance(constants, nn.ParameterDict):
            constants.requires_grad_(False)


class LinearView(nn.Linear):
    """GPT-2's Conv1D as the linear layer that it is, on the same weights."""

    def __init__(self, source: Conv1D) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.weight.shape
        self.source = source

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[out, in]: a view of the source's [in, out]."""
        return self.source.weight.detach().T

    @property
    def bias(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[out], the source's own."""
        return self.source.bias


class LayerTuning(Component):
    """A layer-based method of the library: its layers in the places of the base model's.

    Arguments:
        rates: learning-rate multipliers by a part of a tensor's name.
    """

    def __init__(self, layers: Layers, rates: Mapping[str, float]) -> None:
        super().__init__()
        self._rates = rates
        self.shared = nn.ModuleDict(layers.shared)
        self.layers = nn.ModuleDict({path.replace(".", SEPARATOR): new for path, new in layers.replaced.items()})
        self._originals: dict[str, nn.Module] = {}

    def tensors(self) -> dict[str, nn.Parameter]:
        return {name.replace(f".{ADAPTER}", ""): tensor for name, tensor in super().tensors().items()}

    def learning_rate_multipliers(self) -> dict[str, float]:
        return rates_of(self.tensors(), self._rates)

    def attach(self, model: PreTrainedModel) -> None:
        self._originals = {}
        for path, layer in self.layers.items():
            path = path.replace(SEPARATOR, ".")
            self._originals[path] = model.get_submodule(path)
            model.set_submodule(path, layer)

    def detach(self, model: PreTrainedModel) -> None:
        for path, module in self._originals.items():
            model.set_submodule(path, module)
        self._originals = {}
