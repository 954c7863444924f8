"""Linear layers with a frozen weight and an optional low-rank update, with hand-written forward and backward.

    y = ratio * (W x + B (s g (A x))) + bias

g: one factor per token (a position gate); ratio: one factor per output feature (a magnitude over a norm); both are
optional, and so is the whole update. Layers that share their input run as one function: the input is saved once, A x of
all layers is one product, and so is the part of the input's gradient that goes through A.

Saved for the backward pass: x, A x (R columns) and, if there is a ratio, the output before it. The update is added to
the output in place, g is applied in rank space, and no gradient of a frozen tensor is computed. Own design; the
equations are those of hylo/adapters/low_rank.py, whose plain formulas are the reference in the tests.

Shapes: N rows (batch times tokens), I in features, O out features, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hylo.core.devices import compute_dtype
from hylo.kernels.product import add_product, product, product_added, summed_product
from hylo.models.weights import PackedWeight


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """The trained part of a projection."""

    A: Tensor
    """[R, I]"""
    B: Tensor
    """[O, R]"""
    scale: float
    """s"""
    gate: Tensor | None = None
    """g of every token, broadcastable to the input's shape without its last dimension; None: 1."""
    ratio: Tensor | None = None
    """[O]; None: 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """A linear layer as input to the fused kernels."""

    weight: Tensor | PackedWeight
    """[O, I], frozen; may be a transposed view."""
    bias: Tensor | None = None
    """[O], frozen."""
    update: Update | None = None


def project(projections: Sequence[Projection], x: Tensor) -> tuple[Tensor, ...]:
    """Outputs [..., O] of layers that share the input x [..., I], differentiable in x and the updates' tensors."""
    x = x.to(compute_dtype(x))
    parts = _Projected.apply([static(p) for p in projections], x.flatten(0, -2), *trained(projections, x))
    return tuple(part.unflatten(0, x.shape[:-1]) for part in parts)


TRAINED = 4
"""Number of tensors that `trained` returns per projection: A, B, gate, ratio."""


def trained(projections: Sequence[Projection], x: Tensor) -> list[Tensor | None]:
    """The inputs of an autograd function besides x [..., I]: A, B, gate [N, 1] and ratio of every projection."""
    tensors: list[Tensor | None] = []
    for projection in projections:
        update = projection.update
        if update is None:
            tensors += [None] * TRAINED
            continue
        gate = None if update.gate is None else update.gate.expand(x.shape[:-1]).reshape(-1, 1)
        tensors += [update.A, update.B, gate, update.ratio]
    return tensors


@dataclass(frozen=True, slots=True)
class Static:
    """The part of a projection that gets no gradient."""

    weight: Tensor | PackedWeight
    bias: Tensor | None
    scale: float


def static(projection: Projection) -> Static:
    """The frozen part of a projection."""
    scale = 1.0 if projection.update is None else projection.update.scale
    return Static(projection.weight, projection.bias, scale)


