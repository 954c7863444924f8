"""No probe."""

from dataclasses import dataclass

from hylo.core.registry import register
from hylo.evaluation.probes.base import ProbeChoice


@register("probe", "none")
@dataclass(kw_only=True, slots=True)
class NoProbeConfig(ProbeChoice):
    """No probe, no settings."""
