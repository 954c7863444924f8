"""The folder of a saved adapter: trained tensors (safetensors), their method and base model (JSON)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.component import ComponentConfig, component_name
from hylo.core.devices import checksum
from hylo.core.errors import RecordError
from hylo.core.registry import registered
from hylo.core.schema import to_container

WEIGHTS, SETTINGS = "adapter.safetensors", "hylo_adapter.json"
EARLIER_SETTINGS = "adapter_config.json"
"""The name in adapters saved earlier. Other libraries look for their own adapters under it, in models' folders too."""


class Settings(NamedTuple):
    """What a saved adapter says about itself."""

    method: dict[str, ComponentConfig]
    context_length: int
    seed: int
    """0 for adapters saved before it was recorded."""
    base: dict[str, Any] | None
    """`base_identity` of the model that it was made for; None if it was saved before that was recorded."""


def base_identity(base: PreTrainedModel) -> dict[str, Any]:
    """What tells one base model from another: its class, and a checksum of its vectors (norms, biases).

    Vectors are cheap to read, unquantized in quantized models, and differ between models trained separately. They are
    rounded to bfloat16, so a model is the same in float32 and in bfloat16.
    """
    vectors = [p for p in base.parameters() if p.dim() == 1 and not p.is_meta]
    known = torch.cat([p.detach().to("cpu", torch.bfloat16) for p in vectors]) if vectors else None
    return {"class": type(base).__name__, "vectors": None if known is None else checksum(known)}


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    method: Mapping[str, ComponentConfig],
    *,
    context_length: int,
    seed: int,
    base: Mapping[str, Any],
) -> None:
    """Write both files; `tensors` is keyed by `slot.name`."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(flat, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "context_length": context_length,
        "seed": seed,
        "base": dict(base),
        "method": {
            slot: {"component": component_name(config)} | to_container(config) for slot, config in method.items()
        },
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The trained tensors by `slot.name`.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{folder / WEIGHTS} cannot be read ({error}); train the adapter again") from error


def read_settings(folder: Path) -> Settings:
    """What an adapter says about itself.

    Raises:
        RecordError: the file is missing, damaged, or names an unknown component.
    """
    path, earlier = folder / SETTINGS, folder / EARLIER_SETTINGS
    path = earlier if earlier.exists() and not path.exists() else path
    try:
        settings = json.loads(path.read_text())
        method = {slot: _component(dict(values)) for slot, values in settings["method"].items()}
        context_length, seed = int(settings["context_length"]), int(settings.get("seed", 0))
        if context_length < 1:
            raise ValueError(f"context_length = {context_length}")
        return Settings(method, context_length, seed, settings.get("base"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} cannot be read as an adapter of hylo: {error!r}") from error


def _component(values: dict[str, Any]) -> ComponentConfig:
    schema = registered("component")[values.pop("component")]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    assert isinstance(config, ComponentConfig)
    return config
