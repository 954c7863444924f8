"""Learnable-bucket landmarks: position-adaptive landmarks whose bucket boundaries are trained.

    out = h + a (w L)             w = softmax(m(p) P + C h)
    m_i(p) = s_i - s_(i+1)        s_i = sigmoid((p / P_max - beta_i) / tau),   s_0 = 1,  s_N = 0

beta: the N - 1 boundaries, sorted, as fractions of P_max. m(p) are soft bucket weights: they are not negative, sum to
one, and become the hard bucket of p as tau goes to 0. The boundaries start where the fixed logarithmic buckets have
theirs, so that the contrast with those is one of learning alone. See `landmark_mixture` for the other symbols. Own
design after the published HyLoRADA, whose boundaries were not in the optimizer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from hylo.adapters.buckets import Bucketing, bucket_boundaries
from hylo.adapters.component import Host
from hylo.adapters.landmark_mixture import MixtureConfig, MixtureLandmark
from hylo.schema import bounded, register


class BoundaryStart(Enum):
    """Where the boundaries start. Member names are what users type."""

    fixed = "where the fixed logarithmic buckets have theirs"
    uniform = "at i / N"
    log = "at P_max^(i/N) / P_max, without the one-token minimum of the fixed buckets"
    random = "uniformly drawn"


@register("component")
@dataclass(kw_only=True, slots=True)
class LearnableConfig(MixtureConfig):
    """Landmarks with trained position buckets."""

    start: BoundaryStart = BoundaryStart.fixed
    """Where the boundaries start: fixed, uniform, log or random."""
    temperature: float = bounded(0.004, gt=0)
    """tau, the softness of a boundary as a fraction of P_max; 0.004 is one token of a context of 256."""

    def problems(self, key: str, host: Host) -> Iterator[str]:
        yield from self.mixture_problems(key, host)

    def build(self, host: Host) -> "LearnableLandmark":
        return LearnableLandmark(self, host)

    def parameter_count(self, host: Host) -> int:
        return self.mixture_parameter_count(host) + self.num_buckets - 1


class LearnableLandmark(MixtureLandmark):
    """Landmarks whose position logits are a soft mixture of the rows of P."""

    def __init__(self, config: LearnableConfig, host: Host) -> None:
        super().__init__(config, host)
        self.temperature = config.temperature
        start = _start(config.start, config.num_buckets, self.max_position)
        self.beta = host.parameter("landmark.beta", (config.num_buckets - 1,), start)

    def position_logits(self) -> Tensor:
        return self.bucket_weights(self.positions.current) @ self.P

    def bucket_weights(self, positions: Tensor) -> Tensor:
        """Soft bucket weights m(p) of positions of shape [...]: [..., N], each row sums to one."""
        fraction = (positions / self.max_position).clamp(max=1.0).unsqueeze(-1)
        s = torch.sigmoid((fraction - self.beta.sort().values) / self.temperature)
        ends = s.new_ones(*s.shape[:-1], 1), s.new_zeros(*s.shape[:-1], 1)
        return torch.cat([ends[0], s], dim=-1) - torch.cat([s, ends[1]], dim=-1)

    def learned_boundaries(self) -> Tensor:
        """The boundaries in tokens, sorted: [N - 1] float32."""
        return self.beta.detach().sort().values * self.max_position


def _start(start: BoundaryStart, num_buckets: int, max_position: int):
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        index = torch.arange(1, num_buckets)
        if start is BoundaryStart.random:
            tensor.uniform_(0.0, 1.0, generator=generator)
        elif start is BoundaryStart.uniform:
            tensor.copy_(index / num_buckets)
        elif start is BoundaryStart.log:
            tensor.copy_(max_position ** (index / num_buckets) / max_position)
        else:  # half a token earlier: position p itself belongs to the bucket that begins at p
            fixed = bucket_boundaries(Bucketing.logarithmic, num_buckets, max_position)
            tensor.copy_((fixed - 0.5) / max_position)

    return fill
