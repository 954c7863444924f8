"""Import and export of LoRA, rank-stabilized LoRA and DoRA adapters in the folder format of the `peft` library.

The folder contains adapter_config.json (the library's LoraConfig) and adapter_model.safetensors with, for each layer,
`base_model.model.<path>.lora_A.weight` [r, in], `.lora_B.weight` [out, r] and, for DoRA, `.lora_magnitude_vector`
[out]: the tensors A, B and m of hylo/adapters/low_rank.py, for Conv1D layers too. Only safetensors are read.
"""

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.adapters.component import SEPARATOR
from hylo.adapters.low_rank import LowRank, LowRankConfig, LowRankLayer, Scaling
from hylo.adapters.peft.layers import ADAPTER, LayerTuning
from hylo.adapters.peft.library import has_transposed_layers
from hylo.adapters.peft.method import PeftConfig
from hylo.core.errors import ConfigError, RecordError, problem
from hylo.models.architecture import model_context_length
from hylo.models.targets import ALL_LINEAR, linear_layers

if TYPE_CHECKING:
    from peft import LoraConfig

    from hylo.adapters.model import AdaptedModel  # circular: it imports every module of hylo.adapters

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SLOT, LIBRARY_SLOT, PREFIX = "low_rank", "peft", "base_model.model."
_KINDS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}

_EXPORTED = {"r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules", "fan_in_fan_out"}
"""Settings of the library's LoRA that do not change the form of its update."""
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules"}
_WITHOUT_EFFECT = {
    *("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size", "runtime_config"),  # belong to refused options, or only affect memory
}
_ONLY: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # the others change the base model's weights
}
"""Values that this project can express. All other options must be off."""
_OFF = (None, False, {}, [])


def export_peft(model: "AdaptedModel", folder: Path) -> None:
    """Write the adapter so that `peft.PeftModel.from_pretrained(base, folder)` gives the same model.

    Args:
        model: with only the component `low_rank`, since the library has no position bias and no landmarks, or with the
            library's own LoRA. A LoRA initialized from the weights (PiSSA, OLoRA) is written as the equivalent LoRA of
            twice the rank on the unmodified base model.
        folder: created if missing.

    Raises:
        ConfigError: the method has other components, or settings of the library's LoRA that change its form.
    """
    if isinstance(config := model.method.get(LIBRARY_SLOT), PeftConfig) and config.peft_type == "LORA":
        _export_library(model, config, folder)
        return
    low_rank, config = dict(model.slots()).get(SLOT), model.method.get(SLOT)
    others = [slot for slot in model.method if slot != SLOT]
    if others or not isinstance(config, LowRankConfig) or not isinstance(low_rank, LowRank):
        allowed = f"{SLOT} alone (LoRA, rank-stabilized LoRA, DoRA): the format has no place for anything else"
        slots = others or [f"no {SLOT}"]
        raise ConfigError(*(problem("method", slot, allowed, f"train a method of {SLOT} alone") for slot in slots))
    from peft import LoraConfig

    layers = {path: layer for path, layer in model.base.named_modules() if isinstance(layer, LowRankLayer)}
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.base.name_or_path or None,
        inference_mode=True,
        r=config.rank,
        lora_alpha=_alpha(config.alpha),
        lora_dropout=config.dropout,
        use_rslora=config.scaling is Scaling.rank_stabilized,
        use_dora=config.magnitude,
        target_modules=_names(model.base, set(layers)),
        fan_in_fan_out=any(isinstance(layer.base, Conv1D) for layer in layers.values()),
    )
    tensors = {}
    for name, tensor in low_rank.tensors().items():
        path, _, kind = name.removeprefix("layers.").rpartition(".")
        tensors[f"{PREFIX}{path}.{_KINDS[kind]}"] = tensor
    _write(model.base, folder, settings, tensors)


def _export_library(model: "AdaptedModel", config: PeftConfig, folder: Path) -> None:
    """Write the library's own LoRA: y = W x + s [B, -B0] [A; A0] x, without A0 and B0 if it starts at W."""
    tuning = dict(model.slots())[LIBRARY_SLOT]
    assert isinstance(tuning, LayerTuning), "LORA changes layers"
    wrong = sorted(config.kwargs.keys() - _EXPORTED)
    if wrong:
        key, allowed = f"method.{LIBRARY_SLOT}.kwargs", f"{', '.join(sorted(_EXPORTED))} alone"
        fix = "save it with the library itself"
        raise ConfigError(*(problem(f"{key}.{name}", config.kwargs[name], allowed, fix) for name in wrong))
    from peft import LoraConfig

    start, trained = tuning.start(), tuning.tensors()
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {path.replace(SEPARATOR, "."): layer for path, layer in tuning.layers.items()}
    for path in layers:
        A, B = (trained[f"layers.{path}.{_KINDS[kind]}"].detach() for kind in "AB")
        if start:
            A, B = torch.cat([A, start[f"{path}.A"].to(A)]), torch.cat([B, -start[f"{path}.B"].to(B)], dim=1)
        tensors |= {f"{PREFIX}{path}.{_KINDS['A']}": A, f"{PREFIX}{path}.{_KINDS['B']}": B}
    (rank,) = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(_KINDS["A"])}
    (scale,) = {layer.scaling[ADAPTER] for layer in layers.values()}
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.base.name_or_path or None,
        inference_mode=True,
        r=rank,
        lora_alpha=_alpha(scale * rank),
        lora_dropout=config.kwargs.get("lora_dropout", 0.0),
        target_modules=_names(model.base, set(layers)),
        fan_in_fan_out=has_transposed_layers(model.base),
    )
    _write(model.base, folder, settings, tensors)


