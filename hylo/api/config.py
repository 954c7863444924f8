"""HyLoRADA's settings, under the names of its published quick start.

Each setting maps to a setting of a component in hylo/adapters, which defines its range; error messages of components
are translated to the names used here.
"""

import dataclasses
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from hylo.adapters.buckets import Bucketing
from hylo.adapters.component import ComponentConfig
from hylo.adapters.landmarks.attention import AttentionConfig
from hylo.adapters.landmarks.learnable import BoundaryStart, LearnableConfig
from hylo.adapters.landmarks.mixture import MixtureConfig
from hylo.adapters.landmarks.original import OriginalConfig
from hylo.adapters.landmarks.per_layer import PerLayerConfig
from hylo.adapters.landmarks.position_adaptive import PositionAdaptiveConfig
from hylo.adapters.low_rank import InitA, LowRankConfig, Scaling
from hylo.adapters.position_bias import PositionBiasConfig
from hylo.core.errors import ConfigError, problem
from hylo.core.registry import name_of
from hylo.core.schema import bound_problems, bounded
from hylo.models.targets import ALL_LINEAR

LandmarkConfig = MixtureConfig | OriginalConfig | PerLayerConfig | AttentionConfig

_DESIGNS: dict[str, type[LandmarkConfig]] = {
    "position_adaptive": PositionAdaptiveConfig,
    "learnable": LearnableConfig,
    "original": OriginalConfig,
    "per_layer": PerLayerConfig,
    "attention": AttentionConfig,
}
_TERMS = {
    "method.low_rank.rank": "lora_rank",
    "method.low_rank.alpha": "lora_alpha",
    "method.low_rank.dropout": "lora_dropout",
    "method.low_rank.target_modules": "target_modules",
    "[all-linear]": "['all-linear']",
    "method.position_bias.num_buckets": "position_bias_buckets",
    "method.landmark.num_landmarks": "num_landmarks",
    "method.landmark.num_buckets": "num_position_buckets",
    "method.landmark=null": "landmark_enabled=False",
    "method.landmark": "landmark_design",
} | {f"'{name_of('component', schema)}'": f"'{design}'" for design, schema in _DESIGNS.items()}
"""Names used here for components and their settings."""


def in_terms_of_config(problems: Iterable[str]) -> list[str]:
    """The same problems, in terms of `HyLoRADAConfig`'s names."""
    for term in sorted(_TERMS, key=len, reverse=True):
        problems = [text.replace(term, _TERMS[term]) for text in problems]
    return list(problems)


def _choice(default: str, *names: str) -> Any:
    return dataclasses.field(default=default, metadata={"choices": names})


