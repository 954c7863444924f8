"""The linear layers that adapters target, by name, and the share of a model that they are.

By default those of self-attention: query, key, value and output, under whatever names the architecture has them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.core.devices import trial
from hylo.models.architecture import decoder, decoder_layers, layer_shape
from hylo.models.weights import is_quantized, scalars

ALL_LINEAR = "all-linear"
"""Stands for every linear layer of the decoder except the output head, and those that score experts or branches."""

_PUBLISHED = {"gpt2": ["c_attn", "c_proj"]}
"""Where the published methods adapt more than attention: c_proj is also the name of a layer of the FFN."""
_USUAL = ["q_proj", "k_proj", "v_proj", "o_proj"]
_ASIDE = ("encoder_attn", "crossattention", "cross_attn", "indexer", "compressor")
"""Parts of attention that the loss of a short text does not reach: to an encoder, choice and pooling of keys."""
_SCORES = ("gate", "router")
"""Parts of the names of layers that score experts or branches."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def default_targets(model: PreTrainedModel) -> list[str]:
    """Names of the layers that the published methods adapt: query, key, value and output projections of attention.

    q_proj, k_proj, v_proj and o_proj where a model has these; otherwise all linear layers inside its attention modules,
    with the attention's name in front where a layer elsewhere has the same. On GPT-2, as published, the fused
    projection and both c_proj.

    Raises:
        ValueError: the model has no attention modules with linear layers.
    """
    if published := _PUBLISHED.get(model.config.model_type):
        return published
    everything = linear_layers(model, aside=True)
    linear = linear_layers(model)
    if all(any(_matches(path, name) for path in linear) for name in _USUAL):
        return list(_USUAL)
    inside = {path for path, layer in linear.items() if _in_attention(model, path) and not _scores(model, path, layer)}
    if names := {path.rpartition(".")[2]: path for path in inside}:
        elsewhere = {path.rpartition(".")[2] for path in everything.keys() - inside}
        chosen = {".".join(path.split(".")[-2:]) if name in elsewhere else name for name, path in names.items()}
        return [target for target in dict.fromkeys(_endings(linear)) if target in chosen]
    raise ValueError(f"{type(model).__name__} has no default targets; its linear layers are {_names(linear)}")


def target_layers(model: PreTrainedModel, targets: list[str] | None) -> dict[str, nn.Module]:
    """Linear layers (nn.Linear or Conv1D) whose path equals or ends with one of the targets, by path.

    Args:
        targets: names or path endings; [all-linear]: see `ALL_LINEAR`; None: the default targets.

    Raises:
        ValueError: a target matches no linear layer, or there are no targets; the message lists the names that match.
    """
    if targets == [ALL_LINEAR]:
        return {path: layer for path, layer in linear_layers(model).items() if not _scores(model, path, layer)}
    linear = linear_layers(model, aside=targets is not None)
    targets = default_targets(model) if targets is None else targets
    for target in targets or [""]:
        if not any(_matches(path, target) for path in linear):
            raise ValueError(f"{target!r} matches no linear layer of {type(model).__name__}; it has {_names(linear)}")
    return {path: module for path, module in linear.items() if any(_matches(path, target) for target in targets)}


def linear_layers(model: PreTrainedModel, *, aside: bool = False) -> dict[str, nn.Module]:
    """All linear layers of a decoder, except the output head, by path; those that `_ASIDE` names only if `aside`.

    Not classes that compute something else than their base class (in groups, with quantized inputs).
    """
    head, stack = model.get_output_embeddings(), decoder(model)
    prefix = next(path for path, module in model.named_modules() if module is stack)
    return {
        path: module
        for path, module in model.named_modules()
        if module is not head
        and path.startswith(f"{prefix}." if prefix else "")
        and (type(module) is Conv1D or is_quantized(module) or _computes_linear(type(module)))
        and (aside or not any(part in _ASIDE for part in path.split(".")))
    }


@dataclass(frozen=True)
class Coverage:
    """The share of a model's layers and weights that some target layers are."""

    layers: int
    """Number of decoder layers."""
    missed: tuple[str, ...]
    """Class of each decoder layer without a target."""
    weight_share: float
    """Share of the decoder layers' weights that the targets hold."""
    expert_share: float
    """Share of the decoder layers' weights that are in experts; 0 if a target is part of one."""

    @property
    def partial(self) -> bool:
        """Whether a layer has no target, or no expert."""
        return bool(self.missed) or self.expert_share > 0

    def __str__(self) -> str:
        reached = self.layers - len(self.missed)
        text = f"{reached} of {self.layers} layers, {100 * self.weight_share:.3g} % of their weights"
        if self.missed:
            text += f"; nothing in {len(self.missed)} of class {', '.join(sorted(set(self.missed)))}"
        if self.expert_share:
            text += f"; nothing in experts, which hold {100 * self.expert_share:.3g} %"
        return text


def coverage(model: PreTrainedModel, targets: Iterable[nn.Module]) -> Coverage | None:
    """What share of the model these layers are; None: its decoder layers are not found.

    Call before anything is attached.
    """
    chosen = {id(layer) for layer in targets}
    try:
        layers = decoder_layers(model)
    except ValueError:
        return None
    missed = [type(layer).__name__ for layer in layers if not any(id(module) in chosen for module in layer.modules())]
    weights = sum(scalars(p) for layer in layers for p in layer.parameters())
    held = sum(scalars(p) for layer in layers for m in layer.modules() if id(m) in chosen for p in m.parameters())
    experts = {module for layer in layers for name, module in layer.named_modules() if name.endswith("experts")}
    reached = any(id(module) in chosen for each in experts for module in each.modules())
    in_experts = 0 if reached else sum(scalars(p) for each in experts for p in each.parameters())
    return Coverage(len(layers), tuple(missed), held / weights, in_experts / weights)


@cache
def _computes_linear(cls: type[nn.Module]) -> bool:
    """Whether a class computes W x + b: nn.Linear, and those derived from it that only write it differently (Falcon).

    Others work in groups, say, or round their inputs.
    """
    if not issubclass(cls, nn.Linear) or cls.forward is nn.Linear.forward:
        return issubclass(cls, nn.Linear)
    with trial(), torch.random.fork_rng(devices=[]):
        layer = cls(3, 5)
        x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
        return torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-6, atol=1e-6)
    return False


def _endings(paths: Iterable[str]) -> Iterator[str]:
    """Of each path the last part, and the last two."""
    for path in paths:
        yield path.rpartition(".")[2]
        yield ".".join(path.split(".")[-2:])


def _in_attention(model: PreTrainedModel, path: str) -> bool:
    """Whether a layer is part of an attention module."""
    parts = path.split(".")
    around = (model.get_submodule(".".join(parts[:count])) for count in range(1, len(parts)))
    return any(
        "attention" in type(module).__name__.lower() for module in around if not isinstance(module, PreTrainedModel)
    )


def _scores(model: PreTrainedModel, path: str, layer: nn.Module) -> bool:
    """Whether a layer scores experts or branches instead of making features."""
    config = model.config.get_text_config()
    sizes = {1} | {size for name in _EXPERTS if isinstance(size := getattr(config, name, None), int)}
    return layer_shape(layer)[1] in sizes and any(part in ".".join(path.split(".")[-2:]) for part in _SCORES)


def _names(linear: Mapping[str, nn.Module]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in linear}))


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")
