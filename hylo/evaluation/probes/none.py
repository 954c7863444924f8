"""No probe."""

from dataclasses import dataclass

from hylo.core.registry import register
from hylo.evaluation.probes.base import ProbeConfig


@register("probe", "none")
@dataclass(kw_only=True, slots=True)
class NoProbeConfig(ProbeConfig):
    """Nothing is asked, and there is nothing to set."""
