"""Methods of the `peft` library on a par with this project's own: same protocol, records and tables.

`peft_type` names the method and `kwargs` are the settings of its config in the library; both are checked before
anything expensive, by a dry run on a copy of the model on the meta device. Layer-based methods are in
hylo/adapters/peft/layers.py, prompt-learning methods in hylo/adapters/peft/prompts.py. Forward passes are those of the
library's layers. Its training utilities are not called, so whatever a method does between steps is skipped: AdaLoRA
keeps its initial ranks. Utilities that only change learning rates are covered by a setting: LoRA+ (arXiv 2402.12354) is
`tensor_learning_rate_multipliers`.

Step 0: exactly the base model where the library initializes it so, which is true of most types and settings; a
different function for the types in `_APART` and if an `init_...` setting is false. With `init_lora_weights` pissa or
olora it is the base model up to rounding (hylo/adapters/peft/start.py); eva reads the first training batches
(hylo/adapters/peft/eva.py). A prefix of zeros (peft_prefix) still takes its share of every attention. The library draws
from torch's global generator; here it is seeded from the run's seed and restored afterwards, so the initialization
depends on the seed alone.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hylo.adapters.attention_prefix import prefix_problems
from hylo.adapters.component import AtStart, BuildContext, Component, ComponentConfig
from hylo.adapters.peft.counts import closed_formula
from hylo.adapters.peft.eva import input_directions
from hylo.adapters.peft.layers import LIBRARY_ERRORS, LayerTuning, make_layers, needs_weights, outline
from hylo.adapters.peft.library import (
    START_KEY,
    learns_prompts,
    setting_problems,
    takes_from_inputs,
    takes_from_weights,
)
from hylo.adapters.peft.prompts import VirtualTokens, make_encoder
from hylo.core.errors import first_line, problem
from hylo.core.registry import register
from hylo.models.architecture import model_context_length
from hylo.models.weights import is_quantized

_APART = {"C3A", "CARTRIDGE", "FOURIERFT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "VBLORA"}
_NEAR = {"DEFT", "FROD", "HRA", "OSF", "UNILORA"}
"""Types that recompute the base layer's weight, up to rounding, or start with tiny updates."""


@register("component", "peft_method")
@dataclass(kw_only=True, slots=True)
class PeftConfig(ComponentConfig):
    """A method of the library and its settings."""

    exclusive: ClassVar[bool] = True

    peft_type: str = "LORA"
    """Name in the library's PeftType: LORA, VERA, IA3, PREFIX_TUNING, OFT, ..."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Settings of that type's config in the library. Without target_modules, the default targets of this project's
    methods are adapted; for types whose definition names its layers (IA3, LN_TUNING), the library's choice."""
    tensor_learning_rate_multipliers: dict[str, float] = field(default_factory=dict)
    """Learning-rate multipliers by substring of a tensor's name: {lora_B: 16.0} is LoRA+. If several match, they are
    multiplied."""

    @property
    def at_start(self) -> AtStart:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How close the model is to the base model at step 0."""
        if self.peft_type in _APART or any(k.startswith("init_") and v is False for k, v in self.kwargs.items()):
            return AtStart.apart
        near = self.peft_type in _NEAR or self.starts_from_weights
        return AtStart.near if near else AtStart.same

    @property
    def starts_from_weights(self) -> bool:
        """Whether tensors are initialized from the base model's weights, independently of the seed."""
        return takes_from_weights(self.peft_type, self.kwargs)

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        wrong = list(setting_problems(key, self.peft_type, self.kwargs))
        if not wrong and learns_prompts(self.peft_type):
            wrong = list(prefix_problems(f"{key}.peft_type", self.peft_type, context.model))
        if not wrong and self.starts_from_weights and any(map(is_quantized, context.model.modules())):
            allowed = "only on weights that are not quantized: a part of them is moved into A and B"
            wrong = [problem(f"{key}.kwargs.{START_KEY}", self.kwargs[START_KEY], allowed, "model.quantization=none")]
        if not wrong:
            wrong = list(self._trial(key, context))
        yield from wrong

    def _trial(self, key: str, context: BuildContext) -> Iterator[str]:
        """Yields what the library objects to when given a copy of the model on the meta device."""
        try:
            made = self._make(BuildContext(outline(context.model), context.context_length, context.seed))
        except LIBRARY_ERRORS as error:
            if needs_weights(error):
                return
            reason = first_line(error)
            given = f"{key}.kwargs"
            allowed = f"settings that {self.peft_type} accepts on this model: {reason}"
            yield problem(given, self.kwargs, allowed, f"{given}=...")
            return
        yield from self._multiplier_problems(key, made)
        limit = model_context_length(context.model)
        if isinstance(made, VirtualTokens) and limit and made.length + context.context_length > limit:
            allowed = f"at most {limit - context.context_length}: {limit} positions minus data.context_length"
            where = f"{key}.kwargs.num_virtual_tokens"
            yield problem(where, made.length, allowed, f"{where}=..., or a smaller data.context_length")

    def _multiplier_problems(self, key: str, made: Component) -> Iterator[str]:
        names = list(made.tensors())
        for part, multiplier in self.tensor_learning_rate_multipliers.items():
            where = f"{key}.tensor_learning_rate_multipliers.{part}"
            if not multiplier > 0:
                yield problem(where, multiplier, "a number > 0", f"{where}=1.0, or kwargs that freeze the tensor")
            if not any(part in name for name in names):
                kinds = ", ".join(sorted({re.sub(r"^.*\.(?=\w+\.weight$)|\.weight$", "", name) for name in names})[:8])
                yield problem(where, multiplier, f"a part of a tensor's name: {kinds}", f"remove {part}")

    def build(self, context: BuildContext) -> Component:
        component = self._make(context)
        if takes_from_inputs(self.peft_type, self.kwargs) and context.first_batches is not None:
            assert isinstance(component, LayerTuning), "LoRA changes layers"
            component.take_directions(input_directions(self.kwargs, context.model, context.first_batches()))
        own = {id(parameter) for parameter in context.model.parameters()}  # inside the layers, and not frozen yet
        for parameter in component.tensors().values():
            if id(parameter) not in own:
                parameter.data = parameter.data.to(context.model.device, torch.float32)
        return component

    def _make(self, context: BuildContext) -> Component:
        digest = hashlib.sha256(f"{context.seed}/peft".encode()).digest()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            rates = self.tensor_learning_rate_multipliers
            if learns_prompts(self.peft_type):
                encoder = make_encoder(self.peft_type, self.kwargs, context.model)
                return VirtualTokens(self.peft_type, encoder, context, rates)
            return LayerTuning(make_layers(self.peft_type, self.kwargs, context.model), rates)

    def parameter_count(self, context: BuildContext) -> int:
        """Number of trainable scalars, from the closed formula if the type has a simple one.

        Otherwise the library's tensors for a copy of the model on the meta device are counted. That verifies that the
        attached model trains all of them and nothing else, but not that the library's count is right.
        """
        formula = closed_formula(self.peft_type, self.kwargs, context.model)
        if formula is not None:
            return formula
        try:
            made = self._make(BuildContext(outline(context.model), context.context_length, context.seed))
        except NotImplementedError as error:
            if not needs_weights(error):
                raise
            made = self._make(context)
        own = {id(parameter) for parameter in context.model.parameters()}
        return sum(tensor.numel() for tensor in made.tensors().values() if id(tensor) not in own)
