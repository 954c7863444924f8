"""Typed configuration: bounds of fields and their validation."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hylo.core.errors import problem


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Closed (`ge`, `le`) and open (`gt`, `lt`) limits of a number."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def allows(self, value: float) -> bool:
        return math.isfinite(value) and all(
            end is None or test(value, end)
            for end, test in (
                (self.ge, lambda v, e: v >= e),
                (self.gt, lambda v, e: v > e),
                (self.le, lambda v, e: v <= e),
                (self.lt, lambda v, e: v < e),
            )
        )

    def __str__(self) -> str:
        ends = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        limits = " and ".join(f"{sign} {end:g}" for sign, end in ends if end is not None)
        return f"a number {limits}" if limits else "a finite number"


def bounded(default: Any = dataclasses.MISSING, **ends: float) -> Any:
    """A dataclass field whose number must lie in a range, for example `rank: int = bounded(8, ge=1)`."""
    return dataclasses.field(default=default, metadata={"bounds": Bounds(**ends)})


def bound_problems(node: Any, key: str = "") -> Iterator[str]:
    """Problem texts for all out-of-bounds numbers in a tree of config dataclasses, dicts and lists.

    A float without declared bounds must still be finite: NaN and infinity are never valid settings.
    """
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        for field in dataclasses.fields(node):
            child, child_key = getattr(node, field.name), f"{key}.{field.name}" if key else field.name
            bounds = field.metadata.get("bounds", Bounds())
            if isinstance(child, int | float) and not isinstance(child, bool) and not bounds.allows(child):
                default = field.default
                fix = f"{child_key}={default} (the default)" if isinstance(default, int | float) else "a value in range"
                yield problem(child_key, child, str(bounds), fix)
            else:
                yield from bound_problems(child, child_key)
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from bound_problems(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from bound_problems(child, f"{key}[{index}]")
    elif isinstance(node, float) and not math.isfinite(node):
        yield problem(key, node, str(Bounds()), "a finite number")


def number_at(node: Any, key: str) -> tuple[float, Bounds] | None:
    """The float at a dotted key in a tree of config dataclasses and dicts, and its bounds.

    Returns:
        None if the tree has no such key or holds no float there.
    """
    bounds = Bounds()
    for part in key.split("."):
        if dataclasses.is_dataclass(node) and part in (
            fields := {each.name: each for each in dataclasses.fields(node)}
        ):
            bounds, node = fields[part].metadata.get("bounds", Bounds()), getattr(node, part)
        elif isinstance(node, dict) and part in node:
            bounds, node = Bounds(), node[part]
        else:
            return None
    return (node, bounds) if isinstance(node, float) else None


def number_range(bounds: Bounds) -> tuple[float, float]:
    """The lowest and highest number that the bounds allow; beside an open limit, the next representable float."""
    above = None if bounds.gt is None else math.nextafter(bounds.gt, math.inf)
    below = None if bounds.lt is None else math.nextafter(bounds.lt, -math.inf)
    return (
        max((end for end in (bounds.ge, above) if end is not None), default=-math.inf),
        min((end for end in (bounds.le, below) if end is not None), default=math.inf),
    )


def to_container(node: Any) -> Any:
    """A config as dicts, lists and scalars, with enums by name: for JSON, YAML and hashes."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {item.name: to_container(getattr(node, item.name)) for item in dataclasses.fields(node)}
    if isinstance(node, dict):
        return {str(key): to_container(value) for key, value in node.items()}
    if isinstance(node, list):
        return [to_container(value) for value in node]
    return node.name if isinstance(node, Enum) else node
