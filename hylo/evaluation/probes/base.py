"""What every choice of `probe` is."""

from abc import ABC
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ProbeConfig(ABC):  # noqa: B024  nothing to implement: what is asked depends on the kind of probe
    """What is asked of a complete run. Subclasses add their settings."""
