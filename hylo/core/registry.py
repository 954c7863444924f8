"""Lookup by group and name: configs (each in the same file as what it builds), metrics, figures.

`@register(group, name)` is all that a new member needs: every module of its package is imported (`import_all`). A
config dataclass becomes selectable in YAML as `/schema/<group>: <name>`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_REGISTERED: dict[str, dict[str, Any]] = {}


def register(group: str, name: str) -> Callable[[T], T]:
    """Decorator that registers a class or function under a name in a group.

    Raises:
        ValueError: another member of the group has this name.
    """

    def store(member: T) -> T:
        members = _REGISTERED.setdefault(group, {})
        if name in members and _place(members[name]) != _place(member):
            raise ValueError(
                f"{group} {name!r} is registered twice, by {_place(members[name])} and by {_place(member)}; rename one"
            )
        members[name] = member
        return member

    return store


def registered(group: str) -> dict[str, Any]:
    """The members of a group, by name."""
    return dict(_REGISTERED.get(group, {}))


def groups() -> list[str]:
    """The groups that have members."""
    return list(_REGISTERED)


def name_of(group: str, cls: type) -> str:
    """The name under which a class is registered in a group.

    Raises:
        KeyError: the class is not registered in the group.
    """
    for name, member in _REGISTERED.get(group, {}).items():
        if member is cls:
            return name
    raise KeyError(f"{cls.__qualname__} is not registered as {group}")


def import_all(package: ModuleType) -> None:
    """Import every module of a package and its subpackages, so that each registers what it defines.

    Modules whose names begin with an underscore are skipped; whoever needs them imports them.
    """
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)


def _place(member: Any) -> str:
    return f"{member.__module__}.{member.__qualname__}"