def _alpha(alpha: float) -> Any:
    """Alpha as the library writes it: it is annotated as int, but fractions work."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _write(base: PreTrainedModel, folder: Path, settings: "LoraConfig", tensors: dict[str, Tensor]) -> None:
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    from transformers.conversion_mapping import get_model_conversion_mapping

    # The library takes some names, such as gate_proj, for those of experts that transformers has fused since.
    read, named = copy.deepcopy(settings), settings.target_modules
    try:
        convert_peft_config_for_transformers(read, model=base, conversions=get_model_conversion_mapping(base))
        as_they_are = read.target_modules == named
    except ValueError:  # it wants the names of everything that was fused
        as_they_are = False
    if not as_they_are:
        allowed = f"names that the library reads as they are; in {type(base).__name__} it takes some for fused experts"
        fix = "save_adapter, which loads as the same model"
        raise ConfigError(problem("target_modules", sorted(named or ()), allowed, fix))
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(flat, folder / WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(str(folder))


def import_peft(base: PreTrainedModel, folder: Path) -> "AdaptedModel":
    """Load an adapter written by the `peft` library (or `export_peft`) onto its base model, in evaluation mode.

    Raises:
        RecordError: a file is missing, damaged or a pickle, or does not fit the base model.
        ConfigError: the adapter has an option that this project cannot express; the message names it.
    """
    from hylo.adapters.model import AdaptedModel

    settings, saved = _read_settings(folder), _read_tensors(folder)
    tensors: dict[str, Tensor] = {}
    for key, tensor in saved.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_(A\.weight|B\.weight|magnitude_vector(?:\.weight)?)", key)
        if match is None:
            raise RecordError(
                f"{folder / WEIGHTS}: {key!r} is not a tensor of a LoRA or DoRA adapter for linear layers"
            )
        kind = match[2].partition(".")[0].removesuffix("_vector")
        tensors[f"{SLOT}.layers.{match[1]}.{kind}"] = tensor.float()
    paths = {name.removeprefix(f"{SLOT}.layers.").rpartition(".")[0] for name in tensors}
    _check_layers(base, settings.pop("target_modules", None), paths, folder)
    values = {
        "rank": settings.get("r", 8),
        "alpha": settings.get("lora_alpha", 8),
        "dropout": settings.get("lora_dropout", 0.0),
        "magnitude": settings.get("use_dora", False),
        "scaling": "rank_stabilized" if settings.get("use_rslora", False) else "standard",
        "target_modules": _names(base, paths),
    }
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LowRankConfig), values))
    except OmegaConfBaseException as error:
        raise RecordError(f"{folder / CONFIG}: {error.msg}") from error
    assert isinstance(config, LowRankConfig)
    model = AdaptedModel(base, {SLOT: config}, context_length=model_context_length(base) or 1, seed=0)
    try:
        model.load_adapter_state_dict(tensors, folder / WEIGHTS)
    except RecordError:
        model.detach()
        raise
    return model.eval()


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read as an adapter of the peft library: {error}") from error
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise RecordError(f"{path} names no peft_type: it is not an adapter of the peft library")
    problems = []
    for name, value in settings.items():
        if name in _ONLY:
            if not any(value is one or (isinstance(value, str) and value == one) for one in _ONLY[name]):
                allowed = ", ".join(map(repr, _ONLY[name]))
                problems.append(problem(f"{path}: {name}", value, allowed, "use the peft library itself"))
        elif name not in _READ | _WITHOUT_EFFECT and not any(value == one for one in _OFF):
            allowed = "null: this project has no such option"
            problems.append(problem(f"{path}: {name}", value, allowed, "use the peft library itself"))
    if problems:
        raise ConfigError(*problems)
    return settings


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLE).exists():
        raise RecordError(f"{folder / PICKLE} is a pickle, which can run arbitrary code; save it again as {WEIGHTS}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path} cannot be read ({error}); copy or save the adapter again") from error


def _check_layers(base: PreTrainedModel, targets: Any, paths: set[str], folder: Path) -> None:
    """Refuse tensors that do not match the layers named by the config."""
    linear = set(linear_layers(base))
    if targets == ALL_LINEAR:
        named = linear
    elif isinstance(targets, str):
        named = {path for path in linear if re.fullmatch(targets, path)}
    elif isinstance(targets, list):
        named = {path for path in linear if any(_matches(path, str(target)) for target in targets)}
    else:
        named = paths
    if unknown := sorted(paths - linear):
        raise RecordError(f"{folder / WEIGHTS}: {unknown[0]} is not a linear layer of this {type(base).__name__}")
    if differing := sorted(named ^ paths):
        where = "no tensors" if differing[0] in named else "tensors, which target_modules does not name"
        raise RecordError(
            f"{folder / WEIGHTS}: {differing[0]} has {where}; the adapter is damaged or belongs to another model"
        )


def _names(base: PreTrainedModel, paths: set[str]) -> list[str]:
    """The last parts of the paths if they match exactly these modules, else the full paths."""
    names = sorted({path.rpartition(".")[2] for path in paths})
    same = {path for path, _ in base.named_modules() if any(_matches(path, name) for name in names)} == paths
    return names if same else sorted(paths)


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")
