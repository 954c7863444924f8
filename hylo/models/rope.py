"""Scaling of rotary positions (RoPE), so that a model reads texts beyond the context it was trained on.

With theta_i = base^(-2i/D), i < D/2, the angle per position of the i-th pair of a head's D dimensions:

    linear      theta_i / f: positions are squeezed into the trained range. arXiv 2306.15595
    dynamic     for a text of T > L tokens theta_i with base (f T/L - (f - 1))^(D/(D - 2)) instead of base: fast angles
                stay, slow ones are squeezed. Nothing changes up to L. arXiv 2309.00071, section 3.3
    yarn        theta_i / f where a pair turns less than once in L tokens, theta_i where it turns 32 times or more, a
                mix between; queries and keys times 0.1 ln f + 1. arXiv 2309.00071, section 3.4

L is the model's longest context, f the factor: the new longest context is f L. transformers computes the angles, from
the config that the model is built with. Linear and YaRN change every text, also short ones, and usually need training;
dynamic changes only texts longer than L, and its angles follow the longest text since the last one of at most L tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from hylo.core.errors import ConfigError, problem
from hylo.core.schema import bounded


class RopeType(Enum):
    """How rotary positions are scaled. Users type the member names."""

    unscaled = "as the model was trained"
    linear = "all angles divided by the factor"
    dynamic = "a larger base for texts beyond the model's longest context"
    yarn = "slow angles divided by the factor, fast ones kept, attention sharpened"


@dataclass(kw_only=True, slots=True)
class RopeScaling:
    """Scaling of a model's rotary positions."""

    type: RopeType = RopeType.unscaled
    """unscaled, linear, dynamic or yarn."""
    factor: float = bounded(1.0, ge=1)
    """How many times longer the longest context becomes."""

    def mark(self) -> str:
        """What it adds to a model's identity; empty if it changes nothing."""
        return "" if self.type is RopeType.unscaled else f" rope {self.type.name} {self.factor!r}"

    def applied(self, config: Any) -> PretrainedConfig:
        """The config of the model to build, changed in place.

        Raises:
            ConfigError: the setting would change nothing, or cannot work on this model.
        """
        if problems := [*self._problems(config)]:
            raise ConfigError(*problems)
        if self.type is not RopeType.unscaled:
            text = config.get_text_config()
            original = text.max_position_embeddings
            text.rope_parameters = text.rope_parameters | {"rope_type": self.type.name, "factor": self.factor}
            if self.type is RopeType.yarn:
                text.rope_parameters["original_max_position_embeddings"] = original
            if self.type is not RopeType.dynamic:  # which computes with the original length
                text.max_position_embeddings = int(original * self.factor)
        return config

    def _problems(self, config: Any) -> Iterator[str]:
        key, name, off = "model.rope.type", self.type.name, "model.rope.type=unscaled model.rope.factor=1"
        if self.type is RopeType.unscaled:
            if self.factor != 1:
                allowed = "1 with model.rope.type=unscaled, which it would not change"
                yield problem("model.rope.factor", self.factor, allowed, "model.rope.type=yarn, linear or dynamic")
            return
        if self.factor == 1:
            allowed = f"more than 1 with model.rope.type={name}: 1 changes nothing"
            yield problem("model.rope.factor", self.factor, allowed, f"model.rope.factor=2, or {off}")
        text = config.get_text_config()
        parameters = getattr(text, "rope_parameters", None)
        if not parameters:
            yield problem(key, name, f"unscaled: {config.model_type} has no rotary positions", off)
        elif "rope_type" not in parameters:
            yield problem(key, name, f"unscaled: {config.model_type} has other rotary positions in each layer", off)
        elif (own := parameters["rope_type"]) != "default":
            yield problem(key, name, f"unscaled: the positions of this model are already scaled ({own})", off)
        elif not isinstance(getattr(text, "max_position_embeddings", None), int):
            yield problem(key, name, f"unscaled: the config of {config.model_type} names no longest context", off)


def rope_problems(rope: RopeScaling, model: PreTrainedModel, context_length: int) -> Iterator[str]:
    """Yields why the scaling would change nothing in windows of this length; `model` is built with it."""
    config: Any = model.config.get_text_config()
    if rope.type is RopeType.unscaled:
        return
    if not any(getattr(module, "rope_type", None) == rope.type.name for module in model.modules()):
        allowed = f"unscaled: {type(model).__name__} does not read the setting"
        yield problem("model.rope.type", rope.type.name, allowed, "model.rope.type=unscaled model.rope.factor=1")
    elif rope.type is RopeType.dynamic and context_length <= config.max_position_embeddings:
        allowed = f"more than {config.max_position_embeddings}: up to there model.rope.type=dynamic changes nothing"
        fix = f"data.context_length={2 * config.max_position_embeddings}, or model.rope.type=unscaled"
        yield problem("data.context_length", context_length, allowed, fix)


def longer_rope(rope: RopeScaling, model: PreTrainedModel, context_length: int) -> str:
    """Settings that let the model read so many tokens, as an alternative in an error's fix; empty if there are none."""
    config: Any = model.config.get_text_config()
    if rope.type is RopeType.unscaled and not [*RopeScaling(type=RopeType.yarn, factor=2.0)._problems(model.config)]:
        return f", or model.rope.type=yarn model.rope.factor={-(-context_length // config.max_position_embeddings)}"
    if rope.type is RopeType.unscaled:
        return ""
    original = config.max_position_embeddings / (1 if rope.type is RopeType.dynamic else rope.factor)
    return f", or model.rope.factor={-(-context_length // round(original))}"
