"""hylo: does an adapter component help, by how much, at what parameter cost, and is the effect real?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hylo.api.model import HyLoRADAConfig, HyLoRADAModel

__all__ = ["HyLoRADAConfig", "HyLoRADAModel", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the Python API lazily, so that reading the version does not import torch."""
    if name in __all__:
        from hylo.api import model as api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
