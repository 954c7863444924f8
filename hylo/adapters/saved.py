"""The folder of a saved adapter: trained tensors (safetensors) and the method they belong to (JSON)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hylo.adapters.component import ComponentConfig, component_name
from hylo.core.errors import RecordError
from hylo.core.registry import registered
from hylo.core.schema import to_container

WEIGHTS, SETTINGS = "adapter.safetensors", "adapter_config.json"


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    method: Mapping[str, ComponentConfig],
    *,
    context_length: int,
    seed: int,
) -> None:
    """Write both files; `tensors` is keyed by `slot.name`."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(flat, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "context_length": context_length,
        "seed": seed,
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


def read_settings(folder: Path) -> tuple[dict[str, ComponentConfig], int, int]:
    """The method, context length and seed. The seed is 0 for adapters saved before it was recorded.

    Raises:
        RecordError: the file is missing, damaged, or names an unknown component.
    """
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text())
        method = {slot: _component(dict(values)) for slot, values in settings["method"].items()}
        context_length, seed = int(settings["context_length"]), int(settings.get("seed", 0))
        if context_length < 1:
            raise ValueError(f"context_length = {context_length}")
        return method, context_length, seed
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} cannot be read as an adapter of hylo: {error!r}") from error


def _component(values: dict[str, Any]) -> ComponentConfig:
    schema = registered("component")[values.pop("component")]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    assert isinstance(config, ComponentConfig)
    return config
