"""Attaching and detaching layers of the `peft` library.

The library replaces modules of the model it is given. Here it does so once, the original modules are restored
immediately, and a component swaps the two sets on attach and detach: the base model is the same object before and
after, with the same modules and weights. Anything that the library would change in another way is refused.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.adapters.component import SEPARATOR
from hylo.adapters.peft.library import (
    OLORA,
    START_KEY,
    has_transposed_layers,
    make_config,
    rates_of,
    takes_from_inputs,
    takes_from_weights,
    tuner_class,
)
from hylo.adapters.peft.start import TakenPart, check_ranks, copied_layers, start_of
from hylo.adapters.start import KeepsStart
from hylo.models.weights import is_quantized, update_refusal, without_values

ADAPTER = "default"
"""The library's name for the adapter; not part of saved tensor names."""
DORA = "use_dora"
"""The setting that adds magnitudes to LORA."""
LIBRARY_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, OSError, AssertionError)
"""Errors that the library raises for settings it cannot apply to a model."""


@dataclass
class Layers:
    """The library's modules for a model."""

    replaced: dict[str, nn.Module]
    """The new modules, by the path of the modules they replace."""
    shared: dict[str, nn.Module]
    """Modules shared by layers, such as VeRA's projections, by the library's name."""
    taken: dict[str, TakenPart] = field(default_factory=dict)
    """By path, the part of the weight that was moved into the initial A and B."""


def make_layers(peft_type: str, kwargs: dict[str, Any], model: PreTrainedModel) -> Layers:
    """The library's layers for a model, which is left unchanged.

    Types that do not support GPT-2's transposed Conv1D get linear layers on the same weights instead. Initializations
    that change weights get copies.

    Raises:
        ValueError, TypeError, ...: the library cannot apply the settings to this model, or would change more of it than
            layers (LIBRARY_ERRORS).
    """
    if model.device.type == "meta" and any(is_quantized(module) for module in model.modules()):
        kwargs = kwargs | {DORA: False} if kwargs.get(DORA) else kwargs  # its norms would need packed values
    if not takes_from_weights(peft_type, kwargs):
        layers = _make(peft_type, kwargs, model)
        if takes_from_inputs(peft_type, kwargs):
            check_ranks(layers.replaced, ADAPTER, model)
        return layers
    if model.device.type == "meta":  # nothing to decompose: build the layers with the default initialization
        layers = _make(peft_type, {name: value for name, value in kwargs.items() if name != START_KEY}, model)
        check_ranks(layers.replaced, ADAPTER, model)
        return layers
    with copied_layers(model):
        layers = _make(peft_type, kwargs, model)
    check_ranks(layers.replaced, ADAPTER, model)
    for path, layer in layers.replaced.items():
        layers.taken[path] = TakenPart(layer, ADAPTER, model.get_submodule(path))
    return layers


def _make(peft_type: str, kwargs: dict[str, Any], model: PreTrainedModel) -> Layers:
    transposed = has_transposed_layers(model)
    if transposed and kwargs.get(START_KEY) == OLORA:  # the library would decompose a Conv1D's W as stored, transposed
        with _linear_views(model):
            return _inject(peft_type, kwargs, model, transposed=False)
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
    """A copy of a model on the meta device: everything but the values."""
    memo: dict[int, Any] = {id(parameter): without_values(parameter) for parameter in model.parameters()}
    return copy.deepcopy(model, memo | {id(buffer): buffer.to("meta") for buffer in model.buffers()})


def needs_weights(error: Exception) -> bool:
    """Whether an error only means that an outline has no values: some types initialize from the weights."""
    return isinstance(error, NotImplementedError) and "meta" in str(error)


def _inject(peft_type: str, kwargs: dict[str, Any], model: PreTrainedModel, *, transposed: bool) -> Layers:
    config = make_config(peft_type, kwargs, model, transposed=transposed)
    own = {id(parameter) for parameter in model.parameters()}
    modules = list(model.modules())
    hooks = _hooks(modules)
    with _restored(model) as replaced, warnings.catch_warnings():
        # peft 0.21.2 reads a property that transformers 5.23.0 deprecates (November 2026).
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
        raise ValueError("it would register hooks on the base model")
    if not replaced:
        raise ValueError("it finds no layer to adapt in this model")
    return layers


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[dict[str, nn.Module]]:
    """Restores the model's modules at the end of the block; the yielded dict then has the new modules by path."""
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
    """Replaces every Conv1D with a linear layer on the same weights for the duration of the block."""
    transposed = {path: module for path, module in model.named_modules() if isinstance(module, Conv1D)}
    for path, module in transposed.items():
        model.set_submodule(path, LinearView(module))
    try:
        yield
    finally:
        for path, module in transposed.items():
            model.set_submodule(path, module)


