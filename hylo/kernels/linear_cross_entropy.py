"""Cross-entropy of a frozen output head without its logits.

    nll = log sum_v exp(l_v) - l_target        l = W h + b, or c tanh((W h + b) / c) with a softcap c

Logits are computed for a few hundred tokens and a few thousand words at a time and reduced while in cache. The gradient
with respect to h is (softmax(l) - onehot) W, and a softmax times W is what attention computes with W as keys and
values: it is accumulated in the same pass as log-sum-exp and rescaled whenever a larger logit appears (the online
softmax of arXiv 1805.02867). The backward pass only multiplies by the incoming gradient.

Peak memory beyond h and its gradient is a second gradient (in float32) and one tile of TOKENS x WORDS, whereas the
usual implementation holds several tensors of all tokens times the whole vocabulary. Ignored targets cost nothing.

Shapes: N tokens, D hidden size, V words of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from hylo.core.devices import compute_dtype
from hylo.kernels.product import product, product_added, widened

TOKENS, WORDS = 256, 4096
"""Tile size: 4 MiB of logits, which fit into the cache of one or two cores."""
GPU_TOKENS, GPU_WORDS = 4096, 16384
"""Tile size on a GPU: 256 MiB, enough work for one kernel. Not tuned."""


def tile_tokens(device: torch.device) -> int:
    """The number of tokens whose logits are formed at a time."""
    return TOKENS if device.type == "cpu" else GPU_TOKENS


def linear_cross_entropy(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Negative log-likelihood of each target in nats, float32 or wider, differentiable only with respect to h.

    Args:
        h: [..., D] hidden states, the input of the output head.
        weight, bias: [V, D] and [V] of the head; frozen.
        targets: [...] int64; loss and gradient are 0 where it is `ignore_index`.
        softcap: bound c of the logits; None: unbounded.

    Returns:
        [...], the shape of `targets`.

    Raises:
        ValueError: the head is trained; its gradient is not computed here.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError(
            "linear_cross_entropy computes no gradient for the head: freeze its weight and bias, or use torch"
        )
    h = h.to(compute_dtype(h))
    rows = (targets.flatten() != ignore_index).nonzero().squeeze(-1)
    flat, chosen = h.flatten(0, -2), targets.flatten()
    if len(rows) < len(chosen):
        flat, chosen = flat[rows], chosen[rows]
    nll: Any = _LinearCrossEntropy.apply(flat, weight, bias, chosen, softcap)
    if len(rows) < targets.numel():
        nll = nll.new_zeros(targets.numel()).index_copy(0, rows, nll)
    return nll.view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, softcap: float | None
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        tokens, words = tile_tokens(h_ND.device), WORDS if h_ND.device.type == "cpu" else GPU_WORDS
        groups = [
            _Tokens(h, targets, softcap, wanted=wanted)
            for h, targets in zip(h_ND.split(tokens), targets_N.split(tokens), strict=True)
        ]
        with torch.autocast(h_ND.device.type, enabled=False):
            for first in range(0, len(weight_VD), words):
                tile = slice(first, first + words)
                # Cast once for all tokens: casting a tile takes as long as its product with a few hundred tokens.
                narrowed_VD = weight_VD[tile].to(h_ND.dtype)
                for group in groups:
                    group.read(narrowed_VD, None if bias_V is None else bias_V[tile])
            nll_N = torch.cat([group.losses(weight_VD, bias_V) for group in groups])
        ctx.save_for_backward(torch.cat([group.gradient() for group in groups]) if wanted else None)
        return nll_N

    @staticmethod
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return (gradient_ND * upstream_N.unsqueeze(-1)).to(gradient_ND.dtype), None, None, None, None


class _Tokens:
    """A group of tokens, processed against the vocabulary tile by tile."""

    def __init__(self, h_ND: Tensor, targets_N: Tensor, softcap: float | None, *, wanted: bool) -> None:
        self.h_ND, self.targets_N, self.softcap = h_ND, targets_N, softcap
        self._largest_N1 = torch.full_like(widened(h_ND[:, :1]), -torch.inf)
        self._total_N1 = torch.zeros_like(self._largest_N1)
        self._sum_ND = torch.zeros_like(widened(h_ND)) if wanted else None

    def read(self, weight_VD: Tensor, bias_V: Tensor | None) -> None:
        """Accumulate a tile of the vocabulary into log-sum-exp and, if wanted, the gradient."""
        l_NV, slope_NV = self._capped(widened(product(self.h_ND, weight_VD)), bias_V)
        before_N1, self._largest_N1 = self._largest_N1, torch.maximum(self._largest_N1, l_NV.amax(-1, keepdim=True))
        p_NV = l_NV.sub_(self._largest_N1).exp_()
        shrunk_N1 = before_N1.sub_(self._largest_N1).exp_()
        self._total_N1.mul_(shrunk_N1).add_(p_NV.sum(-1, keepdim=True))
        if self._sum_ND is not None:
            p_NV = p_NV if slope_NV is None else p_NV.mul_(slope_NV)
            self._sum_ND = _added(self._sum_ND.mul_(shrunk_N1), p_NV, weight_VD)

    def losses(self, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        """Loss of each token [N], after the last tile; also completes the gradient."""
        target_N, of_target_ND = self._target(weight_VD, bias_V)
        if self._sum_ND is not None:
            self._sum_ND.div_(self._total_N1).sub_(of_target_ND)
        return (self._largest_N1 + self._total_N1.log()).squeeze(-1) - target_N

    def gradient(self) -> Tensor:
        """Gradient of each loss with respect to h, [N, D]."""
        assert self._sum_ND is not None
        return self._sum_ND.to(self.h_ND.dtype)

    def _target(self, weight_VD: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor]:
        """The target's logit [N] and its gradient with respect to h [N, D]."""
        rows_ND = widened(weight_VD[self.targets_N].to(self.h_ND.dtype))
        logit_N = torch.linalg.vecdot(widened(self.h_ND), rows_ND)
        if bias_V is not None:
            logit_N = logit_N + bias_V[self.targets_N]
        if self.softcap is None:
            return logit_N, rows_ND
        bent_N = torch.tanh(logit_N / self.softcap)
        return bent_N * self.softcap, rows_ND * (1 - bent_N.square()).unsqueeze(-1)

    def _capped(self, l_NV: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits with bias and softcap applied, and the slope of the softcap."""
        if bias_V is not None:
            l_NV = l_NV.add_(bias_V)
        if self.softcap is None:
            return l_NV, None
        bent_NV = l_NV.div_(self.softcap).tanh_()
        return bent_NV * self.softcap, bent_NV.square_().neg_().add_(1)


def _added(sum_ND: Tensor, p_NV: Tensor, weight_VD: Tensor) -> Tensor:
    """sum + p W in the precision of the sum, whatever the weight's precision."""
    if weight_VD.dtype == sum_ND.dtype:
        return product_added(p_NV, weight_VD.T, sum_ND)
    return sum_ND.add_(product(p_NV.to(weight_VD.dtype), weight_VD.T))