@dataclass(kw_only=True, slots=True)
class HyLoRADAConfig:
    """HyLoRADA: rank-stabilized LoRA, position bias and position-adaptive landmarks; DoRA off, as published.

    Settings of a part that is switched off are validated but unused. Whatever depends on the model (largest rank,
    layer names, longest context) is checked by `HyLoRADAModel`.

    Raises:
        ConfigError (a ValueError): lists every setting that has the wrong type, is out of range, or has no effect.
    """

    lora_enabled: bool = True
    """Low-rank updates of linear layers."""
    lora_rank: int = 8
    """Rank r of the updates, at least 1; at most the smaller side of every target layer."""
    lora_alpha: float = 16.0
    """Numerator of the scaling, above 0."""
    lora_dropout: float = 0.0
    """Dropout probability on the input of the updates during training, from 0 to below 1."""
    use_rslora: bool = True
    """Scaling alpha / sqrt(r), rank-stabilized; False: alpha / r."""
    use_dora_magnitude: bool = False
    """Train DoRA's magnitude, one number per output feature."""
    init_a: str = _choice("kaiming", *InitA.__members__)
    """Initialization of the matrix A: kaiming (as in PEFT) or orthogonal (as published)."""
    target_modules: list[str] | None = None
    """Names (or path suffixes) of the layers to update; ["all-linear"]: all except the output head; None: attention's
    q, k, v and o projections, on GPT-2 c_attn and both c_proj."""
    position_bias_enabled: bool = True
    """Scale the updates by a learned function of the token's position. Requires `lora_enabled`."""
    position_bias_buckets: int = 64
    """Number of position-bias buckets, at least 2."""
    landmark_enabled: bool = True
    """Learned vectors in one of five designs."""
    landmark_design: str = _choice("position_adaptive", *_DESIGNS)
    """position_adaptive, original, per_layer or attention; learnable: position_adaptive with learnable buckets."""
    landmark_bucketing: str = _choice("fixed", "fixed", "learnable")
    """Buckets of the position_adaptive design: fixed, or learnable (the fifth design)."""
    num_landmarks: int | None = None
    """K, the number of learned vectors, at least 1; None: 8 for position-adaptive landmarks, 4 for the others."""
    num_position_buckets: int | None = None
    """N, the landmarks' position buckets, at least 2; None: 32. Only position-adaptive landmarks have buckets."""
    bucket_scale: str = _choice("logarithmic", *Bucketing.__members__)
    """logarithmic or uniform: scale of all fixed buckets, and initialization of learnable ones."""
    max_sequence_length: int | None = bounded(None, ge=2)
    """Length in tokens of the longest texts, where the position buckets end; None: the model's longest context. Set it
    to the training length: buckets beyond it learn nothing."""
    seed: int = bounded(0, ge=0)
    """Seed for the random initialization of A and the landmarks."""

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, tuple):
            self.target_modules = list(self.target_modules)
        if self.target_modules == ALL_LINEAR:  # as the peft library spells it
            self.target_modules = [ALL_LINEAR]
        if problems := [text for field in dataclasses.fields(self) for text in _type_problems(field, self)]:
            raise ConfigError(*problems)
        self.lora_alpha, self.lora_dropout = float(self.lora_alpha), float(self.lora_dropout)
        if problems := self._conflicts():
            raise ConfigError(*problems)
        problems = [*bound_problems(self), *in_terms_of_config([*bound_problems({"method": self._components()})])]
        if problems:  # a NaN is reported twice: keep the component's report, the last, which knows the range
            raise ConfigError(*{text.partition(" = ")[0]: text for text in problems}.values())

    def method(self) -> dict[str, ComponentConfig]:
        """The components that are switched on, by slot."""
        on = {
            "low_rank": self.lora_enabled,
            "position_bias": self.position_bias_enabled,
            "landmark": self.landmark_enabled,
        }
        return {slot: component for slot, component in self._components().items() if on[slot]}

    def _components(self) -> dict[str, ComponentConfig]:
        low_rank = LowRankConfig(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            scaling=Scaling.rank_stabilized if self.use_rslora else Scaling.standard,
            magnitude=self.use_dora_magnitude,
            dropout=self.lora_dropout,
            init_a=InitA[self.init_a],
            target_modules=self.target_modules,
        )
        bias = PositionBiasConfig(num_buckets=self.position_bias_buckets, bucketing=Bucketing[self.bucket_scale])
        return {"low_rank": low_rank, "position_bias": bias, "landmark": self._landmark()}

    def _landmark(self) -> LandmarkConfig:
        schema = self._landmark_schema()
        given: dict[str, Any] = {"num_landmarks": self.num_landmarks, "num_buckets": self.num_position_buckets}
        given = {name: value for name, value in given.items() if value is not None}
        scale = Bucketing[self.bucket_scale]
        if schema is PositionAdaptiveConfig:
            given["bucketing"] = scale
        elif schema is LearnableConfig:
            given["start"] = BoundaryStart.uniform if scale is Bucketing.uniform else BoundaryStart.fixed
        return schema(**given)

    def _landmark_schema(self) -> type[LandmarkConfig]:
        learnable = self.landmark_bucketing == "learnable" and self.landmark_design == "position_adaptive"
        return _DESIGNS["learnable" if learnable else self.landmark_design]

    def _conflicts(self) -> list[str]:
        """Combinations of individually valid settings that make no sense together."""
        found = []
        if not (self.lora_enabled or self.landmark_enabled):
            found.append(problem("lora_enabled", False, "True where landmark_enabled=False", "lora_enabled=True"))
        if self.position_bias_enabled and not self.lora_enabled:
            allowed = "False where lora_enabled=False: it scales the low-rank update"
            found.append(problem("position_bias_enabled", True, allowed, "position_bias_enabled=False"))
        if not issubclass(self._landmark_schema(), MixtureConfig):
            none = f"with landmark_design={self.landmark_design!r}, which has no position buckets"
            if self.landmark_bucketing == "learnable":
                fix = "landmark_design='position_adaptive'"
                found.append(problem("landmark_bucketing", "learnable", f"'fixed' {none}", fix))
            if self.num_position_buckets is not None:
                fix = "leave it out"
                found.append(problem("num_position_buckets", self.num_position_buckets, f"None {none}", fix))
        return found


_WORDS = {bool: "True or False", int: "an integer", float: "a number", list[str]: "a list of names"}


def _type_problems(field: dataclasses.Field[Any], config: HyLoRADAConfig) -> list[str]:
    value, fix = getattr(config, field.name), f"{field.name}={field.default!r} (the default)"
    if choices := field.metadata.get("choices"):
        return [] if value in choices else [problem(field.name, value, ", ".join(map(repr, choices)), fix)]
    kinds = get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    if any(_is_a(value, kind) for kind in kinds):
        return []
    allowed = " or ".join(_WORDS.get(kind, "None") for kind in kinds)
    return [problem(field.name, value, allowed, fix)]


def _is_a(value: object, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if isinstance(value, bool):  # bool is a subclass of int
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
