"""Position-adaptive landmarks: the mixture depends on a fixed bucket of the position.

    out = h + a (w L)        w = softmax(P[bucket(p)] + C h)

See hylo/adapters/landmarks/mixture.py for the symbols and their initialization, hylo/adapters/buckets.py for bucket(p).
Own design after the published HyLoRADA, whose buckets were linear over 32,768 positions (`bucketing: uniform`,
`max_position: 32768`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hylo.adapters.buckets import Bucketing, assign_buckets, bucket_boundaries, one_hot_buckets
from hylo.adapters.component import BuildContext
from hylo.adapters.landmarks.after_norm import norm_problems
from hylo.adapters.landmarks.mixture import MixtureConfig, MixtureLandmark
from hylo.core.registry import register


@register("component", "landmark_position_adaptive")
@dataclass(kw_only=True, slots=True)
class PositionAdaptiveConfig(MixtureConfig):
    """Landmarks with fixed position buckets."""

    bucketing: Bucketing = Bucketing.logarithmic
    """logarithmic, or uniform as published."""

    @property
    def breaks(self) -> frozenset[str]:
        return frozenset({"bucket_occupancy"} if self.bucketing is Bucketing.uniform and self.max_position else ())

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        yield from norm_problems(key, self, context)

    def build(self, context: BuildContext) -> "PositionAdaptiveLandmark":
        return PositionAdaptiveLandmark(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        return self.mixture_parameter_count(context)


class PositionAdaptiveLandmark(MixtureLandmark):
    """Landmarks whose position logits are a row of P."""

    boundaries: Tensor

    def __init__(self, config: PositionAdaptiveConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        boundaries = bucket_boundaries(config.bucketing, config.num_buckets, self.max_position)
        self.register_buffer("boundaries", boundaries.to(self.P.device), persistent=False)

    def position_logits(self) -> Tensor:
        return F.embedding(assign_buckets(self.positions.current, self.boundaries), self.P)

    def bucket_weights(self, positions: Tensor) -> Tensor:
        return one_hot_buckets(positions, self.boundaries)
