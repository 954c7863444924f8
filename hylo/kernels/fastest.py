"""Chooses the kernels of a model's layers and of its loss by measurement: fused, partly fused, compiled, Liger's or
reference.

One decoder layer with the adapters in place, forward and backward on a batch of the run's shape, stands for all; the
loss is measured on as many tokens as one tile of the fused kernel holds. See hylo/kernels/measured.py. Own design.

Shapes: B batch, T tokens, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.core.cache import text_hash
from hylo.core.devices import say
from hylo.core.errors import first_line
from hylo.kernels import liger
from hylo.kernels.compiled import compiled_layers
from hylo.kernels.forwards import KINDS, LIGER_KINDS, FusedForwards
from hylo.kernels.head import LossFunction, OutputHead, losses_from_logits
from hylo.kernels.linear_cross_entropy import linear_cross_entropy, tile_tokens
from hylo.kernels.measured import Choices
from hylo.kernels.product import has_instructions
from hylo.models.architecture import decoder_layers, hidden_size

FUSED, LIGER, REFERENCE, COMPILED = "fused", "Liger's", "reference", "compiled"
LAYER_WAYS = {
    FUSED: KINDS,
    "fused but norms": ("ffn", "linear"),
    "fused but FFN": ("norm", "linear"),
    LIGER: LIGER_KINDS,
    REFERENCE: (),
    COMPILED: (),
}
"""Which kinds of modules are fused, by the name of the way. The caller compiles the layers."""
LOSSES: dict[str, LossFunction] = {
    FUSED: linear_cross_entropy,
    REFERENCE: losses_from_logits,
    LIGER: liger.linear_cross_entropy,
}
"""What computes the losses, by the name of the way."""
ENOUGH = 2**30
"""Multiplications of a layer, forward, below which nothing is measured: a few hundredths of a second on a CPU."""
MOST = 2**33
"""Multiplications of a layer, forward, that are measured on a CPU: about a second on one core. A larger batch is
measured in part."""
LEAST = 16
"""Tokens of a window below which a layer would compute something else than in a run."""
ROUNDS = 3
"""Measurements of each way: a layer takes long enough for few to do."""


def fastest_layers(
    base: PreTrainedModel, fused: FusedForwards, ids: Tensor, choices: Choices, *, compilable: bool
) -> str:
    """The fastest way to compute the layers of a model with its components attached.

    Fused, without a measurement, for a model whose layers cannot be called one by one. Leaves the model as it was, but
    for its fused forwards, which the caller then installs for the way that it found.

    Args:
        fused: the model's fused forwards, attached.
        ids: [B, T], a batch of the run's shape.
        compilable: whether torch.compile is a candidate.
    """
    modes = {module: module.training for module in base.modules()}
    try:
        layer = decoder_layers(base)[0]
        weights = sum(parameter.numel() for parameter in layer.parameters())
        if ids.numel() * weights < ENOUGH:
            return FUSED
        ids = ids if ids.device.type != "cpu" else part_of(ids, MOST // weights)
        base.train()
        with torch.random.fork_rng(), compiled_layers(base) if compilable else nullcontext():
            return _fastest(base, layer, fused, ids, choices)
    except Exception as error:  # noqa: BLE001  an odd model runs as it would without this
        say(f"kernels: the layers are fused, their alternatives were not measured: {first_line(error)}")
        return FUSED
    finally:
        for module, training in modes.items():
            module.training = training


def _fastest(base: PreTrainedModel, layer: Any, fused: FusedForwards, ids: Tensor, choices: Choices) -> str:
    """The fastest way for one layer, which is compiled where that is a candidate."""
    work = f"layer {_described(layer)}, {'x'.join(map(str, ids.shape))}, {_arithmetic(base)}"
    trained = [parameter for parameter in base.parameters() if parameter.requires_grad]
    compiled, layer._compiled_call_impl = layer._compiled_call_impl, None
    args, kwargs = _inputs(base, layer, ids)
    possible = {
        COMPILED: bool(compiled),
        LIGER: bool(fused.kinds & set(LIGER_KINDS)),
        REFERENCE: has_instructions(_arithmetic(base), ids.device),
    }
    names = [name for name in LAYER_WAYS if possible.get(name, True)]

    def before(name: str) -> None:
        fuse(fused, name)
        layer._compiled_call_impl = compiled if name == COMPILED else None

    passes = dict.fromkeys(names, lambda: _pass(layer, args, kwargs, trained))
    return choices.fastest(work, passes, before=before, rounds=ROUNDS)


def fastest_loss(base: PreTrainedModel, head: OutputHead, ids: Tensor, choices: Choices) -> str:
    """The fastest way to compute the loss of a model: without logits (fused, Liger's) or from them (reference)."""
    if head.needs_logits or ids.numel() * hidden_size(base) * head.words < ENOUGH:
        return FUSED
    possible = {LIGER: liger.usable(ids.device), REFERENCE: has_instructions(_arithmetic(base), ids.device)}
    names = [name for name in LOSSES if possible.get(name, True)]
    if len(names) == 1:
        return FUSED
    tokens = min(ids.numel(), tile_tokens(ids.device))
    work = f"loss {tokens}x{hidden_size(base)} by {head.words}, {_arithmetic(base)}"
    targets = ids.reshape(1, -1)[:, :tokens]
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(1, tokens, hidden_size(base), generator=generator).to(ids.device, base.dtype).requires_grad_()

    def one_pass(name: str) -> None:
        _backward(head.losses_of(h, targets, LOSSES[name]), [h])

    return choices.fastest(work, {name: partial(one_pass, name) for name in names}, rounds=ROUNDS)


def part_of(ids: Tensor, most: int) -> Tensor:
    """The first windows of ids [B, T] that hold at most so many tokens, or the beginning of the first one."""
    length = max(LEAST, min(ids.shape[1], most))
    return ids[: max(1, most // ids.shape[1]), :length]


def fuse(fused: FusedForwards, name: str) -> None:
    """Install the fused forwards of a way in place of those that are there."""
    fused.detach()
    fused.attach(LAYER_WAYS[name])


def _pass(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], trained: list[nn.Parameter]) -> None:
    """Forward and backward through a layer, without a trace in any tensor's gradient."""
    h = args[0].detach().requires_grad_()
    output = layer(h, *args[1:], **kwargs)
    _backward(output if isinstance(output, Tensor) else output[0], [h, *trained])


def _backward(y: Tensor, of: list[Tensor]) -> None:
    """Gradients of the sum of y, which are dropped; outside of autocast, as in a training step."""
    with torch.autocast(y.device.type, enabled=False):
        # What the layers of a pass share, such as bucket weights, has a graph that is needed again.
        torch.autograd.grad(y.sum(), of, allow_unused=True, retain_graph=True)


class _Reached(Exception):
    """The first layer has its inputs: the rest of the pass is not needed."""


def _inputs(base: PreTrainedModel, layer: nn.Module, ids: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer is called with in a pass over ids, the hidden states first."""
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with _stopping_at(layer, caught):
        base(input_ids=ids, use_cache=False)
    if not caught:
        raise ValueError(f"{type(base).__name__} does not call its first layer")
    args, kwargs = caught[0]
    if not args:
        kwargs = dict(kwargs)
        args = (kwargs.pop("hidden_states"),)
    return args, kwargs


@contextmanager
def _stopping_at(layer: nn.Module, caught: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[None]:
    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Reached

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


def _described(layer: nn.Module) -> str:
    """A layer's class, and a hash of its modules and tensors with the adapters in place."""
    parts = [f"{name} {type(module).__name__}" for name, module in layer.named_modules()]
    parts += [f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in layer.named_parameters()]
    return f"{type(layer).__name__} {text_hash(*parts)[:8]}"


def _arithmetic(base: PreTrainedModel) -> torch.dtype:
    """The dtype of a model's products."""
    device = base.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.dtype
