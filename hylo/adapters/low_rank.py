"""Low-rank update of linear layers: LoRA, rank-stabilized scaling, DoRA magnitude.

    LoRA             y = W x + s B A x            s = alpha / r          arXiv 2106.09685, section 4.1
    rank-stabilized                               s = alpha / sqrt(r)    arXiv 2312.03732, equation 3
    DoRA             y = m (W + s B A) x / n      n = row norms of W + s B A, a constant in backward
                                                                         arXiv 2402.09353, equation 5 and section 4.3

A [r, in] is initialized Kaiming-uniform (as in PEFT) or orthogonal, B [out, r] to zero, m [out] to the row norms of W:
at step 0 the layer is exactly the base layer. (`magnitude_start: ones` is the published initialization, which starts at
a different function.) A position gate g(p), if set, multiplies the update (B A x) but not the norm n, so n remains one
number per row. The base layer's bias is neither scaled nor normalized.

Shapes: B batch, T tokens, I in features, O out features, R rank.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.component import SEPARATOR, BuildContext, Component, ComponentConfig, zeros
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.kernels.projection import Projection, Update
from hylo.models.architecture import frozen_weight, layer_shape, weight_OI
from hylo.models.targets import target_layers
from hylo.models.weights import is_quantized, update_refusal, uses_dequantized


class Scaling(Enum):
    """The factor s of the update."""

    standard = "alpha / rank"
    rank_stabilized = "alpha / sqrt(rank)"


class InitA(Enum):
    """Initialization of the matrix A."""

    kaiming = "Kaiming-uniform"
    orthogonal = "orthogonal rows"


class MagnitudeStart(Enum):
    """Initialization of DoRA's magnitude m."""

    row_norms = "at the row norms of W"
    ones = "at one: the layer starts as another function"


