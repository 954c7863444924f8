"""What is found by name in its group: configs, each in the same file as what it builds, metrics, figures.

`@register(group, name)` is all that a new member needs: every file of its room is found (`import_all`). A config
dataclass becomes selectable in YAML as `/schema/<group>: <name>`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_REGISTERED: dict[str, dict[str, Any]] = {}


def register(group: str, name: str) -> Callable[[T], T]:
    """Decorator: let a class or function be found by a name in its group.

    Raises:
        ValueError: another member of the group has the name.
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
    """The members of a group by name."""
    return dict(_REGISTERED.get(group, {}))


def groups() -> list[str]:
    """The groups that have members."""
    return list(_REGISTERED)


def name_of(group: str, cls: type) -> str:
    """The name of a class in its group.

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


def _place(member: Any) -> str:
    return f"{member.__module__}.{member.__qualname__}"
