"""Position bias: scales the low-rank update by a factor that depends on the token's position.

    y = W x + g(p) s B A x        g(p) = 1 + tanh(b[bucket(p)])

One vector b [num_buckets] is shared by all adapted layers and initialized to zero, so g = 1 at step 0. Own design after
the published HyLoRADA, whose implementation never received positions (`receives_positions: false`); here p is the
token's true position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hylo.adapters.buckets import Bucketing, assign_buckets, bucket_boundaries, one_hot_buckets
from hylo.adapters.component import BuildContext, Component, ComponentConfig, zeros
from hylo.adapters.low_rank import LowRank, LowRankLayer
from hylo.adapters.positions import OfThePass, check_recomputation
from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.schema import bounded


@register("component", "position_bias")
@dataclass(kw_only=True, slots=True)
class PositionBiasConfig(ComponentConfig):
    """Settings of the position bias."""

    requires: ClassVar[tuple[str, ...]] = ("low_rank",)

    num_buckets: int = bounded(64, ge=2)
    """Number of position buckets; one trained scalar per bucket."""
    bucketing: Bucketing = Bucketing.logarithmic
    """logarithmic, or uniform as published."""
    max_position: int | None = bounded(None, ge=2)
    """P_max in tokens, the end of the buckets; None: the run's context length."""
    receives_positions: bool = True
    """False, as published: the gate never receives positions and stays at 1, so b is dead."""

    @property
    def breaks(self) -> frozenset[str]:
        flaws = {"bucket_occupancy"} if self.bucketing is Bucketing.uniform and self.max_position else set()
        return frozenset(flaws if self.receives_positions else {"dead_tensors", "unmoved_tensors"})

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        yield from ()

    def build(self, context: BuildContext) -> "PositionBias":
        return PositionBias(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        return self.num_buckets


class PositionBias(Component):
    """The shared vector b and the gate computed from it."""

    boundaries: Tensor

    def __init__(self, config: PositionBiasConfig, context: BuildContext) -> None:
        super().__init__()
        self.b = context.parameter("position_bias.b", (config.num_buckets,), zeros)
        boundaries = bucket_boundaries(
            config.bucketing, config.num_buckets, config.max_position or context.context_length
        )
        self.register_buffer("boundaries", boundaries.to(self.b.device), persistent=False)
        self._positions = context.positions
        low_rank = context.components["low_rank"]
        assert isinstance(low_rank, LowRank)
        layers = low_rank.layers.values() if config.receives_positions else ()
        self._layers = [layer for layer in layers if isinstance(layer, LowRankLayer)]
        self._gate, self._gate_of_keys = OfThePass(), OfThePass()
        self._hook: RemovableHandle | None = None

    def gate(self, x: Tensor) -> Tensor:
        """g(p) for the rows of a layer's input, the same tensor for all layers.

        Args:
            x: [B, T, I], one row per token of the pass; or [B, 1, S, I], one row per token that is attended to
                (DeepSeek's multi-head latent attention, where keys and values are computed from the cache).

        Returns:
            [B, T] or [1, T]; or [B, 1, S] or [1, 1, S].

        Raises:
            ConfigError: the rows are anything else, such as the tokens that an expert was given.
        """
        gate, of_keys = self._gate.value, self._positions.of_keys
        assert gate is not None, "the gate is known only inside a forward pass of the adapted model"
        if x.dim() == 3 and x.shape[1] == gate.shape[1]:
            return gate
        if of_keys is not None and x.dim() == 4 and x.shape[1] == 1 and x.shape[2] == of_keys.shape[1]:
            if self._gate_of_keys.value is None:
                self._gate_of_keys.value = gate if of_keys is self._positions.current else self.make_gate(of_keys)
            return self._gate_of_keys.value.unsqueeze(1)
        shape, allowed = list(x.shape), "layers that read one vector per token, in order, so that a gate has positions"
        fix = "method.position_bias=null, or other target_modules"
        raise ConfigError(problem("method.position_bias", f"a layer that reads {shape}", allowed, fix))

    def make_gate(self, positions: Tensor) -> Tensor:
        """Compute g(p) for positions of any shape."""
        buckets = assign_buckets(positions, self.boundaries)
        return 1 + torch.tanh(F.embedding(buckets, self.b.unsqueeze(-1)).squeeze(-1))

    def bucket_weights(self, positions: Tensor) -> Tensor | None:
        return one_hot_buckets(positions, self.boundaries) if self._layers else None

    def merge_refusal(self) -> str:
        return "its gate depends on the token's position, which no weight can express"

    def attach(self, model: PreTrainedModel) -> None:
        # Computed before the first layer: gradient checkpointing reruns layers, and must not recompute the gate.
        self._hook = model.register_forward_pre_hook(self._before_forward)
        for layer in self._layers:
            layer.gate = self.gate

    def _before_forward(self, module: PreTrainedModel, args: tuple[Any, ...]) -> None:
        check_recomputation(module, "position_bias")
        gate = self.make_gate(self._positions.current)
        self._gate.value, self._gate_of_keys.value = gate, None
        self._positions.read("position gate", gate.unsqueeze(-1))

    def detach(self, model: PreTrainedModel) -> None:
        assert self._hook is not None, "detach follows attach"
        self._hook.remove()
        self._gate.value = self._gate_of_keys.value = None
        for layer in self._layers:
            layer.gate = None
