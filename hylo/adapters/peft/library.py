"""What the `peft` library offers, and checks of its settings. The library is imported lazily because that is slow."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.core.errors import problem
from hylo.models.targets import default_targets

if TYPE_CHECKING:
    from peft import PeftConfig

REFUSED = {
    "ADAPTION_PROMPT": "it puts attention modules of its own into Llama and has no tuner like the others",
    "CPT": "it needs prompt tokens labelled by type and a loss of its own",
    "MULTITASK_PROMPT_TUNING": "it needs a task id for every text",
    "POLY": "it needs a task id for every text",
    "SHADOW": "it runs a second model beside the base model",
    "XLORA": "it mixes previously trained adapters",
}
"""Types that cannot run under the common protocol, with the reason."""
OWN_TARGETS = {"IA3", "LN_TUNING", "TRAINABLE_TOKENS"}
"""Types whose definition determines the layers they change: keys, values and FFN; norms; embeddings."""
_NOT_SETTINGS = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_version"}
"""Fields of every PeftConfig that are set here or have no effect."""


START_KEY = "init_lora_weights"
"""The setting that selects the initialization of LORA."""
PISSA, OLORA = "pissa", "olora"
"""Initializations of LORA that move part of each layer's weight into A and B: see hylo/adapters/peft/start.py."""
EVA = "eva"
"""Initialization of LORA from the inputs of each layer: see hylo/adapters/peft/eva.py."""


@dataclass(frozen=True)
class Limit:
    """The supported values of a setting: those that work with no data and no tensors beyond what an adapter stores."""

    setting: str
    allowed: tuple[object, ...]
    reason: str


LIMITS: dict[str, tuple[Limit, ...]] = {
    "LORA": (
        Limit(
            START_KEY,
            (True, False, "gaussian", "orthogonal", PISSA, OLORA, EVA),
            "the others need data of their own, or keep frozen tensors that adapters do not store",
        ),
        Limit("eva_config", (None,), "ranks stay equal for all layers, and the rest is as published"),
        Limit("alora_invocation_tokens", (None,), "only the library's own model class looks for them"),
        Limit("layer_replication", (None,), "the base model keeps its layers"),
    ),
    "CARTRIDGE": (Limit("num_frozen_tokens", (0,), "adapters store only trained tensors, and these are random"),),
}


def types_known() -> list[str]:
    """Names of the supported PEFT methods."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as tuners

    return sorted(kind.value for kind in tuners if kind.value not in REFUSED)


def config_class(peft_type: str) -> "type[PeftConfig]":
    """The library's config class for a type."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs

    return configs[PeftType(peft_type)]


def tuner_class(peft_type: str) -> Any:
    """The library's tuner (layer-based types) or prompt encoder (prompt-learning types) class for a type."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as tuners

    return tuners[PeftType(peft_type)]


def learns_prompts(peft_type: str) -> bool:
    """Whether the type trains virtual tokens instead of changing layers."""
    from peft.config import PromptLearningConfig

    return issubclass(config_class(peft_type), PromptLearningConfig)


def settings(peft_type: str) -> dict[str, Any]:
    """The keyword arguments of a type's config, with their annotations."""
    cls = config_class(peft_type)
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def make_config(peft_type: str, kwargs: dict[str, Any], model: PreTrainedModel, *, transposed: bool) -> "PeftConfig":
    """The library's config for a model.

    Args:
        peft_type: the library's name of the method.
        kwargs: the user's settings. If they name no `target_modules`, hylo's defaults for the architecture are used, so
            that methods are compared on the same layers; types in OWN_TARGETS keep the library's choice.
        model: the base model.
        transposed: whether the model's linear layers store [in, out] (GPT-2's Conv1D).

    Raises:
        ValueError, TypeError, ...: the library rejects the settings.
    """
    given, names = dict(kwargs), settings(peft_type)
    if "target_modules" in names and peft_type not in OWN_TARGETS:
        given.setdefault("target_modules", default_targets(model))
    if takes_from_inputs(peft_type, given):
        given["eva_config"] = {"rho": 1.0}
    if "fan_in_fan_out" in names:
        given.setdefault("fan_in_fan_out", transposed)
    return config_class(peft_type)(task_type="CAUSAL_LM", **given)  # pyright: ignore[reportCallIssue]


def takes_from_weights(peft_type: str, kwargs: dict[str, Any]) -> bool:
    """Whether A and B are initialized with a part of each layer's weight, which is subtracted from the layer."""
    return peft_type == "LORA" and kwargs.get(START_KEY) in (PISSA, OLORA)


def takes_from_inputs(peft_type: str, kwargs: dict[str, Any]) -> bool:
    """Whether A is initialized from the inputs of each layer on training batches."""
    return peft_type == "LORA" and kwargs.get(START_KEY) == EVA


def rates_of(names: Iterable[str], rates: Mapping[str, float]) -> dict[str, float]:
    """Learning-rate multiplier of each tensor: the product of those whose key is a substring of its name."""
    return {name: math.prod(rate for part, rate in rates.items() if part in name) for name in names}


def has_transposed_layers(model: PreTrainedModel) -> bool:
    """Whether the model's linear layers are GPT-2's Conv1D."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def setting_problems(key: str, peft_type: str, kwargs: dict[str, Any]) -> Iterator[str]:
    """Yields a message for each type or setting that the library does not know, or that has the wrong type."""
    if peft_type in REFUSED:
        yield problem(f"{key}.peft_type", peft_type, f"another method: {REFUSED[peft_type]}", f"{key}.peft_type=LORA")
        return
    if peft_type not in (known := types_known()):
        yield problem(f"{key}.peft_type", peft_type, ", ".join(known), f"{key}.peft_type=LORA")
        return
    names = {name: hint for name, hint in settings(peft_type).items() if name not in _NOT_SETTINGS}
    defaults = {field.name: field.default for field in dataclasses.fields(config_class(peft_type))}
    for name, value in kwargs.items():
        where = f"{key}.kwargs.{name}"
        if name not in names:
            fix = next(iter(difflib.get_close_matches(name, names, n=1)), None)
            fix = f"{key}.kwargs.{fix}=..." if fix else f"remove {name}"
            yield problem(where, value, f"keywords of {peft_type}: {', '.join(sorted(names))}", fix)
        elif value != defaults[name] and not fits(value, names[name]):
            yield problem(where, value, _readable(names[name]), f"a value of that type, or remove {name}")
    for limit in LIMITS.get(peft_type, ()):
        value = kwargs.get(limit.setting, defaults[limit.setting])
        if value not in limit.allowed:
            allowed = f"{', '.join(map(repr, limit.allowed))}; {limit.reason}"
            fix = f"{key}.kwargs.{limit.setting}={limit.allowed[0]}"
            yield problem(f"{key}.kwargs.{limit.setting}", value, allowed, fix)


def fits(value: object, hint: Any) -> bool:
    """Whether a value from YAML (scalar, list, dict) matches a type annotation. A list also matches a set or tuple."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if (origin or hint) in (list, set, tuple):
        return isinstance(value, list) and (not arguments or all(fits(each, arguments[0]) for each in value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in [member.value for member in hint]
    if hint is bool or not isinstance(value, bool):
        return isinstance(hint, type) and isinstance(value, hint)
    return False


def _readable(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
