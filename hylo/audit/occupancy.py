"""Check of position buckets: whether the positions of this context length use them, and how sharply."""

import torch
from torch import Tensor

from hylo.audit.finding import Finding, Status, verdict
from hylo.audit.sample import Probe

SHARPNESS = 4.0
"""Largest mean number of buckets a position may read, measured as the exponential of its weights' entropy."""


def bucket_occupancy(probe: Probe) -> Finding:
    """At least half of a component's buckets hold a position of the context, and each position reads few of them.

    A bucket without a position is a row that is never trained; weights spread over all buckets cannot tell positions
    apart.
    """
    model = probe.model
    found = {}
    for slot, component in model.slots():
        weights = component.bucket_weights(torch.arange(model.context_length, device=probe.ids.device))
        if weights is not None:
            found[slot] = _occupancy(weights.detach().double())
    if not found:
        return Finding(check="bucket_occupancy", status=Status.skipped, detail="no position buckets")
    wrong = [slot for slot, (held, count, read) in found.items() if held < count / 2 or not read <= SHARPNESS]
    detail = "; ".join(
        f"{slot}: {held} of {count} buckets hold a position of {model.context_length}, a position reads {read:.1f}"
        for slot, (held, count, read) in found.items()
    )
    share = min(held / count for held, count, _ in found.values())
    return Finding(
        check="bucket_occupancy", status=verdict(bool(wrong)), value=share, detail=detail, names=tuple(wrong)
    )


def _occupancy(weights_LN: Tensor) -> tuple[int, int, float]:
    """(buckets with at least half a position, buckets, mean buckets read per position) of weights [positions, N]."""
    entropy = -torch.special.xlogy(weights_LN, weights_LN.clamp(min=0)).sum(-1)
    return int((weights_LN.sum(0) >= 0.5).sum()), weights_LN.shape[1], float(entropy.exp().mean())
