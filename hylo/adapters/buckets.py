"""Fixed position buckets: which of N buckets a token position falls into.

    boundaries: N - 1 increasing integers; bucket(p) = number of boundaries <= p

Logarithmic boundaries are P_max^(i/N), but no bucket is narrower than one token: the first buckets hold one position
each, later ones grow geometrically up to P_max. Uniform boundaries are i * P_max / N; with P_max = 32,768 they
reproduce the published behaviour, which put every position of a short context into bucket 0. If there are at least as
many positions as buckets, positions from P_max on fall into the last bucket. Own design; the idea of exact, then
logarithmic buckets comes from T5 (arXiv 1910.10683, section 2.1).
"""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor


class Bucketing(Enum):
    """How positions are grouped. Users type the member names."""

    logarithmic = "logarithmic"
    uniform = "uniform"


def bucket_boundaries(bucketing: Bucketing, num_buckets: int, max_position: int) -> Tensor:
    """Boundaries of the buckets, in tokens.

    Returns:
        [num_buckets - 1] int64, increasing.
    """
    index = torch.arange(1, num_buckets, dtype=torch.float64)
    if bucketing is Bucketing.uniform:
        return (index * max_position / num_buckets).ceil().long()
    logarithmic = (max_position ** (index / num_buckets)).round()
    # Keep boundaries at least one token apart: if rounding makes two equal, all later ones shift up.
    return (index + (logarithmic - index).clamp(min=0).cummax(dim=0).values).long()


def one_hot_buckets(positions: Tensor, boundaries: Tensor) -> Tensor:
    """One-hot bucket weights for positions of shape [...]: [..., N] float32."""
    return F.one_hot(assign_buckets(positions, boundaries), len(boundaries) + 1).float()


def assign_buckets(positions: Tensor, boundaries: Tensor) -> Tensor:
    """Bucket of each position: int64 in [0, len(boundaries)], with the shape of `positions`."""
    return torch.bucketize(positions.contiguous(), boundaries, right=True)
