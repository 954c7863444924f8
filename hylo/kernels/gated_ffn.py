"""Gated feed-forward network as one function: y = down(act(gate(x)) * up(x)).

Saved for the backward pass: x and the outputs of gate and up. The activation and the product are recomputed from them,
and as few tensors of the inner width as possible are alive at once. Own design.

Shapes: N rows, D hidden size, F inner width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hylo.core.devices import compute_dtype
from hylo.kernels.projection import TRAINED, Projection, Siblings, Static, static, trained

Activation = Callable[[Tensor], Tensor]


def gated_ffn(gate: Projection, up: Projection, down: Projection, activation: Activation, x: Tensor) -> Tensor:
    """y [..., D] for x [..., D]; `activation` is elementwise and has no parameters."""
    x = x.to(compute_dtype(x))
    projections = [gate, up, down]
    rows_ND, tensors = x.flatten(0, -2), trained(projections, x)
    y: Any = _GatedFFN.apply([static(each) for each in projections], activation, rows_ND, *tensors)
    return y.unflatten(0, x.shape[:-1])


class _GatedFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, statics: list[Static], activation: Activation, x_ND: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        with torch.autocast(x_ND.device.type, enabled=False):
            inner, down = _parts(statics, tensors, x_ND.dtype)
            (gate_raw, up_raw), z_inner = inner.forward(x_ND)
            g_NF = inner.finish(0, gate_raw)
            s_NF = activation(g_NF)
            # Overwrite the activation, unless it returned its input, which is saved for the backward pass.
            a_NF = torch.mul(s_NF, inner.finish(1, up_raw), out=None if s_NF is g_NF else s_NF)
            (raw_ND,), z_down = down.forward(a_NF)
            y_ND = down.finish(0, raw_ND)
        ctx.statics, ctx.activation = statics, activation
        has_ratio = down.parts[0][3] is not None
        ctx.save_for_backward(x_ND, gate_raw, up_raw, z_inner, z_down, raw_ND if has_ratio else None, *tensors)
        return y_ND

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, gate_raw, up_raw, z_inner, z_down, raw_ND, *tensors = ctx.saved_tensors
        inner, down = _parts(ctx.statics, tensors, x_ND.dtype)
        g_NF, up_NF = inner.finish(0, gate_raw).detach(), inner.finish(1, up_raw)
        with torch.enable_grad():
            g_NF.requires_grad_()
            s_NF = ctx.activation(g_NF)
        a_NF = s_NF.detach() * up_NF
        ds_NF, d_down = down.backward(a_NF, z_down, [raw_ND], [dy_ND.contiguous()], needs_x=True)
        assert ds_NF is not None
        d_up = torch.mul(s_NF.detach(), ds_NF, out=a_NF)
        (d_gate,) = torch.autograd.grad(s_NF, g_NF, ds_NF.mul_(up_NF))
        dx, d_inner = inner.backward(x_ND, z_inner, [gate_raw, up_raw], [d_gate, d_up], needs_x=ctx.needs_input_grad[2])
        return None, None, dx, *d_inner, *d_down


def _parts(statics: list[Static], tensors: Any, dtype: torch.dtype) -> tuple[Siblings, Siblings]:
    """Gate and up, which share their input, and down."""
    return Siblings(statics[:2], tensors[: 2 * TRAINED], dtype), Siblings(statics[2:], tensors[2 * TRAINED :], dtype)
