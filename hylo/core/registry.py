"""What can be chosen by name: config dataclasses, each in the same file as what it builds.

`@register(group, name)` makes a config selectable in YAML as `/schema/<group>: <name>`. Nothing else has to be edited
when a component, a source of models or texts, or another member of a group is added: every file of its room is found.
"""

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

_REGISTERED: dict[str, dict[str, type]] = {}


def register(group: str, name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: let a config dataclass be chosen by a name in its group.

    Raises:
        ValueError: another class of the group has the name.
    """

    def store(cls: type[T]) -> type[T]:
        members = _REGISTERED.setdefault(group, {})
        if name in members and _place(members[name]) != _place(cls):
            raise ValueError(
                f"{group} {name!r} is registered twice, by {_place(members[name])} and by {_place(cls)}; rename one"
            )
        members[name] = cls
        return cls

    return store


def registered(group: str) -> dict[str, type]:
    """The config dataclasses of a group by name."""
    return dict(_REGISTERED.get(group, {}))


def groups() -> list[str]:
    """The groups that have members."""
    return list(_REGISTERED)


def name_of(group: str, cls: type) -> str:
    """The name by which a config dataclass is chosen.

    Raises:
        KeyError: it is not registered in the group.
    """
    for name, member in _REGISTERED.get(group, {}).items():
        if member is cls:
            return name
    raise KeyError(f"{cls.__qualname__} is not registered as {group}")


def import_all(package: ModuleType) -> None:
    """Import every module of a package and of the packages in it, so that each registers what it defines.

    A module whose name begins with an underscore is left to those that need it.
    """
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
