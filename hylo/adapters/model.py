"""A base model with the components of a method attached."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import hylo.adapters
from hylo.adapters.component import BuildContext, Component, ComponentConfig, component_name
from hylo.adapters.saved import WEIGHTS, base_identity, read_settings, read_tensors, write_adapter
from hylo.core.errors import ConfigError, MergeRefused, RecordError, problem
from hylo.core.registry import import_all
from hylo.core.schema import bound_problems
from hylo.kernels.fastest import FUSED, LOSSES, REFERENCE, fastest_layers, fastest_loss, fuse
from hylo.kernels.forwards import FusedForwards
from hylo.kernels.frozen_states import FrozenStates
from hylo.kernels.head import OutputHead, token_losses
from hylo.kernels.measured import Choices
from hylo.models.causality import reads_later_tokens
from hylo.models.targets import coverage
from hylo.models.weights import scalars

import_all(hylo.adapters)

_MARK = "_hylo_adapted"
"""Attribute that marks a base model with components attached. Copies of the model carry it too."""

Method = Mapping[str, ComponentConfig]
"""A method's components by slot (low_rank, position_bias, landmark, ...). Empty: the base model."""


def method_problems(method: Method, context: BuildContext, key: str = "method") -> Iterator[str]:
    """Yields a message for every setting of a method that cannot work on this model.

    The model may be on the meta device.
    """
    for slot, config in method.items():
        for needed in config.requires:
            if needed not in method:
                allowed, fix = f"only together with {key}.{needed}", f"{key}.{slot}=null, or a method with {needed}"
                yield problem(f"{key}.{slot}", component_name(config), allowed, fix)
        if config.exclusive and len(method) > 1:
            others = ", ".join(other for other in method if other != slot)
            yield problem(f"{key}.{slot}", component_name(config), "only as the whole method", f"remove {others}")
        taken = next(other for other in method if method[other].occupies == config.occupies)
        if config.occupies and taken != slot:
            allowed = f"null beside {key}.{taken}: both change {config.occupies}"
            fix = f"{key}.{slot}=null, or {key}.{taken}=null"
            yield problem(f"{key}.{slot}", component_name(config), allowed, fix)
        yield from config.problems(f"{key}.{slot}", context)


def base_problems(base: PreTrainedModel) -> Iterator[str]:
    """Yields why nothing can be attached to this model.

    Two adapters would silently train on top of each other, and a bidirectional model would see what it predicts.
    """
    name, fix = type(base).__name__, "detach or merge the adapter, or reload the model"
    if _MARK in vars(base):
        yield problem("base_model", name, "a model that carries no adapter; this one does", fix)
    elif any(type(module).__module__.startswith("peft.") for module in base.modules()):
        yield problem("base_model", name, "a model without PEFT's layers; this one has some", fix)
    elif reads_later_tokens(base):
        allowed = "a causal model; this one reads later tokens, so it would see what it has to predict"
        yield problem("base_model", name, allowed, "a model trained to predict the next token")


