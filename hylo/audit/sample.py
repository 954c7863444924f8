"""What the checks run on: a few short windows, and the adapted model at its start or with every tensor moved.

At step 0 most components have no effect (a zero matrix, a uniform mixture), so they cannot break anything. All checks
except those of the start itself therefore run with every trainable tensor moved about as far as training moves it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hylo.adapters.model import AdaptedModel

ROUNDING = 1e-4
"""Root mean square difference of logits, in their standard deviations, that passes as float32 rounding. An off-by-one
position, or a mask that hides the wrong token, changes them by more."""
SPACINGS = 8
"""The same for narrower dtypes, in spacings of numbers above 1: 0.8 % in float16, 6 % in bfloat16. Several times what
the default model shows (docs/base-weights.md); small faults may hide in it, so methods are first audited in float32."""

MOVED = 0.1
"""Standard deviation of the noise added to a trainable tensor, relative to its root mean square; absolute if that is
zero."""

DECODED = 2
"""Tokens that are decoded one by one: the first reads a cache written by a long pass, the second one written by
decoding."""


class Probe:
    """An adapted model and token windows [B, T] to test it on. Leaves the model and all random state unchanged."""

    def __init__(self, model: AdaptedModel, ids: Tensor, *, seed: int) -> None:
        self.model = model
        self.ids = ids
        self.seed = seed
        self.middle = ids.shape[1] // 2
        """The first token of the windows' second half."""

    @property
    def rounding(self) -> float:
        """Difference of logits, in their standard deviations, that passes as rounding in the base model's dtype."""
        return max(ROUNDING, SPACINGS * torch.finfo(self.model.base.dtype).eps)

    @torch.no_grad()
    def logits(self, ids: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Logits [B, T, V] of the windows, or of other tokens."""
        return self.model(input_ids=self.ids if ids is None else ids, **kwargs).logits.float()

    @torch.no_grad()
    def decoded(self) -> Tensor | None:
        """Logits [B, middle + DECODED, V] of the first half of the windows, then token by token from the cache.

        None: the model returns no cache.
        """
        output = self.model(input_ids=self.ids[:, : self.middle], use_cache=True)
        parts = [output.logits]
        if getattr(output, "past_key_values", None) is None:
            return None
        for token in self.ids[:, self.middle :].split(1, dim=1)[:DECODED]:
            output = self.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            parts.append(output.logits)
        return torch.cat(parts, dim=1).float()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode; training modes and random state are restored afterwards."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with torch.random.fork_rng():
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    @contextmanager
    def moved(self) -> Iterator[None]:
        """Every trainable tensor moved off its start; values are restored bit for bit afterwards."""
        tensors = self.model.adapter_state_dict()
        start = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for tensor in tensors.values():
                size = MOVED * (float(tensor.square().mean().sqrt()) or 1.0)
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
                tensor.add_(noise.to(tensor), alpha=size)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(start[name])


def distance(one: Tensor, other: Tensor) -> float:
    """Root mean square difference of two sets of logits, in standard deviations of the second. NaN if either has NaN.

    Not the largest difference: on unlikely text a single logit may move far more than all others.
    """
    return float((one - other).square().mean().sqrt() / other.std())