@register("component", "low_rank")
@dataclass(kw_only=True, slots=True)
class LowRankConfig(ComponentConfig):
    """Which layers get a low-rank update, and its form."""

    rank: int = bounded(8, ge=1)
    """Rank r of the update; at most min(in, out) of every target layer."""
    alpha: float = bounded(16.0, gt=0)
    """Numerator of the scaling s."""
    scaling: Scaling = Scaling.standard
    """standard: s = alpha / r; rank_stabilized: s = alpha / sqrt(r)."""
    magnitude: bool = False
    """Train DoRA's magnitude m, one number per output feature."""
    magnitude_start: MagnitudeStart = MagnitudeStart.row_norms
    """row_norms, or ones as published, which throws away what the base model has learned."""
    dropout: float = bounded(0.0, ge=0, lt=1)
    """Dropout probability on the input of A during training."""
    init_a: InitA = InitA.kaiming
    """kaiming (as in PEFT) or orthogonal (as published)."""
    target_modules: list[str] | None = None
    """Names (or path suffixes) of the layers to adapt; [all-linear]: every linear layer except the output head and
    those that score experts; None: query, key, value and output of attention; on GPT-2 c_attn and both c_proj."""

    @property
    def breaks(self) -> frozenset[str]:
        apart = self.magnitude and self.magnitude_start is MagnitudeStart.ones
        return frozenset({"identity_at_start"} if apart else ())

    @property
    def scale(self) -> float:
        """The factor s."""
        return self.alpha / (self.rank if self.scaling is Scaling.standard else math.sqrt(self.rank))

    def layers(self, context: BuildContext) -> dict[str, nn.Module]:
        """The target layers by path."""
        return target_layers(context.model, self.target_modules)

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        if self.magnitude_start is not MagnitudeStart.row_norms and not self.magnitude:
            start = self.magnitude_start.name
            yield problem(f"{key}.magnitude_start", start, "only with a magnitude", f"{key}.magnitude=true")
        try:
            layers = self.layers(context)
        except ValueError as error:
            yield problem(
                f"{key}.target_modules", self.target_modules, str(error), f"{key}.target_modules=[all-linear]"
            )
            return
        path, limit = min(((path, min(layer_shape(layer))) for path, layer in layers.items()), key=lambda item: item[1])
        if self.rank > limit:
            shape = "{} -> {}".format(*layer_shape(layers[path]))
            yield problem(
                f"{key}.rank",
                self.rank,
                f"1 to {limit}, the smaller side of {path} ({shape})",
                f"{key}.rank={min(8, limit)}",
            )

    def build(self, context: BuildContext) -> "LowRank":
        return LowRank(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        shapes = [layer_shape(layer) for layer in self.layers(context).values()]
        return sum(self.rank * (fan_in + fan_out) + self.magnitude * fan_out for fan_in, fan_out in shapes)


class LowRankLayer(nn.Module):
    """A linear layer (nn.Linear or GPT-2's Conv1D) with its low-rank update. `base` is frozen and shared."""

    weight_square_O: Tensor

    def __init__(self, base: nn.Module, config: LowRankConfig, A: nn.Parameter, B: nn.Parameter) -> None:
        super().__init__()
        self.base: Any = base
        self.scale = config.scale
        self.dropout = config.dropout
        self.A = A
        self.B = B
        self.gate: Callable[[Tensor], Tensor] | None = None
        """Returns g(p) for the rows of an input [..., I], broadcastable to [...]; set by a component that scales the
        update by position."""
        self.magnitude: nn.Parameter | None = None
        if config.magnitude:
            W_OI = weight_OI(base).detach().float()
            self.register_buffer("weight_square_O", W_OI.square().sum(dim=1), persistent=False)
            norms_O = self.weight_square_O.sqrt()
            ones = config.magnitude_start is MagnitudeStart.ones
            self.magnitude = nn.Parameter(torch.ones_like(norms_O) if ones else norms_O)

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTO = self.base(x_BTI)
        z_BTR = F.linear(F.dropout(x_BTI.to(self.A.dtype), self.dropout, self.training), self.A) * self.scale
        if self.gate is not None:
            z_BTR = z_BTR * self.gate(x_BTI).unsqueeze(-1).to(z_BTR.dtype)
        update_BTO = F.linear(z_BTR, self.B)
        if self.magnitude is None:
            return y_BTO + update_BTO.to(y_BTO.dtype)
        ratio_O = self.magnitude / self.row_norms()
        if self.base.bias is None:
            return (ratio_O * (y_BTO + update_BTO)).to(y_BTO.dtype)
        return (ratio_O * (y_BTO - self.base.bias + update_BTO) + self.base.bias).to(y_BTO.dtype)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: some models ask for its dtype. One that multiplies by it bypasses the update, which
        the audit finds, because no gradient reaches A and B."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias, which models ask for that multiply by the weight themselves."""
        return self.base.bias

    def projection(self, x: Tensor) -> Projection | None:
        """The layer and its input for the fused kernels; None if dropout makes the input of A differ from that of W, or
        the base layer computes with something else than its weight (quantized layers outside of `ModelConfig.load`)."""
        if (self.dropout and self.training) or (is_quantized(self.base) and not uses_dequantized(self.base)):
            return None
        gate = None if self.gate is None else self.gate(x)
        ratio = None if self.magnitude is None else self.magnitude / self.row_norms()
        update = Update(A=self.A, B=self.B, scale=self.scale, gate=gate, ratio=ratio)
        return Projection(weight=frozen_weight(self.base), bias=self.base.bias, update=update)

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """Row norms of W + s B A, [O], without building the matrix: |w|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B."""
        W_OI = weight_OI(self.base).to(self.A.dtype)
        cross_O = ((W_OI @ self.A.T) * self.B).sum(dim=1)
        update_square_O = ((self.B @ (self.A @ self.A.T)) * self.B).sum(dim=1)
        square_O = self.weight_square_O + 2 * self.scale * cross_O + self.scale**2 * update_square_O
        return square_O.clamp(min=torch.finfo(square_O.dtype).tiny).sqrt()

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight of a plain layer with the same output, [O, I], ignoring gate and dropout."""
        W_OI = weight_OI(self.base) + self.scale * (self.B @ self.A)
        return W_OI if self.magnitude is None else (self.magnitude / self.row_norms()).unsqueeze(-1) * W_OI


class LowRank(Component):
    """Low-rank updates of all target layers of a model.

    Merged: W' = m / n (W + s B A), or W + s B A without a magnitude; a position gate refuses merging on its own.
    """

    replaces_modules: ClassVar[bool] = True

    def __init__(self, config: LowRankConfig, context: BuildContext) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for path, base in config.layers(context).items():
            fan_in, fan_out = layer_shape(base)
            A = context.parameter(f"low_rank.{path}.A", (config.rank, fan_in), _init_a(config.init_a))
            B = context.parameter(f"low_rank.{path}.B", (fan_out, config.rank), zeros)
            self.layers[path.replace(".", SEPARATOR)] = LowRankLayer(base, config, A, B)

    def attach(self, model: PreTrainedModel) -> None:
        for path, layer in self.layers.items():
            model.set_submodule(path.replace(SEPARATOR, "."), layer)

    def detach(self, model: PreTrainedModel) -> None:
        for path, layer in self.layers.items():
            assert isinstance(layer, LowRankLayer)
            model.set_submodule(path.replace(SEPARATOR, "."), layer.base)

    def target_paths(self) -> list[str]:
        return [path.replace(SEPARATOR, ".") for path in self.layers]

    def merge_refusal(self) -> str | None:
        for path, layer in self.layers.items():
            assert isinstance(layer, LowRankLayer)
            if reason := update_refusal(path.replace(SEPARATOR, "."), layer.base):
                return reason
        return None

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> None:
        for layer in self.layers.values():
            assert isinstance(layer, LowRankLayer)
            weight_OI(layer.base).copy_(layer.merged_weight())
        self.detach(model)


def _init_a(init: InitA) -> Callable[[Tensor, torch.Generator], object]:
    if init is InitA.orthogonal:
        return lambda tensor, generator: nn.init.orthogonal_(tensor, generator=generator)
    return lambda tensor, generator: nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
