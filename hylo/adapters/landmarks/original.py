"""Original landmarks: the mixture depends on the mean hidden state of the text so far.

    out = h + a (w L)        w = softmax(G pool(h))

L [K, d] ~ N(0, 0.02^2), G [K, d] starts at zero (w is uniform at step 0) and the scalar a at 0.1, so the output at
step 0 is within a few thousandths of h. pool is the mean of h over the text's real tokens: up to and including the
token itself (`causal`), or, as published, over all positions of the pass (`sequence`), which leaks later tokens into
earlier ones. Padding is ignored. Own design after the published HyLoRADA.

For cached decoding, the running sums of earlier passes are stored in the cache as an additional layer. Whatever happens
to the cache (copy, crop, reorder for beam search, reset) thus happens to them too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from hylo.adapters.component import AtStart, BuildContext, Component, ComponentConfig, constant, normal, zeros
from hylo.adapters.landmarks.after_norm import AfterNorm, norm_problems
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.models.architecture import hidden_size


class Pooling(Enum):
    """Which tokens are averaged. Users type the member names."""

    causal = "the token and those before it"
    sequence = "all tokens of the pass and those before it: leaks"


@register("component", "landmark_original")
@dataclass(kw_only=True, slots=True)
class OriginalConfig(ComponentConfig):
    """Landmarks weighted by a mean of hidden states."""

    at_start: ClassVar[AtStart] = AtStart.near
    after_final_norm: ClassVar[bool] = True

    num_landmarks: int = bounded(4, ge=1)
    """K, the number of learned vectors."""
    pooling: Pooling = Pooling.causal
    """causal, or sequence as published, which leaks later tokens."""

    @property
    def breaks(self) -> frozenset[str]:
        leaks = self.pooling is Pooling.sequence
        return frozenset({"causality", "cached_decoding"} if leaks else ())

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        yield from norm_problems(key, self, context)

    def build(self, context: BuildContext) -> "OriginalLandmark":
        return OriginalLandmark(self, context)

    def parameter_count(self, context: BuildContext) -> int:
        return 2 * self.num_landmarks * hidden_size(context.model) + 1


class RunningSums(DynamicLayer):
    """A cache layer that holds, for every token, the sum of the hidden states up to it and their number."""

    is_compileable = True  # defers to the other layers; otherwise fixed-size caches lose their mask


class OriginalLandmark(Component):
    """Learned vectors mixed into the last hidden state by the mean of the hidden states.

    Shapes: B batch, T tokens, D hidden size, K landmarks, S = D + 1 sums (the last one counts the tokens).
    """

    def __init__(self, config: OriginalConfig, context: BuildContext) -> None:
        super().__init__()
        shape = (config.num_landmarks, hidden_size(context.model))
        self.L = context.parameter("landmark.L", shape, normal(0.02))
        self.G = context.parameter("landmark.G", shape, zeros)
        self.a = context.parameter("landmark.a", (), constant(0.1))
        self.pooling = config.pooling
        self._positions = context.positions
        self._sums_BTS: Tensor | None = None
        self._hooks: list[Any] = []

    def forward(self, h_BTD: Tensor) -> Tensor:
        w_BTK = F.softmax(F.linear(self.pool(h_BTD).to(self.G.dtype), self.G), dim=-1)
        self._positions.read("landmark weights", w_BTK.expand(*h_BTD.shape[:2], -1))
        return h_BTD + (w_BTK @ (self.a * self.L)).to(h_BTD.dtype)

    def pool(self, h_BTD: Tensor) -> Tensor:
        """Mean hidden state of the real tokens: [B, T, D] if causal, [B, 1, D] over the sequence."""
        counted_BTS = F.pad(h_BTD.float(), (0, 1), value=1.0)
        if self._positions.real is not None:
            counted_BTS = counted_BTS.masked_fill(~self._positions.real.unsqueeze(-1), 0.0)
        sums_BTS = counted_BTS.cumsum(dim=1)
        if (first_BT := self._positions.first) is not None:
            before_BTS = F.pad(sums_BTS, (0, 0, 1, -1))
            sums_BTS = sums_BTS - before_BTS.gather(1, first_BT.unsqueeze(-1).expand_as(sums_BTS))
        if (before_B1S := _last_sums(self._positions.cache, h_BTD.shape[1])) is not None:
            sums_BTS = sums_BTS + before_B1S
        self._sums_BTS = sums_BTS
        pooled = sums_BTS if self.pooling is Pooling.causal else sums_BTS[:, -1:]
        return pooled[..., :-1] / pooled[..., -1:].clamp(min=1)

    def merge_refusal(self) -> str:
        return "what it adds depends on the text so far, which no weight can express"

    def attach(self, model: PreTrainedModel) -> None:
        def after_pass(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            cache = self._positions.cache
            if cache is None:  # the model may have created one
                cache = next((part for part in _parts(output) if isinstance(part, Cache)), None)
            if cache is not None and self._sums_BTS is not None:
                _append_sums(cache, self._sums_BTS)
            self._sums_BTS = None

        self._hooks = [AfterNorm(model, self._positions, self), model.register_forward_hook(after_pass)]

    def detach(self, model: PreTrainedModel) -> None:
        assert self._hooks, "detach follows attach"
        for hook in self._hooks:
            hook.remove()


def _parts(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else tuple(output.values())


def _sums_layer(cache: Cache) -> RunningSums | None:
    return next((layer for layer in cache.layers if isinstance(layer, RunningSums)), None)


def _last_sums(cache: Cache | None, time: int) -> Tensor | None:
    """The sums up to the last token of earlier passes, [B, 1, S]; None in the first pass.

    The cache already holds the keys and values of this pass's `time` tokens.
    """
    if cache is None:
        return None
    layer = _sums_layer(cache)
    known, seen = layer.get_seq_length() if layer else 0, int(cache.get_seq_length()) - time
    if known != seen:
        raise ValueError(
            f"the cache holds {seen} tokens from earlier passes but running sums for {known}: it was filled without "
            f"these landmarks; start from an empty cache"
        )
    if layer is None or layer.keys is None:
        return None
    return layer.keys[:, 0, -1:]


def _append_sums(cache: Cache, sums_BTS: Tensor) -> None:
    layer = _sums_layer(cache)
    if layer is None:
        layer = RunningSums()
        cache.layers.append(layer)
    as_head = sums_BTS.unsqueeze(1)  # a cache layer is [batch, heads, tokens, width]
    layer.update(as_head, as_head[..., :0])
