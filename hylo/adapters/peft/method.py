"""Any method of the `peft` library as a peer of this project's own: same protocol, records and tables.

`peft_type` names the method and `kwargs` are the settings of its config in the library; both are checked before
anything expensive, by a trial on a copy of the model without numbers. Layer-based methods are in
hylo/adapters/peft/layers.py, prompt-learning methods in hylo/adapters/peft/prompts.py. Forward passes are those of the
library's layers. Its training utilities are not called, so what a method does between steps does not happen: AdaLoRA
keeps its first ranks. What such a utility does by learning rates alone is a setting here: LoRA+ (arXiv 2402.12354) is
`tensor_learning_rate_multipliers`.

Step 0: exactly the base model for the types and settings that the library starts so, which are most; another function
for those in `_APART` and where a setting `init_...` is false. With `init_lora_weights` pissa or olora it is the base
model up to rounding (hylo/adapters/peft/start.py); eva reads the first batches of training (hylo/adapters/peft/eva.py).
A prefix of zeros (peft_prefix) still takes its share of every attention. The library draws from torch's global
generator; here that generator is set from the run's seed and put back, so that building depends on the seed alone.
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
from hylo.adapters.peft.library import learns_prompts, setting_problems, takes_from_inputs, takes_from_weights
from hylo.adapters.peft.prompts import VirtualTokens, make_encoder
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.models.architecture import model_context_length

_APART = {"C3A", "CARTRIDGE", "FOURIERFT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "VBLORA"}
_NEAR = {"DEFT", "FROD", "HRA", "OSF", "UNILORA"}
"""Types that compute the base layer's weight anew, up to rounding, or start with tiny updates."""


@register("component", "peft_method")
@dataclass(kw_only=True, slots=True)
class PeftConfig(ComponentConfig):
    """A method of the library and its settings."""

    exclusive: ClassVar[bool] = True

    peft_type: str = "LORA"
    """Name in the library's PeftType: LORA, VERA, IA3, PREFIX_TUNING, OFT, ..."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Settings of that type's config in the library. No target_modules: the layers that this project's methods adapt;
    for types whose definition names its layers (IA3, LN_TUNING) the library's choice."""
    tensor_learning_rate_multipliers: dict[str, float] = field(default_factory=dict)
    """By a part of a tensor's name, what its learning rate is multiplied with: {lora_B: 16.0} is LoRA+. A tensor whose
    name has several of the parts takes all of them."""

    @property
    def at_start(self) -> AtStart:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the model is at step 0."""
        if self.peft_type in _APART or any(k.startswith("init_") and v is False for k, v in self.kwargs.items()):
            return AtStart.apart
        near = self.peft_type in _NEAR or self.starts_from_weights
        return AtStart.near if near else AtStart.same

    @property
    def starts_from_weights(self) -> bool:
        """Whether tensors start as a part of the base model's weights, whatever the seed is."""
        return takes_from_weights(self.peft_type, self.kwargs)

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        wrong = list(setting_problems(key, self.peft_type, self.kwargs))
        if not wrong and learns_prompts(self.peft_type):
            wrong = list(prefix_problems(f"{key}.peft_type", self.peft_type, context.model))
        if not wrong:
            wrong = list(self._trial(key, context))
        yield from wrong

    def _trial(self, key: str, context: BuildContext) -> Iterator[str]:
        """What the library says when it is given a model without numbers."""
        try:
            made = self._make(BuildContext(outline(context.model), context.context_length, context.seed))
        except LIBRARY_ERRORS as error:
            if needs_weights(error):
                return
            reason = (str(error) or type(error).__name__).splitlines()[0]
            given = f"{key}.kwargs"
            yield problem(given, self.kwargs, f"what {self.peft_type} takes on this model: {reason}", f"{given}=...")
            return
        yield from self._multiplier_problems(key, made)
        limit = model_context_length(context.model)
        if isinstance(made, VirtualTokens) and made.length + context.context_length > limit:
            allowed = f"at most {limit - context.context_length}: {limit} positions less data.context_length"
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
        """By the closed formula where the type has a simple one; otherwise what the library makes for a copy of the
        model without numbers. The latter shows that the attached model trains all of it and nothing else, but shares
        the library's own idea of the method's size."""
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