class Siblings:
    """The arithmetic of projections that share their input, on rows and without autograd.

    Args:
        statics: the frozen parts.
        tensors: A, B, gate [N, 1] and ratio of each projection in turn; None for missing ones.
        dtype: dtype of the products.
    """

    def __init__(self, statics: Sequence[Static], tensors: Sequence[Tensor | None], dtype: torch.dtype) -> None:
        self.statics = statics
        self.dtype = dtype
        self.parts = [tensors[first : first + TRAINED] for first in range(0, len(tensors), TRAINED)]
        factors = [part[0].detach().to(dtype) for part in self.parts if part[0] is not None]
        self.A = None if not factors else factors[0] if len(factors) == 1 else torch.cat(factors)
        """[sum of ranks, I]"""

    def forward(self, x_NI: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Outputs before the ratio (with bias if there is no ratio), and A x of all projections, [N, sum of ranks]."""
        z_NR = None if self.A is None else product(x_NI, self.A)
        outputs = []
        for index, static in enumerate(self.statics):
            _, B, _, ratio = self.parts[index]
            bias = None if static.bias is None or ratio is not None else static.bias.to(self.dtype)
            raw_NO = product(x_NI, static.weight.to(self.dtype), bias)
            if B is not None and z_NR is not None:
                add_product(raw_NO, self._scaled(index, z_NR), B.detach().to(self.dtype))
            outputs.append(raw_NO)
        return outputs, z_NR

    def finish(self, index: int, raw_NO: Tensor) -> Tensor:
        """The final output of a projection from its output of `forward`."""
        ratio, bias = self.parts[index][3], self.statics[index].bias
        if ratio is None:
            return raw_NO
        y_NO = (raw_NO * ratio).to(self.dtype)
        return y_NO if bias is None else y_NO.add_(bias)

    def backward(
        self,
        x_NI: Tensor,
        z_NR: Tensor | None,
        raws: Sequence[Tensor | None],
        gradients: Sequence[Tensor],
        *,
        needs_x: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of x (None if not needed) and of `tensors`.

        Args:
            x_NI: the input.
            z_NR: A x of all projections, from `forward`.
            raws: outputs of `forward` for the projections that have a ratio.
            gradients: the outputs' gradients, [N, O] each.
            needs_x: whether to compute the gradient of x.
        """
        dx_NI, d_tensors, dz_parts = None, [], []
        for index, dy_NO in enumerate(gradients):
            A, B, gate, ratio = self.parts[index]
            d_ratio = d_gate = dB = None
            if ratio is not None:
                raw_NO = raws[index]
                assert raw_NO is not None
                d_ratio = torch.linalg.vecdot(dy_NO, raw_NO, dim=0).to(ratio.dtype)
                dy_NO = (dy_NO * ratio).to(self.dtype)
            if needs_x:
                back_IO = self.statics[index].weight.to(self.dtype).T
                dx_NI = product(dy_NO, back_IO) if dx_NI is None else product_added(dy_NO, back_IO, dx_NI)
            if A is not None and B is not None and z_NR is not None:
                dz_NR = product(dy_NO, B.detach().to(self.dtype).T.contiguous())
                dB = summed_product(self._scaled(index, z_NR), dy_NO).T.to(B.dtype)
                if gate is not None:
                    own_NR = z_NR[:, self._columns(index)]
                    d_gate = torch.linalg.vecdot(dz_NR, own_NR).unsqueeze(-1).mul_(self.statics[index].scale)
                    dz_NR.mul_(gate)
                dz_parts.append(dz_NR.mul_(self.statics[index].scale))
            d_tensors += [None, dB, d_gate, d_ratio]
        if dz_parts:
            dz_NR = dz_parts[0] if len(dz_parts) == 1 else torch.cat(dz_parts, dim=1)
            dA = summed_product(dz_NR, x_NI)
            for index, (A, *_) in enumerate(self.parts):
                if A is not None:
                    d_tensors[index * TRAINED] = dA[self._columns(index)].to(A.dtype)
            if dx_NI is not None and self.A is not None:
                add_product(dx_NI, dz_NR, self.A.T)
        return dx_NI, d_tensors

    def _columns(self, index: int) -> slice:
        """Columns of a projection's rank space within the concatenated one."""
        ranks = [0 if part[0] is None else len(part[0]) for part in self.parts]
        return slice(sum(ranks[:index]), sum(ranks[: index + 1]))

    def _scaled(self, index: int, z_NR: Tensor) -> Tensor:
        """s g (A x) of one projection."""
        gate = self.parts[index][2]
        scaled = z_NR[:, self._columns(index)] * self.statics[index].scale
        return scaled if gate is None else scaled.mul_(gate)


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, statics: list[Static], x_NI: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        with torch.autocast(x_NI.device.type, enabled=False):
            siblings = Siblings(statics, tensors, x_NI.dtype)
            raws, z_NR = siblings.forward(x_NI)
            outputs = tuple(siblings.finish(index, raw) for index, raw in enumerate(raws))
        kept = [None if ratio is None else raw for raw, (*_, ratio) in zip(raws, siblings.parts, strict=True)]
        ctx.statics = statics
        ctx.save_for_backward(x_NI, z_NR, *kept, *tensors)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, z_NR, *rest = ctx.saved_tensors
        count = len(ctx.statics)
        siblings = Siblings(ctx.statics, rest[count:], x_NI.dtype)
        dense = [gradient.contiguous() for gradient in gradients]
        dx, d_tensors = siblings.backward(x_NI, z_NR, rest[:count], dense, needs_x=ctx.needs_input_grad[1])
        return None, dx, *d_tensors