class AdaptedModel(nn.Module):
    """A base model with components attached; only the components are trainable.

    Args:
        base: a causal language model from transformers. Its weights are frozen until the components are removed.
        method: the components by slot. A component is built after those it requires.
        context_length: tokens per window; the default end of the position buckets.
        seed: seed for the components' random initialization.
        fused: use the fused kernels in hylo/kernels where they apply; otherwise the reference kernels.
        first_batches: returns the model inputs of the first training steps, for components initialized from data.

    Raises:
        ConfigError: a setting is out of range or cannot work on this model, or the model already carries an adapter.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        method: Method,
        *,
        context_length: int,
        seed: int,
        fused: bool = True,
        first_batches: Callable[[], Sequence[dict[str, Tensor]]] | None = None,
    ) -> None:
        super().__init__()
        context = BuildContext(base, context_length, seed, first_batches)
        problems = [*base_problems(base), *bound_problems({"method": dict(method)}), *method_problems(method, context)]
        if problems:
            raise ConfigError(*problems)
        self.base = base
        self.method = dict(sorted(method.items(), key=lambda item: len(item[1].requires)))
        self.context_length = context_length
        self.expected_counts = {slot: config.parameter_count(context) for slot, config in self.method.items()}
        """Number of trainable scalars per slot, from each component's closed formula."""
        self.seed = seed
        self._base_identity = base_identity(base)
        for slot, config in self.method.items():
            context.components[slot] = config.build(context)
        self.components = nn.ModuleDict(context.components)
        paths = {slot: component.target_paths() for slot, component in self.slots()}
        self.coverage = {slot: coverage(base, map(base.get_submodule, found)) for slot, found in paths.items() if found}
        """Which share of the base model each component with target layers changes, by slot."""
        self._modes = [(module, module.training) for module in base.modules()]
        self._trainable = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        self._fused = FusedForwards(base) if fused else None
        self._head = OutputHead(base) if fused else None
        self.positions = context.positions
        """Of the current pass; its `reader` hears what components choose."""
        self._following = context.positions.follow(base)
        self._attached = sorted(context.components.values(), key=lambda component: not component.replaces_modules)
        for component in self._attached:
            component.attach(base)
        if self._fused is not None:
            self._fused.attach()
        vars(base)[_MARK] = True
        self.kernels: dict[str, str] = dict.fromkeys(("layers", "loss"), FUSED if fused else REFERENCE)
        """The way in which layers and loss are computed."""
        self.states: FrozenStates | None = None
        """Where losses may begin, if no component acts before the final norm; None: they begin at the embeddings."""
        self.attached = True
        """Whether the components are attached to the base model."""

    def forward(self, *args: Any, targets: Tensor | None = None, **kwargs: Any) -> Any:
        """Returns the base model's output or, given targets [B, T], the loss of each target in nats, [B, T].

        A target is the token to predict at its position. Where it is -100, the loss is 0.
        """
        if targets is None:
            return self.base(*args, **kwargs)
        with nullcontext() if self.states is None or args else self.states.of(kwargs):
            if self._head is None:
                return token_losses(self.base(*args, use_cache=False, **kwargs).logits, targets)
            return self._head.losses(targets, *args, use_cache=False, **kwargs)

    def choose_kernels(self, choices: Choices, ids: Tensor, *, compilable: bool = False) -> None:
        """Use the kernels that are fastest on this machine for batches like ids [B, T], and name them in `kernels`.

        Args:
            choices: what was measured on the machine; the rest is measured now.
            compilable: whether torch.compile is a candidate for the layers. The caller compiles them.
        """
        assert self._fused, "there is nothing to choose among reference kernels"
        assert self._head, "kernels are chosen once"
        layers = fastest_layers(self.base, self._fused, ids, choices, compilable=compilable)
        fuse(self._fused, layers)
        loss = fastest_loss(self.base, self._head, ids, choices)
        self._head.function = LOSSES[loss]
        if loss == REFERENCE:
            self._head = None
        self.kernels = {"layers": layers, "loss": loss}

    @property
    def losses_without_logits(self) -> bool:
        """Whether target losses are computed without materializing logits over the whole vocabulary."""
        return self._head is not None and not self._head.needs_logits

    @property
    def declined(self) -> str | None:
        """Why losses are computed from logits although fused kernels were requested; None: they are not."""
        return None if self._head is None else self._head.declined

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptedModel":
        """Move or convert the model; the components' tensors are moved, but stay as precise as they are.

        So `model.to(torch.bfloat16)` converts the base model alone.
        """
        base = {id(parameter) for parameter, _ in self._trainable}
        own = {id(t) for t in (*self.adapter_state_dict().values(), *self.components.buffers())} - base
        return super()._apply(lambda t: t.to(fn(t).device) if id(t) in own else fn(t), recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdaptedModel":
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(vars(self), memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled: the forwards of the base model's modules could not be loaded again.

        Raises:
            TypeError: always; it names what to save instead.
        """
        raise TypeError("a model with an adapter cannot be pickled; save the adapter (save_adapter), or its state_dict")

    def tensors(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable tensors by slot, then by name."""
        return {slot: component.tensors() for slot, component in self.slots()}

    def adapter_state_dict(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by `slot.name`, the keys used in saved adapters."""
        return {f"{slot}.{name}": tensor for slot, named in self.tensors().items() for name, tensor in named.items()}

    def parameter_counts(self) -> dict[str, Any]:
        """Scalar counts: `trainable`, `total` (trainable and frozen), and trainable `by_component`."""
        counts = {slot: sum(t.numel() for t in tensors.values()) for slot, tensors in self.tensors().items()}
        total = sum(scalars(parameter) for parameter in self.parameters())
        return {"trainable": sum(counts.values()), "total": total, "by_component": counts}

    def on_step_start(self, step: int, steps: int) -> None:
        """Notify every component that training step `step` is about to start."""
        for _, component in self.slots():
            component.on_step_start(step, steps)

    def regularization(self) -> torch.Tensor | None:
        """Sum of the components' regularization terms, a scalar; None if there are none."""
        terms = [term for _, component in self.slots() if (term := component.regularization()) is not None]
        return torch.stack(terms).sum() if terms else None

    def on_before_optimizer_step(self) -> None:
        """Let every component inspect its gradients before clipping."""
        for _, component in self.slots():
            component.on_before_optimizer_step()

    def learning_rate_multipliers(self) -> dict[str, dict[str, float]]:
        """Learning-rate multiplier of each trainable tensor, by slot, then by name."""
        return {
            slot: {
                name: self.method[slot].learning_rate_multiplier * component.learning_rate_multipliers().get(name, 1.0)
                for name in component.tensors()
            }
            for slot, component in self.slots()
        }

    def observed(self) -> dict[str, dict[str, torch.Tensor]]:
        """Vectors to track over training, by slot, then by name; slots without any are omitted."""
        found = {slot: component.observed() for slot, component in self.slots()}
        return {slot: vectors for slot, vectors in found.items() if vectors}

    def detach(self) -> PreTrainedModel:
        """Remove every component and return the base model in its original state.

        Weights, modules, hooks, training modes and requires_grad flags are restored. Does nothing if already detached.
        """
        self._leave(merging=False)
        return self.base

    def merge(self) -> PreTrainedModel:
        """Merge every component into the base model's weights and return it, a plain transformers model.

        Raises:
            MergeRefused: a component cannot be expressed as a change of weights, or the components are no longer
                attached; nothing was changed.
        """
        if not self.attached:
            raise MergeRefused("the adapter is already merged or detached\n    fix:     attach it to a model again")
        reasons = {slot: component.merge_refusal() for slot, component in self.slots()}
        if refused := [f"{slot}: {reason}" for slot, reason in reasons.items() if reason]:
            raise MergeRefused("not every component can be merged\n    " + "\n    ".join(refused))
        self._leave(merging=True)
        return self.base

    def _leave(self, *, merging: bool) -> None:
        if not self.attached:
            return
        if self._fused is not None:
            self._fused.detach()
        for component in reversed(self._attached):
            (component.merge if merging else component.detach)(self.base)
        self._following.remove()
        for module, mode in self._modes:
            module.training = mode
        for parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)
        del vars(self.base)[_MARK]
        self.attached = False

    def save(self, folder: Path) -> None:
        """Write the trained tensors (safetensors) and the method they belong to (JSON)."""
        write_adapter(
            folder,
            self.adapter_state_dict(),
            self.method,
            context_length=self.context_length,
            seed=self.seed,
            base=self._base_identity,
        )

    @classmethod
    def restore(cls, base: PreTrainedModel, folder: Path, *, other_base: bool = False) -> "AdaptedModel":
        """Load an adapter written by `save` onto the base model it was trained on.

        Args:
            base: the base model.
            folder: the adapter's folder.
            other_base: load it even if it was trained on another model, of the same shapes.

        Raises:
            RecordError: a file is missing or damaged, or the adapter does not fit the model or was trained on another
                one. The model is left unchanged.
            ConfigError: the model already carries an adapter.
        """
        method, context_length, seed, made_for = read_settings(folder)
        if made_for is not None and not other_base and made_for != (own := base_identity(base)):
            differs = "other weights" if made_for.get("class") == own["class"] else str(made_for.get("class"))
            raise RecordError(
                f"the adapter in {folder} was trained on {differs}, not on this {type(base).__name__}\n"
                f"    fix: load the model it was trained on, or say other_base=True"
            )
        if problems := [*base_problems(base)]:
            raise ConfigError(*problems)
        try:
            model = cls(base, method, context_length=context_length, seed=seed)
        except ConfigError as error:
            raise RecordError(f"the adapter in {folder} does not fit {type(base).__name__}:\n{error}") from error
        try:
            model.load(folder)
        except RecordError:
            model.detach()
            raise
        return model

    def load(self, folder: Path) -> None:
        """Load the trained tensors written by `save` into this model.

        Raises:
            RecordError: the file is missing or damaged, or a tensor is missing, unknown, or has the wrong shape.
        """
        self.load_adapter_state_dict(read_tensors(folder), folder / WEIGHTS)

    @torch.no_grad()
    def load_adapter_state_dict(self, saved: Mapping[str, Tensor], source: Path | str) -> None:
        """Copy saved values, by `slot.name`, into the trained tensors.

        Args:
            saved: values of all trained tensors.
            source: where they were read from, for error messages.

        Raises:
            RecordError: a tensor is missing, unknown, or has the wrong shape; the model is unchanged.
        """
        own = self.adapter_state_dict()
        wrong = [name for name in own.keys() | saved.keys() if name not in own or name not in saved]
        wrong += [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
        if wrong:
            raise RecordError(f"{source} does not fit this method and model: {', '.join(sorted(wrong)[:5])}")
        for name, tensor in own.items():
            tensor.copy_(saved[name])

    def slots(self) -> Iterator[tuple[str, Component]]:
        """The components by slot, in the order in which they were built."""
        for slot, component in self.components.items():
            assert isinstance(component, Component)
            yield slot, component


@contextmanager
def adapted(base: PreTrainedModel, method: Method, **settings: Any) -> Iterator[AdaptedModel]:
    """Context manager that yields an `AdaptedModel` and restores the base model on exit.

    Args:
        settings: keyword arguments of `AdaptedModel`.
    """
    model = AdaptedModel(base, method, **settings)
    try:
        yield model
    finally:
        model.detach()
