"""What a component of a method is, and the context it is built on.

A component is a small `nn.Module` that owns the trainable tensors of one idea and knows how to enter a base model and
leave it again without a trace. Its config, in the same file, is a dataclass registered as `component`.
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
"""Stands for the dot of a module path where torch allows no dot (keys of ModuleDict and ParameterDict)."""
_RENAMED_HOOKS = {"begin_step": "on_step_start", "before_update": "on_before_optimizer_step"}


class Component(nn.Module, ABC):
    """The trainable tensors of one idea. Only its own parameters are trained.

    `on_step_start`, `regularization`, `on_before_optimizer_step`, `learning_rate_multipliers` and `observed` are what
    training asks of a component beyond its forward pass. By default they do nothing.
    """

    replaces_modules: ClassVar[bool] = False
    """Whether `attach` puts modules of its own in the place of the base model's. Such components attach first, whatever
    the order of the slots: a hook set on a module that is replaced later would see the module without its update."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a component written for an earlier version: a hook under its old name would never be called."""
        super().__init_subclass__(**options)
        if old := _RENAMED_HOOKS.keys() & vars(cls).keys():
            raise TypeError(f"{cls.__name__}: {'; '.join(f'{name} is now {_RENAMED_HOOKS[name]}' for name in old)}")

    @abstractmethod
    def attach(self, model: PreTrainedModel) -> None:
        """Enter the base model: from now on its forward pass uses this component."""

    @abstractmethod
    def detach(self, model: PreTrainedModel) -> None:
        """Leave the base model as it was before `attach`, bit for bit."""

    def bucket_weights(self, positions: Tensor) -> Tensor | None:
        """How much each of N buckets counts for positions [...]: [..., N], rows sum to one; None without buckets."""
        return None

    def merge_refusal(self) -> str | None:
        """Why no weights of the base model can compute what the component computes; None: `merge` writes them."""
        return "nothing says which weights of the base model would compute the same"

    def merge(self, model: PreTrainedModel) -> None:
        """Leave the base model like `detach`, but with the component's function in its weights.

        Called only where `merge_refusal` is None.

        Raises:
            MergeRefused: the reason, with nothing changed.
        """
        raise MergeRefused(f"{type(self).__name__} cannot be merged: {self.merge_refusal()}")

    def tensors(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by their names in a saved adapter. Frozen tensors of the base model are not among them."""
        return {
            name.replace(SEPARATOR, "."): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def learning_rate_multipliers(self) -> dict[str, float]:
        """By tensor name, what its learning rate is multiplied with beside the component's own multiplier; else 1."""
        return {}

    def on_step_start(self, step: int, steps: int) -> None:
        """Called in training before optimizer step `step` of 0 ... steps - 1.

        What changes in the course of training must follow from these two numbers alone: a run that continues from a
        checkpoint is told nothing else.
        """

    def regularization(self) -> Tensor | None:
        """A scalar to add to the training loss (nats a token), of parameters alone; None: nothing."""
        return None

    def on_before_optimizer_step(self) -> None:
        """Called when the gradients of a step are complete and not yet clipped.

        A tensor whose gradient is set to None here does not move in this step, and its moments in AdamW neither.
        """

    def observed(self) -> dict[str, Tensor]:
        """Vectors worth following over training, by a name that ends in their unit: `boundaries (tokens)`."""
        return {}


@dataclass
class BuildContext:
    """What a component is built on: a base model, its positions, the run's length and seed, its first batches."""

    model: PreTrainedModel
    context_length: int
    """Tokens a window; the default P_max of position buckets."""
    seed: int
    first_batches: Callable[[], Sequence[dict[str, Tensor]]] | None = None
    """Makes what the base model is given in the first steps of training (input_ids, ...), for a component that starts
    from data. None where nothing is trained: tensors are read from a file then."""
    positions: Positions = field(default_factory=Positions)
    components: dict[str, Component] = field(default_factory=dict)
    """Components built so far, by slot. Those that a config `requires` come before it."""

    def parameter(
        self, name: str, shape: tuple[int, ...], init: Callable[[Tensor, torch.Generator], object]
    ) -> nn.Parameter:
        """A float32 parameter on the model's device, drawn from a generator of its own.

        The generator depends on the seed and the name alone, so two methods that share a tensor's name and shape start
        from the same draws, whatever else they contain (own design).
        """
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        tensor = torch.empty(shape, dtype=torch.float32)
        init(tensor, generator)
        return nn.Parameter(tensor.to(self.model.device))


class AtStart(Enum):
    """How an untrained component leaves the base model."""

    same = "exactly as it is"
    near = "within a few thousandths of its hidden states"
    apart = "another function; the component's docstring says how far"


@dataclass(kw_only=True, slots=True)
class ComponentConfig(ABC):
    """Settings of one component. Subclasses add their own fields."""

    requires: ClassVar[tuple[str, ...]] = ()
    """Slots of the method that must be filled for this component to mean anything."""
    exclusive: ClassVar[bool] = False
    """True where the component makes sense only as the whole method."""
    trains_base: ClassVar[bool] = False
    """True where the trained tensors are the base model's own instead of new ones."""
    at_start: ClassVar[AtStart] = AtStart.same
    """What the model is at step 0."""

    learning_rate_multiplier: float = bounded(1.0, gt=0)
    """Times trainer.learning_rate, for this component's tensors."""

    @property
    def breaks(self) -> frozenset[str]:
        """Checks of the audit that a published behaviour chosen here is known to fail. Everything else passes all."""
        return frozenset()

    @abstractmethod
    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        """Settings that cannot work on this model, as text. `context.model` may be on the meta device."""

    @abstractmethod
    def build(self, context: BuildContext) -> Component:
        """The component with its tensors at step 0, not yet attached."""

    @abstractmethod
    def parameter_count(self, context: BuildContext) -> int:
        """Number of trainable scalars by the closed formula, without building anything."""


def component_name(config: ComponentConfig) -> str:
    """The name of a component in YAML and in saved adapters."""
    return name_of("component", type(config))


def zeros(tensor: Tensor, generator: torch.Generator) -> None:
    """Initialiser: all zero."""
    tensor.zero_()


def constant(value: float) -> Callable[[Tensor, torch.Generator], object]:
    """Initialiser: every entry the same."""
    return lambda tensor, generator: tensor.fill_(value)


def normal(std: float) -> Callable[[Tensor, torch.Generator], object]:
    """Initialiser: N(0, std^2)."""
    return lambda tensor, generator: tensor.normal_(0.0, std, generator=generator)
