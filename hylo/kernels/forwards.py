"""Selects the modules of a model that get a fused forward, and installs and removes it.

A module is recognized by its structure, and one of each class is first tried on random input: if its own forward and
the fused one differ, or either fails (its own may want more than one input), the class keeps its own. Linear layers are
looked up at every call, so adapters that replace them are covered: anything that describes itself by `projection()`,
and plain frozen layers. For any other layer, a layer with hooks, or a trained weight, the module's own forward runs.

- Norms: hylo/kernels/rms_norm.py.
- FFNs with gate_proj, up_proj and down_proj: hylo/kernels/gated_ffn.py.
- q_proj, k_proj and v_proj of one module: the first call computes all three, the others take their results.
- All other linear layers of the decoder: individually, by hylo/kernels/projection.py.
- On a GPU, norms and FFNs also by hylo/kernels/liger.py, if a measurement prefers it.

The output head: hylo/kernels/head.py.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from types import MethodType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.kernels import liger
from hylo.kernels.gated_ffn import gated_ffn
from hylo.kernels.product import widened
from hylo.kernels.projection import Projection, project
from hylo.kernels.recognized import epsilon, ffn_like, norm_like, own, same
from hylo.kernels.rms_norm import rms_norm
from hylo.models.architecture import decoder, frozen_weight
from hylo.models.weights import uses_dequantized

KINDS = ("norm", "ffn", "linear")
"""Kinds of modules that get a fused forward."""
LIGER_KINDS = ("norm by Liger", "ffn by Liger", "linear")
"""The same with the kernels of another library where it has some, on a GPU."""
_SIBLINGS = (("q_proj", "k_proj", "v_proj"),)
_GROUP = "_hylo_siblings"
"""Attribute of layers that share their input with others."""


@runtime_checkable
class Projects(Protocol):
    """A module that computes what a `Projection` describes."""

    def projection(self, x: Tensor) -> Projection | None:
        """The description for input x [..., I] in the current pass; None: this is not such a projection."""
        ...


def projection_of(layer: nn.Module, x: Tensor) -> Projection | None:
    """A linear layer, and its input x [..., I], for the fused kernels; None if its own forward has to run."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    if isinstance(layer, Projects):
        return layer.projection(x)
    if not _plain(layer):
        return None
    bias: Any = layer.bias
    if layer.weight.requires_grad or (bias is not None and bias.requires_grad):
        return None
    return Projection(weight=frozen_weight(layer), bias=bias)


def _plain(layer: nn.Module) -> bool:
    """Whether a layer is linear and computes with its weight, or with its dequantized weight."""
    return type(layer) in (nn.Linear, Conv1D) or uses_dequantized(layer)


