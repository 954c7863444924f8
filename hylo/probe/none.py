"""No probe."""

from dataclasses import dataclass

from hylo.probe.base import ProbeConfig
from hylo.schema import register


@register("probe", "none")
@dataclass(kw_only=True, slots=True)
class NoProbeConfig(ProbeConfig):
    """Nothing is asked, and there is nothing to set."""
