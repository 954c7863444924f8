"""`method.rank=16` for `method.low_rank.rank=16`: a key needs no slot if only one slot of the method has it."""

import dataclasses
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hylo.core.registry import registered

METHODS = Path(__file__).parents[2] / "conf" / "method"
DEFAULT = Path(__file__).parents[2] / "conf" / "config.yaml"

_OVERRIDE = re.compile(r"(?P<sign>[+~]*)method\.(?P<key>\w+)(?P<rest>[.=].*|$)", re.DOTALL)


def with_slots(overrides: Sequence[str]) -> list[str]:
    """The overrides with the slot filled in where it is unambiguous. The others are left for Hydra to explain."""
    chosen = _chosen_methods(overrides)
    return [_with_slot(text, chosen) for text in overrides]


def _with_slot(text: str, methods: list[dict[str, str]]) -> str:
    match = _OVERRIDE.fullmatch(text)
    if not match or any(match["key"] in slots for slots in methods):
        return text
    homes = [[slot for slot, name in slots.items() if match["key"] in _fields(name)] for slots in methods]
    if not homes or any(home != homes[0] for home in homes) or len(homes[0]) != 1:
        return text
    return f"{match['sign']}method.{homes[0][0]}.{match['key']}{match['rest']}"


def _chosen_methods(overrides: Sequence[str]) -> list[dict[str, str]]:
    """Components by slot for each method that the overrides select, or for the default method."""
    values = [text.removeprefix("method=") for text in overrides if text.startswith("method=")]
    names = values[-1].split(",") if values else [_default_method()]
    return [_slots(name) for name in names if name.isidentifier() and (METHODS / f"{name}.yaml").exists()]


def _default_method() -> str:
    return next(entry["method"] for entry in _defaults(DEFAULT) if isinstance(entry, dict) and "method" in entry)


def _slots(method: str) -> dict[str, str]:
    """Component names by slot, from the defaults of conf/method/<method>.yaml; later ones replace earlier ones."""
    slots: dict[str, str] = {}
    for entry in _defaults(METHODS / f"{method}.yaml"):
        if isinstance(entry, str) and entry != "_self_":
            slots |= _slots(entry)
        elif isinstance(entry, dict):
            slots |= {key.partition("@")[2]: str(name) for key, name in entry.items()}
    return slots


@cache
def _defaults(path: Path) -> list[Any]:
    """A file's defaults list; files of conf/ are read once per process."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    return content.get("defaults", []) if isinstance(content, dict) else []


def _fields(component: str) -> set[str]:
    schema = registered("component").get(component)
    return {field.name for field in dataclasses.fields(schema)} if schema else set()
