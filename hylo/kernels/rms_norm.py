"""Root-mean-square norm with a frozen scale: y = w x / sqrt(mean(x^2) + eps) (arXiv 1910.07467, equation 4).

Saved for the backward pass: x and one number per row. Computed in float32, or in the dtype of x if that is wider. In
narrow types models differ in what they round: Llama rounds before it scales, Gemma, whose 1 + w needs the digits,
afterwards.

Shapes: N rows, D hidden size.
"""

from typing import Any

import torch
from torch import Tensor

from hylo.kernels.product import widened


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, *, rounds_last: bool = False) -> Tensor:
    """y [..., D] for x [..., D], differentiable in x only.

    Args:
        rounds_last: scale before rounding to the dtype of x; else round first, and y has the promoted dtype of x and
            the scale.
    """
    y: Any = _RMSNorm.apply(x.flatten(0, -2), weight_D.detach(), eps, rounds_last)
    return y.view(x.shape)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float, rounds_last: bool) -> Tensor:
        wide_ND = widened(x_ND)
        norm_N1 = torch.linalg.vector_norm(wide_ND, dim=-1, keepdim=True)
        inverse_N1 = norm_N1.square_().div_(x_ND.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, inverse_N1, weight_D)
        y_ND = wide_ND * inverse_N1
        if rounds_last:
            return y_ND.mul_(weight_D).to(x_ND.dtype)
        y_ND = y_ND.to(x_ND.dtype)
        return y_ND.mul_(weight_D) if y_ND.dtype == weight_D.dtype else y_ND * weight_D

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None, None]:
        x_ND, inverse_N1, weight_D = ctx.saved_tensors
        wide_ND, g_ND = widened(x_ND), widened(dy_ND) * weight_D
        share_N1 = torch.linalg.vecdot(g_ND, wide_ND).unsqueeze(-1)
        factor_N1 = share_N1.mul_(inverse_N1.pow(3)).div_(-x_ND.shape[-1])
        return g_ND.mul_(inverse_N1).addcmul_(wide_ND, factor_N1).to(x_ND.dtype), None, None, None
