"""Learnable-bucket landmarks: position-adaptive landmarks whose bucket boundaries are trained.

    out = h + a (w L)             w = softmax(m(p) P + C h)
    m_i(p) = s_i - s_(i+1)        s_i = sigmoid((p / P_max - beta_i) / tau),   s_0 = 1,  s_N = 0

beta: the N - 1 boundaries, sorted, as fractions of P_max. m(p) are soft bucket weights: nonnegative, summing to one,
and converging to the hard bucket of p as tau goes to 0. The boundaries start at those of the fixed logarithmic buckets,
so a comparison with fixed buckets isolates the effect of learning them. See hylo/adapters/landmarks/mixture.py for the
other symbols. Own design after the published HyLoRADA, whose boundaries were not passed to the optimizer.

Options, all off by default: a schedule of tau from `temperature` to `final_temperature`; hard buckets in the forward
pass; a separate learning rate for the boundaries; a warmup during which they are frozen; and

    regularization = spread_weight * spread(beta) + repulsion_weight * repulsion(beta)

which is added to the training loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from hylo.adapters.buckets import Bucketing, bucket_boundaries
from hylo.adapters.component import BuildContext
from hylo.adapters.landmarks.after_norm import norm_problems
from hylo.adapters.landmarks.mixture import MixtureConfig, MixtureLandmark
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded


class BoundaryStart(Enum):
    """Initialization of the boundaries. Users type the member names."""

    fixed = "where the fixed logarithmic buckets have theirs"
    uniform = "at i / N"
    log = "at P_max^(i/N) / P_max, without the one-token minimum of the fixed buckets"
    random = "uniformly drawn"


class Assignment(Enum):
    """Which bucket weights the forward pass uses."""

    soft = "m(p)"
    hard = "one for the bucket of p, zero for the others, with the gradient of m(p)"


@register("component", "landmark_learnable")
@dataclass(kw_only=True, slots=True)
class LearnableConfig(MixtureConfig):
    """Landmarks with trained position buckets."""

    start: BoundaryStart = BoundaryStart.fixed
    """Initialization of the boundaries: fixed, uniform, log or random."""
    assignment: Assignment = Assignment.soft
    """soft, or hard: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432)."""
    temperature: float = bounded(0.004, gt=0)
    """tau, the softness of a boundary as a fraction of P_max; 0.004 is one token of a context of 256."""
    final_temperature: float | None = bounded(None, gt=0)
    """tau at the last training step and in evaluation, reached by a constant factor per step; None: `temperature`."""
    boundary_learning_rate_multiplier: float = bounded(1.0, gt=0)
    """Factor on the component's learning rate for the boundaries."""
    boundary_warmup: float = bounded(0.0, ge=0, lt=1)
    """Initial fraction of training during which the boundaries are frozen; at least one step remains."""
    spread_weight: float = bounded(0.0, ge=0)
    """Weight of `spread` in the training loss, in nats per token. Its gradient is subject to trainer.max_grad_norm."""
    repulsion_weight: float = bounded(0.0, ge=0)
    """Weight of `repulsion` in the training loss, in nats per token. Its gradient is subject to
    trainer.max_grad_norm."""
    minimum_gap: float = bounded(1.0, gt=0)
    """Distance in tokens below which neighbouring boundaries repel each other."""

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        yield from norm_problems(key, self, context)
        if self.repulsion_weight and self.num_buckets < 3:
            allowed = "0 with two buckets, whose one boundary has no neighbour"
            yield problem(f"{key}.repulsion_weight", self.repulsion_weight, allowed, f"{key}.num_buckets=3, or more")
        elif self.repulsion_weight:
            # The num_buckets - 2 buckets between two boundaries must fit into [0, P_max].
            widest = (self.max_position or context.context_length) / (self.num_buckets - 2)
            if self.minimum_gap > widest:
                allowed = f"at most {widest:g}, P_max / (num_buckets - 2)"
                yield problem(f"{key}.minimum_gap", self.minimum_gap, allowed, f"{key}.minimum_gap={widest / 2:g}")

    def build(self, context: BuildContext) -> "LearnableLandmark":
        return LearnableLandmark(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        return self.mixture_parameter_count(context) + self.num_buckets - 1


class LearnableLandmark(MixtureLandmark):
    """Landmarks whose position logits are a soft mixture of the rows of P."""

    def __init__(self, config: LearnableConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        start = _start(config.start, config.num_buckets, self.max_position)
        self.beta = context.parameter("landmark.beta", (config.num_buckets - 1,), start)
        self._training_temperature = self.final_temperature
        self._held = False

    @property
    def final_temperature(self) -> float:
        """tau in evaluation. It follows from the config alone, so saved adapters need not store it."""
        config = self.config
        return config.temperature if config.final_temperature is None else config.final_temperature

    @property
    def temperature(self) -> float:
        """tau of the current pass: that of the step in training, the final one in evaluation."""
        return self._training_temperature if self.training else self.final_temperature

    def on_step_start(self, step: int, steps: int) -> None:
        """Set tau at step t of T to tau_0^(1 - x) tau_T^x with x = t / (T - 1): exact at both ends, own design."""
        first, final = self.config.temperature, self.final_temperature
        done = step / (steps - 1) if steps > 1 else 1.0
        self._training_temperature = first ** (1 - done) * final**done if first != final else first
        self._held = step < min(round(self.config.boundary_warmup * steps), steps - 1)

    def on_before_optimizer_step(self) -> None:
        if self._held:  # with a zero gradient, AdamW's moments would still decay
            self.beta.grad = None

    def learning_rate_multipliers(self) -> dict[str, float]:
        return {"beta": self.config.boundary_learning_rate_multiplier}

    def regularization(self) -> Tensor | None:
        config, boundaries, terms = self.config, self.beta.sort().values, []
        if config.spread_weight:
            terms.append(config.spread_weight * spread(boundaries))
        if config.repulsion_weight:
            terms.append(config.repulsion_weight * repulsion(boundaries, config.minimum_gap / self.max_position))
        return torch.stack(terms).sum() if terms else None

    def observed(self) -> dict[str, Tensor]:
        """The boundaries in the order of beta, unsorted: each keeps its index when it crosses another."""
        return {"boundaries (tokens)": self.beta.detach() * self.max_position}

    def position_logits(self) -> Tensor:
        weights = self.bucket_weights(self.positions.current)
        with torch.autocast(self.P.device.type, enabled=False):  # as precise as the lookup of fixed buckets
            return weights @ self.P

    def bucket_weights(self, positions: Tensor) -> Tensor:
        """Bucket weights for positions of shape [...]: [..., N], rows sum to one.

        m(p) or, with hard assignment, exactly one-hot weights with the gradient of m(p).
        """
        fraction = (positions / self.max_position).clamp(max=1.0)
        boundaries = self.beta.sort().values
        s = torch.sigmoid((fraction.unsqueeze(-1) - boundaries) / self.temperature)
        ends = s.new_ones(*s.shape[:-1], 1), s.new_zeros(*s.shape[:-1], 1)
        soft = torch.cat([ends[0], s], dim=-1) - torch.cat([s, ends[1]], dim=-1)
        if self.config.assignment is Assignment.soft:
            return soft
        bucket = torch.bucketize(fraction, boundaries.detach(), right=True)
        # In this order the sum is exactly zero or one despite rounding.
        return soft + (F.one_hot(bucket, soft.shape[-1]) - soft).detach()

    def learned_boundaries(self) -> Tensor:
        """The boundaries in tokens, sorted: [N - 1] float32."""
        return self.beta.detach().sort().values * self.max_position


def spread(boundaries: Tensor) -> Tensor:
    """Squared coefficient of variation of the N bucket widths, mean((N g_i - 1)^2) with g the widths. Own design.

    It keeps boundaries from leaving [0, 1] and from collapsing at one end: 0 for equally wide buckets, N - 1 if all
    boundaries coincide at 0 or 1, and unbounded outside. Logarithmic buckets are not at its minimum.

    Args:
        boundaries: sorted fractions of P_max, [N - 1].
    """
    widths = torch.cat([boundaries, boundaries.new_ones(1)]) - torch.cat([boundaries.new_zeros(1), boundaries])
    return (len(widths) * widths - 1).square().mean()


def repulsion(boundaries: Tensor, minimum_gap: float) -> Tensor:
    """Mean over neighbouring boundaries of relu(1 - gap / minimum_gap)^2: 0 if no pair is too close. Own design.

    Args:
        boundaries: sorted fractions of P_max, [N - 1], at least two.
        minimum_gap: as a fraction of P_max.
    """
    return F.relu(1 - boundaries.diff() / minimum_gap).square().mean()


def _start(start: BoundaryStart, num_buckets: int, max_position: int):
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        index = torch.arange(1, num_buckets)
        if start is BoundaryStart.random:
            tensor.uniform_(0.0, 1.0, generator=generator)
        elif start is BoundaryStart.uniform:
            tensor.copy_(index / num_buckets)
        elif start is BoundaryStart.log:
            tensor.copy_(max_position ** (index / num_buckets) / max_position)
        else:  # shifted by half a token, so that position p is in the bucket that begins at p
            fixed = bucket_boundaries(Bucketing.logarithmic, num_buckets, max_position)
            tensor.copy_((fixed - 0.5) / max_position)

    return fill
