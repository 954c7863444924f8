"""Matrix products with a frozen weight, by the fastest library available.

In float32 on a CPU that is oneDNN, which torch ships and uses for compiled code, or torch.mm (MKL), depending on
processor, shape and layout. In bfloat16 and float16, a CPU without instructions for them computes in float32 and rounds
the result, many times faster than torch.mm there. Weights are read in place, transposed or not: nothing is packed or
concatenated. Elsewhere the product is torch.mm.

A fixed rule chooses, or a measurement on this machine (hylo/kernels/measured.py), for which the rule's way comes first.

Shapes: N rows, I in features, O out features, R rank.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from hylo.kernels.measured import current

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""Linear layer of torch's oneDNN backend. It has no public name; in releases without it, torch.mm is used."""
ENOUGH = 2**22
"""Multiplications below which nothing is measured: a tenth of a millisecond, which other work drowns."""

MOST_ROWS = 1024
"""Rows that are measured. With 8,192 the times of two libraries had the same ratio, within 7 %."""


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + bias, [N, O]."""
    if x_NI.device.type != "cpu":
        return _by_torch(x_NI, weight_OI, bias_O)
    return _way(_PRODUCTS, x_NI, weight_OI)(x_NI, weight_OI, bias_O)


def product_added(x_NI: Tensor, weight_OI: Tensor, sum_NO: Tensor) -> Tensor:
    """sum + x W^T, [N, O]. `sum_NO` may be overwritten: use only the result."""
    if x_NI.device.type != "cpu":
        return _added_by_torch(x_NI, weight_OI, sum_NO)
    return _way(_SUMS, x_NI, weight_OI)(x_NI, weight_OI, sum_NO)


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


def _by_torch(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return x_NI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_NI, weight_OI.T)


def _by_onednn(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return _ONEDNN(x_NI, weight_OI, bias_O, "none", [], "")


def _in_float32(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    wide_NO = x_NI.float() @ weight_OI.float().T
    return (wide_NO if bias_O is None else wide_NO.add_(bias_O)).to(x_NI.dtype)


def _added_by_torch(x_NI: Tensor, weight_OI: Tensor, sum_NO: Tensor) -> Tensor:
    return sum_NO.addmm_(x_NI, weight_OI.T)


def _added_by_onednn(x_NI: Tensor, weight_OI: Tensor, sum_NO: Tensor) -> Tensor:
    return _ONEDNN.binary(x_NI, sum_NO, weight_OI, None, "add")


def _added_in_float32(x_NI: Tensor, weight_OI: Tensor, sum_NO: Tensor) -> Tensor:
    return torch.addmm(sum_NO.float(), x_NI.float(), weight_OI.float().T).to(sum_NO.dtype)


Ways = dict[str, Callable[[Tensor, Tensor, Any], Tensor]]
_PRODUCTS: Ways = {"onednn": _by_onednn, "torch": _by_torch, "float32": _in_float32}
_SUMS: Ways = {"onednn": _added_by_onednn, "torch": _added_by_torch, "float32": _added_in_float32}


def _way(ways: Ways, x_NI: Tensor, weight_OI: Tensor) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The way to compute a product, or a product and a sum, on the CPU."""
    transposed = weight_OI.stride(0) == 1 and weight_OI.stride(1) != 1
    names = _candidates(x_NI.dtype, transposed=transposed, enabled=bool(torch.backends.mkldnn.enabled))
    if x_NI.dtype != weight_OI.dtype or not len(x_NI):
        return ways["torch"]
    choices = current()
    if choices is None or len(names) == 1 or x_NI.numel() * len(weight_OI) < ENOUGH:
        return ways[names[0]]
    rows = min(len(x_NI), MOST_ROWS)
    work = _work("product" if ways is _PRODUCTS else "sum", x_NI.dtype, rows, weight_OI.shape, transposed)
    if work not in choices.used:
        third = None if ways is _PRODUCTS else x_NI.new_zeros(rows, len(weight_OI))
        choices.fastest(work, {name: partial(ways[name], x_NI[:rows], weight_OI, third) for name in names})
    return ways[choices.used[work]]


@cache
def _work(kind: str, dtype: torch.dtype, rows: int, shape: torch.Size, transposed: bool) -> str:
    """The name of a product. The number of rows varies with the batch; its power of two is enough to know."""
    rows, (out, inner) = 1 << (rows - 1).bit_length(), shape
    return f"{kind} {dtype} {rows}x{inner} by {inner}x{out}{' transposed' if transposed else ''}"


@cache
def _candidates(dtype: torch.dtype, *, transposed: bool, enabled: bool) -> tuple[str, ...]:
    """Ways for operands of a dtype on the CPU; first the one that was fastest on the machines that we measured.

    Args:
        transposed: whether the weight is a transposed view, as in the backward pass.
        enabled: whether oneDNN may be used (torch.backends.mkldnn.enabled).
    """
    if dtype == torch.float32:
        if _ONEDNN is None or not enabled:
            return ("torch",)
        # Without AVX-512, oneDNN takes up to twice as long for transposed weights.
        slow = transposed and "AVX512" not in torch.backends.cpu.get_cpu_capability()
        return ("torch", "onednn") if slow else ("onednn", "torch")
    if dtype in (torch.bfloat16, torch.float16):
        return ("torch", "float32") if has_instructions(dtype, torch.device("cpu")) else ("float32", "torch")
    return ("torch",)


@cache
def has_instructions(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch.mm has more than a slow reference for a dtype here. On a CPU oneDNN computes it for narrow ones."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is None or bool(supported())
