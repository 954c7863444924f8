"""The registered config dataclasses as Hydra's schemas."""

import dataclasses
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import hylo.launch
from hylo.core.registry import groups, import_all, registered
from hylo.runs.config import Config

import_all(hylo.launch)

_STORED: set[tuple[str, str]] = set()


def store_schemas() -> None:
    """Make every registered config selectable as `/schema/<group>: <name>`, and the root config as `/schema: root`."""
    store = ConfigStore.instance().store
    store(group="schema", name="root", node=Config)
    for group in groups():
        for name, cls in registered(group).items():
            if (group, name) in _STORED or not dataclasses.is_dataclass(cls):
                continue
            node = OmegaConf.structured(cls)
            for field in dataclasses.fields(cls):
                if field.type in (dict[str, Any], dict[str, float]):
                    OmegaConf.set_struct(node[field.name], False)  # free keywords need no + on the command line
            store(group=f"schema/{group}", name=name, node=node)
            _STORED.add((group, name))
