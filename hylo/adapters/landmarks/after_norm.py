"""Attaches landmarks after the final norm, whose output is the input of the output head."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hylo.adapters.component import BuildContext, ComponentConfig, component_name
from hylo.adapters.positions import Positions
from hylo.core.errors import ConfigError, problem
from hylo.models.architecture import final_norm, hidden_size


def norm_problems(key: str, config: ComponentConfig, context: BuildContext) -> Iterator[str]:
    """Yields a problem if the model has no final norm to attach landmarks to."""
    try:
        norm = final_norm(context.model)
    except ValueError as error:
        yield problem(key, component_name(config), f"a model with a final norm; {error}", f"{key}=null")
        return
    scale, width = getattr(norm, "weight", None), hidden_size(context.model)
    if isinstance(scale, Tensor) and scale.shape != (width,):
        allowed = f"a final norm of the hidden size {width}; that of {type(context.model).__name__} has {len(scale)}"
        yield problem(key, component_name(config), allowed, f"{key}=null")


class AfterNorm:
    """Replaces the output of the final norm until it is removed.

    Args:
        model: the base model.
        positions: of the current pass.
        landmark: maps the norm's output [B, T, D] to the output head's input.
    """

    def __init__(self, model: PreTrainedModel, positions: Positions, landmark: Callable[[Tensor], Tensor]) -> None:
        self._positions = positions
        self._landmark = landmark
        self._seen = 0
        self._handle: RemovableHandle = final_norm(model).register_forward_hook(self._after_norm)

    def remove(self) -> None:
        """Restore the norm."""
        self._handle.remove()

    def _after_norm(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._seen == self._positions.passes:
            allowed = (
                f"a model that uses its final norm ({type(module).__name__}) once per pass; this one uses it again"
            )
            raise ConfigError(problem("method.landmark", "after the final norm", allowed, "method.landmark=null"))
        self._seen = self._positions.passes
        return self._landmark(output)
