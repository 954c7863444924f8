"""Matrix products with a frozen weight, by the fastest library available.

In float32 on a CPU that is oneDNN, which torch ships and uses for compiled code: faster than torch.mm (MKL) at the
sizes of a small language model in our measurements. It reads weights in place, transposed or not, so nothing is packed,
copied or concatenated. Everywhere else the product is torch.mm.

Shapes: N rows, I in features, O out features, R rank.
"""

from typing import Any

import torch
from torch import Tensor

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""Linear layer of torch's oneDNN backend. It has no public name; in releases without it, torch.mm is used."""


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + bias, [N, O]."""
    if _by_onednn(x_NI, weight_OI):
        return _ONEDNN(x_NI, weight_OI, bias_O, "none", [], "")
    return x_NI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_NI, weight_OI.T)


def product_added(x_NI: Tensor, weight_OI: Tensor, sum_NO: Tensor) -> Tensor:
    """sum + x W^T, [N, O]. `sum_NO` may be overwritten: use only the result."""
    if _by_onednn(x_NI, weight_OI):
        return _ONEDNN.binary(x_NI, sum_NO, weight_OI, None, "add")
    return sum_NO.addmm_(x_NI, weight_OI.T)


def add_product(sum_NO: Tensor, x_NR: Tensor, weight_OR: Tensor) -> None:
    """sum += x W^T in place, for a small inner dimension R; oneDNN would copy the sum."""
    sum_NO.addmm_(x_NR, weight_OR.T)


def summed_product(left_NR: Tensor, right_NO: Tensor) -> Tensor:
    """left^T right, [R, O], for small R: the gradient of a thin matrix.

    The columns of `left` are first made contiguous rows. In the form that autograd uses for a linear layer
    (right^T left), the same product is many times slower in MKL.
    """
    return product(left_NR.T.contiguous(), right_NO.T)


def widened(x: Tensor) -> Tensor:
    """x, converted to float32 if its dtype is narrower."""
    return x.float() if x.element_size() < 4 else x


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return _ONEDNN is not None and on_cpu and len(x) > 0 and bool(torch.backends.mkldnn.enabled)
