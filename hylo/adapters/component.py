"""The interface of a component, and the build context.

A component is a small `nn.Module` that owns the trainable tensors of one idea and can attach itself to a base model and
detach again without a trace. Its config, in the same file, is a dataclass registered as `component`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.positions import Positions
from hylo.core.errors import MergeRefused
from hylo.core.registry import name_of
from hylo.core.schema import bounded

SEPARATOR = "/"
"""Replaces the dots of a module path where torch does not allow them (keys of ModuleDict and ParameterDict)."""
_RENAMED_HOOKS = {"begin_step": "on_step_start", "before_update": "on_before_optimizer_step"}


class Component(nn.Module, ABC):
    """The trainable tensors of one idea. Only its own parameters are trained.

    Besides the forward pass, training calls `on_step_start`, `regularization`, `on_before_optimizer_step`,
    `learning_rate_multipliers` and `observed`. By default they do nothing.
    """

    replaces_modules: ClassVar[bool] = False
    """Whether `attach` replaces modules of the base model. Such components attach first, regardless of the order of the
    slots: a hook on a module that is replaced later would see the module without its update."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse components that define a hook under its old name, which would never be called."""
        super().__init_subclass__(**options)
        if old := _RENAMED_HOOKS.keys() & vars(cls).keys():
            raise TypeError(f"{cls.__name__}: {'; '.join(f'{name} is now {_RENAMED_HOOKS[name]}' for name in old)}")

    @abstractmethod
    def attach(self, model: PreTrainedModel) -> None:
        """Attach to the base model: from now on its forward pass uses this component."""

    @abstractmethod
    def detach(self, model: PreTrainedModel) -> None:
        """Restore the base model, bit for bit, to its state before `attach`."""

    def bucket_weights(self, positions: Tensor) -> Tensor | None:
        """Weights of the N buckets for positions [...]: [..., N], rows sum to one; None without buckets."""
        return None

    def target_paths(self) -> list[str]:
        """Paths of the base model's linear layers that the component changes; empty if it changes none of them."""
        return []

    def merge_refusal(self) -> str | None:
        """Why the component cannot be merged into the base model's weights; None: it can."""
        return "it defines no equivalent weights of the base model"

    def merge(self, model: PreTrainedModel) -> None:
        """Detach, with the component's function merged into the base model's weights.

        Called only if `merge_refusal` is None.

        Raises:
            MergeRefused: the component cannot be merged; nothing was changed.
        """
        raise MergeRefused(f"{type(self).__name__} cannot be merged: {self.merge_refusal()}")

    def tensors(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by their names in a saved adapter, without the base model's frozen tensors."""
        return {
            name.replace(SEPARATOR, "."): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def learning_rate_multipliers(self) -> dict[str, float]:
        """Per-tensor factors, by name, on top of the component's own learning-rate multiplier; 1 if not listed."""
        return {}

    def on_step_start(self, step: int, steps: int) -> None:
        """Called in training before optimizer step `step` of 0 ... steps - 1.

        Anything that changes over training must follow from these two numbers alone: they are all that a run resumed
        from a checkpoint gets.
        """

    def regularization(self) -> Tensor | None:
        """A scalar added to the training loss (nats per token), a function of parameters only; None: nothing."""
        return None

    def on_before_optimizer_step(self) -> None:
        """Called when the gradients of a step are complete but not yet clipped.

        A tensor whose gradient is set to None here is not updated in this step, nor are its AdamW moments.
        """

    def observed(self) -> dict[str, Tensor]:
        """Vectors to track over training, by a name that ends in their unit: `boundaries (tokens)`."""
        return {}


@dataclass
class BuildContext:
    """What a component is built from: base model, positions, context length, seed and first batches."""

    model: PreTrainedModel
    context_length: int
    """Tokens per window; the default P_max of position buckets."""
    seed: int
    first_batches: Callable[[], Sequence[dict[str, Tensor]]] | None = None
    """Returns the base model's inputs (input_ids, ...) for the first training steps, for components initialized from
    data. None if nothing is trained and the tensors are read from a file."""
    positions: Positions = field(default_factory=Positions)
    components: dict[str, Component] = field(default_factory=dict)
    """Components built so far, by slot. A component is built after those its config `requires`."""

    def parameter(
        self, name: str, shape: tuple[int, ...], init: Callable[[Tensor, torch.Generator], object]
    ) -> nn.Parameter:
        """A float32 parameter on the model's device, initialized with its own generator.

        The generator depends only on the seed and the name, so two methods that share a tensor's name and shape start
        from the same values, whatever else they contain (own design).
        """
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        tensor = torch.empty(shape, dtype=torch.float32)
        init(tensor, generator)
        return nn.Parameter(tensor.to(self.model.device))


class AtStart(Enum):
    """How close the model with an untrained component is to the base model."""

    same = "exactly as it is"
    near = "within a few thousandths of its hidden states"
    apart = "another function; the component's docstring says how far"


@dataclass(kw_only=True, slots=True)
class ComponentConfig(ABC):
    """Settings of one component. Subclasses add their own fields."""

    requires: ClassVar[tuple[str, ...]] = ()
    """Slots that the method must also fill."""
    exclusive: ClassVar[bool] = False
    """True if the component must be the only one in the method."""
    occupies: ClassVar[str | None] = None
    """A part of the model that only one component of a method can change; None: others do not get in its way."""
    trains_base: ClassVar[bool] = False
    """True if the trained tensors are the base model's own rather than new ones."""
    at_start: ClassVar[AtStart] = AtStart.same
    """How close the model is to the base model at step 0."""
    after_final_norm: ClassVar[bool] = False
    """True if everything before the output of the final norm is computed as by the base model."""

    learning_rate_multiplier: float = bounded(1.0, gt=0)
    """Factor on trainer.learning_rate for this component's tensors."""

    @property
    def breaks(self) -> frozenset[str]:
        """Audit checks that the published behaviour selected here is known to fail; all others must pass."""
        return frozenset()

    @abstractmethod
    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        """Yields a message for each setting that cannot work on `context.model`, which may be on the meta device."""

    @abstractmethod
    def build(self, context: BuildContext) -> Component:
        """The component with its tensors at step 0, not yet attached."""

    @abstractmethod
    def parameter_count(self, context: BuildContext) -> int:
        """Number of trainable scalars from the closed formula, without building anything."""


def component_name(config: ComponentConfig) -> str:
    """The name of a component in YAML and in saved adapters."""
    return name_of("component", type(config))


def zeros(tensor: Tensor, generator: torch.Generator) -> None:
    """Initializer: all zeros."""
    tensor.zero_()


def constant(value: float) -> Callable[[Tensor, torch.Generator], object]:
    """Initializer: constant."""
    return lambda tensor, generator: tensor.fill_(value)


def normal(std: float) -> Callable[[Tensor, torch.Generator], object]:
    """Initializer: N(0, std^2)."""
    return lambda tensor, generator: tensor.normal_(0.0, std, generator=generator)
