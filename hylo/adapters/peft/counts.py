"""Closed formulas for the number of trainable scalars of the `peft` library's simpler methods.

    LORA            r (in + out) per layer                         arXiv 2106.09685
    ... use_dora    out more per layer                             arXiv 2402.09353
    VERA            r + out per layer                              arXiv 2310.11454, table 1
    IA3             out per layer; in for FFN layers               arXiv 2205.05638, section 3.3
    OFT             in (b - 1) / 2 per layer: in / b blocks of b (b - 1) / 2, for block size b    arXiv 2306.07280
    PREFIX_TUNING   2 P L H D                                      arXiv 2101.00190
    PROMPT_TUNING   P d                                            arXiv 2104.08691

P virtual tokens, L layers, H key/value heads, D head width, d hidden size.
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from hylo.models.architecture import decoder_layers, hidden_size, key_value_shape, layer_shape
from hylo.models.targets import ALL_LINEAR, default_targets, linear_layers, target_layers

Kwargs = dict[str, Any]


def closed_formula(peft_type: str, kwargs: Kwargs, model: PreTrainedModel) -> int | None:
    """The count, or None if the type has no simple formula or a setting changes it."""
    if peft_type not in _FORMULAS:
        return None
    understood, formula = _FORMULAS[peft_type]
    return formula(kwargs, model) if kwargs.keys() <= understood and _plain_targets(kwargs) else None


def _plain_targets(kwargs: Kwargs) -> bool:
    return isinstance(kwargs.get("target_modules", []), list) or kwargs["target_modules"] == ALL_LINEAR


def _shapes(kwargs: Kwargs, model: PreTrainedModel, otherwise: list[str] | None = None) -> dict[str, tuple[int, int]]:
    targets = kwargs.get("target_modules", otherwise or default_targets(model))
    layers = linear_layers(model) if targets == ALL_LINEAR else target_layers(model, targets)
    return {path: layer_shape(layer) for path, layer in layers.items()}


def _lora(kwargs: Kwargs, model: PreTrainedModel) -> int:
    r, dora = kwargs.get("r", 8), kwargs.get("use_dora", False)
    return sum(r * (fan_in + fan_out) + dora * fan_out for fan_in, fan_out in _shapes(kwargs, model).values())


def _vera(kwargs: Kwargs, model: PreTrainedModel) -> int:
    return sum(kwargs.get("r", 256) + fan_out for _, fan_out in _shapes(kwargs, model).values())


def _ia3(kwargs: Kwargs, model: PreTrainedModel) -> int | None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FFN
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS

    kind = model.config.model_type
    ffn = tuple(kwargs.get("feedforward_modules", FFN.get(kind, [])))
    shapes = _shapes(kwargs, model, TARGETS.get(kind))
    return sum(fan_in if path.endswith(ffn) else fan_out for path, (fan_in, fan_out) in shapes.items())


def _oft(kwargs: Kwargs, model: PreTrainedModel) -> int | None:
    block = kwargs.get("oft_block_size", 32)
    inputs = [fan_in for fan_in, _ in _shapes(kwargs, model).values()]
    # For layers that the block size does not divide, the library picks another one.
    return None if any(fan_in % block for fan_in in inputs) else sum(fan_in * (block - 1) // 2 for fan_in in inputs)


def _prefix(kwargs: Kwargs, model: PreTrainedModel) -> int:
    heads, width = key_value_shape(model)
    return 2 * kwargs["num_virtual_tokens"] * len(decoder_layers(model)) * heads * width


def _prompt(kwargs: Kwargs, model: PreTrainedModel) -> int:
    return kwargs["num_virtual_tokens"] * hidden_size(model)


_ON_LAYERS = {"target_modules", "fan_in_fan_out", "init_weights"}
_FORMULAS: dict[str, tuple[set[str], Callable[[Kwargs, PreTrainedModel], int | None]]] = {
    "LORA": (
        {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", *_ON_LAYERS},
        _lora,
    ),
    "VERA": ({"r", "vera_dropout", "d_initial", "projection_prng_key", "save_projection", *_ON_LAYERS}, _vera),
    "IA3": ({"feedforward_modules", "init_ia3_weights", *_ON_LAYERS}, _ia3),
    "OFT": ({"oft_block_size", "module_dropout", "coft", "eps", "use_cayley_neumann", *_ON_LAYERS}, _oft),
    "PREFIX_TUNING": ({"num_virtual_tokens", "init_weights"}, _prefix),
    "PROMPT_TUNING": ({"num_virtual_tokens", "prompt_tuning_init"}, _prompt),
}
"""By type: the settings under which the formula holds, and the formula."""