class FusedForwards:
    """Fused forwards of a model's modules.

    Constructed on the plain, frozen model; attached once the adapters are in place.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # On the meta device there are no values to try a class on.
        modules = [] if model.device.type == "meta" else list(decoder(model).modules())
        tried = _FUSED + (_BY_LIGER if liger.usable(model.device) else ())
        found: dict[tuple[str, nn.Module], Callable[..., Tensor]] = {}
        for kind, like, fused in tried:
            left = [module for module in modules if (kind, module) not in found]
            found |= {(kind, module): fused for module in same(left, like, fused)}
        self._forwards = [(kind, module, fused) for (kind, module), fused in found.items()]
        self._changed: dict[nn.Module, None] = {}
        self.kinds = {kind for kind, _, _ in self._forwards}
        """Kinds of modules that the model has, without the linear layers."""

    def attach(self, kinds: Collection[str] = KINDS) -> None:
        """Install the fused forwards of modules of these kinds."""
        for kind, module, fused in self._forwards:
            if kind in kinds:
                self._give(module, fused)
        if "linear" not in kinds:
            return
        for layer in _linear_layers(decoder(self._model)):
            self._give(layer, _fused_linear)
        for module in decoder(self._model).modules():
            for names in _SIBLINGS:
                layers = [each for name in names if (each := getattr(module, name, None)) in self._changed]
                if len(layers) == len(names):
                    group = SharedInput(layers)
                    for layer in layers:
                        vars(layer)[_GROUP] = group

    def detach(self) -> None:
        """Restore the class's forward on every module."""
        for module in self._changed:
            del vars(module)["forward"]
            vars(module).pop(_GROUP, None)
        self._changed = {}

    def _give(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        # A bound method, so that a copy of the model calls it on its own modules.
        vars(module)["forward"] = MethodType(forward, module)
        self._changed[module] = None


class SharedInput:
    """Layers that a module calls one after another on the same input."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self._input: Tensor | None = None
        self._outputs: dict[nn.Module, Tensor] = {}

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """The layer's output for x, computed for all layers at once; None if one of them cannot be fused."""
        if x is not self._input or layer not in self._outputs:
            projections = [found for each in self.layers if (found := projection_of(each, x)) is not None]
            if len(projections) < len(self.layers):
                return None
            self._input = x
            self._outputs = dict(zip(self.layers, project(projections, x), strict=True))
        output = self._outputs.pop(layer)
        if not self._outputs:
            self._input = None
        return output


def _fused_norm(self: Any, x: Tensor, *gates: Tensor | None) -> Tensor:
    return own(self, x, *gates) if _needs_own(self, gates) else rms_norm(x, self.weight, epsilon(self))


def _fused_late_norm(self: Any, x: Tensor, *gates: Tensor | None) -> Tensor:
    """For norms that scale before they round."""
    if _needs_own(self, gates):
        return own(self, x, *gates)
    return rms_norm(x, self.weight, epsilon(self), rounds_last=True)


def _fused_shifted_norm(self: Any, x: Tensor, *gates: Tensor | None) -> Tensor:
    """For norms that store the scale as its difference from 1, and scale before they round (Gemma)."""
    if _needs_own(self, gates):
        return own(self, x, *gates)
    return rms_norm(x, 1 + widened(self.weight), epsilon(self), rounds_last=True)


def _needs_own(norm: Any, gates: Sequence[Tensor | None]) -> bool:
    """Whether a norm is trained, or given a gate (Mamba 2's take one or none)."""
    return norm.weight.requires_grad or any(gate is not None for gate in gates)


def _fused_ffn(self: Any, x: Tensor) -> Tensor:
    gate, up, down = (projection_of(layer, x) for layer in (self.gate_proj, self.up_proj, self.down_proj))
    if gate is None or up is None or down is None:
        return own(self, x)
    return gated_ffn(gate, up, down, self.act_fn, x)


def _liger_norm(self: Any, x: Tensor, *gates: Tensor | None) -> Tensor:
    return _norm_by_liger(self, x, gates, shift=0.0)


def _liger_shifted_norm(self: Any, x: Tensor, *gates: Tensor | None) -> Tensor:
    return _norm_by_liger(self, x, gates, shift=1.0)


def _norm_by_liger(norm: Any, x: Tensor, gates: Sequence[Tensor | None], *, shift: float) -> Tensor:
    if _needs_own(norm, gates) or x.dtype != norm.weight.dtype:
        return own(norm, x, *gates)
    return liger.rms_norm(x, norm.weight, epsilon(norm), shift=shift)


def _liger_ffn(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(liger.gated(self.gate_proj(x), self.up_proj(x), self.act_fn))


_FUSED = (
    ("norm", norm_like, _fused_norm),
    ("norm", norm_like, _fused_late_norm),
    ("norm", norm_like, _fused_shifted_norm),
    ("ffn", ffn_like, _fused_ffn),
)
_BY_LIGER = (
    (LIGER_KINDS[0], norm_like, _liger_norm),
    (LIGER_KINDS[0], norm_like, _liger_shifted_norm),
    (LIGER_KINDS[1], ffn_like, _liger_ffn),
)


def _fused_linear(self: nn.Module, x: Tensor) -> Tensor:
    group = vars(self).get(_GROUP)
    if group is not None and (output := group.output(self, x)) is not None:
        return output
    projection = projection_of(self, x)
    return own(self, x) if projection is None else project([projection], x)[0]


def _linear_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost linear layers: a layer's adapted replacement, not the layer wrapped inside it."""
    for child in module.children():
        if isinstance(child, Projects) or _plain(child):
            yield child
        else:
            yield from _linear_layers(child)
