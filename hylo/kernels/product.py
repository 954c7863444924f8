"""Matrix products with a frozen weight, by the fastest library at hand.

In float32 on a CPU that is oneDNN, which torch ships and uses for its compiled code: on the machine this was written
on, 10 to 40 % above torch.mm (MKL) at the sizes of a small language model. It reads weights where they lie, also
transposed, so nothing is packed, copied or joined. Everywhere else the product is torch.mm.

Shapes: N rows, I in features, O out features, R rank.
"""

from typing import Any

import torch
from torch import Tensor

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""Linear layer of torch's oneDNN backend. It has no public name: where a release lacks it, torch.mm serves."""


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + bias, [N, O]."""
    if _by_onednn(x_NI, weight_OI):
        return _ONEDNN(x_NI, weight_OI, bias_O, "none", [], "")
    return x_NI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_NI, weight_OI.T)


def product_added(x_NI: Tensor, weight_OI: Tensor, sum_NO: Tensor) -> Tensor:
    """sum + x W^T, [N, O]. `sum_NO` may be overwritten: use the result in its place."""
    if _by_onednn(x_NI, weight_OI):
        return _ONEDNN.binary(x_NI, sum_NO, weight_OI, None, "add")
    return sum_NO.addmm_(x_NI, weight_OI.T)


def add_product(sum_NO: Tensor, x_NR: Tensor, weight_OR: Tensor) -> None:
    """sum += x W^T in place, for few inner columns R: a pass over the sum, which oneDNN would copy."""
    sum_NO.addmm_(x_NR, weight_OR.T)


def summed_product(left_NR: Tensor, right_NO: Tensor) -> Tensor:
    """left^T right, [R, O], for few columns R on the left: the gradient of a thin matrix.

    The few columns are laid out as rows first. As autograd of a linear layer forms it (right^T left), the same product
    takes up to fifteen times as long in MKL.
    """
    return product(left_NR.T.contiguous(), right_NO.T)


def widened(x: Tensor) -> Tensor:
    """x in float32 where it is narrower."""
    return x.float() if x.element_size() < 4 else x


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return _ONEDNN is not None and on_cpu and len(x) > 0 and bool(torch.backends.mkldnn.enabled)