def _hooks(modules: list[nn.Module]) -> int:
    """Total number of hooks of the modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def _freeze_what_is_not_trained(module: nn.Module) -> None:
    """Freeze constants of the library (AdaLoRA's `ranknum`) that become trainable when a layer is moved to a device."""
    for name in getattr(module, "other_param_names", ()):
        constants = getattr(module, name, None)
        if isinstance(constants, nn.ParameterDict):
            constants.requires_grad_(False)


class LinearView(nn.Linear):
    """GPT-2's Conv1D as an equivalent linear layer on the same weights."""

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


class LayerTuning(KeepsStart):
    """A layer-based method of the library: its layers replace those of the base model.

    LoRA and DoRA on linear layers can be merged, by the library itself: W' = W + s B A, or m / n (W + s B A).

    Args:
        layers: the library's layers for the base model.
        rates: learning-rate multipliers by substring of a tensor's name.
    """

    def __init__(self, layers: Layers, rates: Mapping[str, float]) -> None:
        super().__init__()
        self._rates = rates
        self.shared = nn.ModuleDict(layers.shared)
        self.layers = nn.ModuleDict({path.replace(".", SEPARATOR): new for path, new in layers.replaced.items()})
        self._originals: dict[str, nn.Module] = {}
        self._taken = layers.taken

    def tensors(self) -> dict[str, nn.Parameter]:
        return {name.replace(f".{ADAPTER}", ""): tensor for name, tensor in super().tensors().items()}

    def learning_rate_multipliers(self) -> dict[str, float]:
        return rates_of(self.tensors(), self._rates)

    def start(self) -> dict[str, Tensor]:
        return start_of(self._taken)

    @torch.no_grad()
    def take_start(self, start: Mapping[str, Tensor], *, untrained: bool) -> None:
        trained = self.tensors()
        for path, part in self._taken.items():
            part.replace(start[f"{path}.A"], start[f"{path}.B"], self._originals[path])
            if untrained:
                trained[f"layers.{path}.lora_A.weight"].copy_(part.A)
                trained[f"layers.{path}.lora_B.weight"].copy_(part.B)

    @torch.no_grad()
    def take_directions(self, directions: Mapping[str, Tensor]) -> None:
        """Initialize each A [r, in] of LoRA with these, by the path of its layer."""
        trained = self.tensors()
        for path, A in directions.items():
            trained[f"layers.{path}.lora_A.weight"].copy_(A)

    def attach(self, model: PreTrainedModel) -> None:
        self._originals = {}
        for path, layer in self.layers.items():
            path = path.replace(SEPARATOR, ".")
            self._originals[path] = model.get_submodule(path)
            model.set_submodule(path, layer)

    def detach(self, model: PreTrainedModel) -> None:
        for path, module in self._originals.items():
            model.set_submodule(path, module)
            if path in self._taken:
                self._taken[path].follow(module)
        self._originals = {}

    def target_paths(self) -> list[str]:
        return [path.replace(SEPARATOR, ".") for path in self.layers]

    def merge_refusal(self) -> str | None:
        from peft.tuners.lora.layer import Linear

        for path, layer in self.layers.items():
            path = path.replace(SEPARATOR, ".")
            base: Any = self._originals.get(path, layer)
            if is_quantized(base):
                return update_refusal(path, base)
            if not isinstance(layer, Linear) or (layer.lora_variant and not layer.use_dora[ADAPTER]):
                return super().merge_refusal()
            base = layer.get_base_layer()
            if reason := update_refusal(path, base):
                return reason
            if layer.lora_bias[ADAPTER] and base.bias is None:
                return f"{path} has no bias that the update's bias could be added to"
            if isinstance(base, LinearView) and layer.use_dora[ADAPTER]:
                return f"{path} is a view of a transposed layer, which the library's DoRA cannot write to"
        return None

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> None:
        if self.merge_refusal() is not None:
            super().merge(model)
        for path, layer in self.layers.items():
            library: Any = layer
            library.merge(adapter_names=[ADAPTER])
            path = path.replace(SEPARATOR, ".")
            if path in self._taken:
                self._taken[path].follow(self._originals[path])
                self._taken[path].give_back(self._originals[path])
        self.detach(model)
