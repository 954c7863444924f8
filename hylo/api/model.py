"""The Python API: HyLoRADA on a transformers model, trained by any loop or by transformers' Trainer.

    from hylo import HyLoRADAConfig, HyLoRADAModel

    model = HyLoRADAModel(base_model, HyLoRADAConfig(lora_rank=8))

A thin wrapper under the published names; the work is done by `AdaptedModel` and the components in hylo/adapters.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PretrainedConfig, PreTrainedModel

from hylo.adapters.model import AdaptedModel, Method
from hylo.api.config import HyLoRADAConfig, in_terms_of_config
from hylo.core.errors import ConfigError, problem
from hylo.models.architecture import model_context_length

__all__ = ["HyLoRADAConfig", "HyLoRADAModel"]


class HyLoRADAModel(nn.Module):
    """A transformers causal language model with HyLoRADA attached; only the adapter is trained.

    The adapter is attached to the base model itself until `merge` or `detach` is called.

    Args:
        base_model: the model, with its weights, which are frozen.
        config: which parts to use, and their settings.

    Raises:
        ConfigError (a ValueError): the model cannot take this adapter, or already carries one.
    """

    def __init__(self, base_model: PreTrainedModel, config: HyLoRADAConfig) -> None:
        super().__init__()
        self.adapter = _attach(base_model, config)

    @classmethod
    def _of(cls, adapter: AdaptedModel) -> "HyLoRADAModel":
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.adapter = adapter
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output, with its loss if `labels` [B, T] are given. Takes the base model's arguments."""
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
        }
        return self.adapter(**{name: value for name, value in named.items() if value is not None}, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the base model's `generate`, with the adapter. Call `eval()` first, or dropout stays on."""
        generate: Any = self.base_model.generate
        return generate(*args, **kwargs)

    @property
    def base_model(self) -> PreTrainedModel:
        """The base model, with the adapter attached."""
        return self.adapter.base

    @property
    def method(self) -> Method:
        """The components and their settings, by slot."""
        return self.adapter.method

    @property
    def seed(self) -> int:
        """Seed of the adapter's random initialization."""
        return self.adapter.seed

    @property
    def max_sequence_length(self) -> int:
        """Where the position buckets end, in tokens."""
        return self.adapter.context_length

    # Inspection

    def count_trainable_params(self) -> int:
        """Number of trained scalars."""
        return self.adapter.parameter_counts()["trainable"]

    def count_landmark_params(self) -> int:
        """Number of trained scalars of the landmarks; 0 without landmarks."""
        return self.adapter.parameter_counts()["by_component"].get("landmark", 0)

    def print_trainable_parameters(self) -> None:
        """Print one line per component, then the total in PEFT's format."""
        counts = self.adapter.parameter_counts()
        trainable, total = counts["trainable"], counts["total"]
        for slot, count in counts["by_component"].items():
            print(f"{slot}: {count:,d}")
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    print_trainable_params = print_trainable_parameters

    def learned_boundaries(self) -> Tensor:
        """Boundaries of learnable buckets, in tokens, increasing: [num_position_buckets - 1] float32.

        Raises:
            ConfigError: the adapter has no learnable buckets.
        """
        landmark = dict(self.adapter.components.named_children()).get("landmark")
        boundaries = getattr(landmark, "learned_boundaries", None)
        if boundaries is None:
            design = None if landmark is None else type(landmark).__name__
            allowed = "one with learnable buckets"
            raise ConfigError(problem("landmark", design, allowed, "landmark_bucketing='learnable'"))
        return boundaries()

    # Saving, merging and detaching

    def save_adapter(self, folder: str | Path) -> None:
        """Write the trained tensors (safetensors) and their settings (JSON)."""
        self.adapter.save(Path(folder))

    save_pretrained = save_adapter

    @classmethod
    def from_pretrained(
        cls, base_model: PreTrainedModel, folder: str | Path, *, other_base: bool = False
    ) -> "HyLoRADAModel":
        """Load an adapter written by `save_adapter` or a run of train.py onto the model it was trained on.

        Args:
            base_model: the model.
            folder: the adapter's folder.
            other_base: load it even if it was trained on another model, of the same shapes.

        Raises:
            RecordError (a ValueError): a file is missing or damaged, or the adapter does not fit the model or was
                trained on another one.
            ConfigError (a ValueError): the model already carries an adapter, or is not a causal language model.
        """
        _check_base(base_model)
        return cls._of(AdaptedModel.restore(base_model, Path(folder), other_base=other_base))

    def merge(self) -> PreTrainedModel:
        """Merge the adapter into the base model's weights and return it, a plain transformers model.

        Raises:
            MergeRefused (a ValueError): a part cannot be expressed as a change of weights (position bias and landmarks
                depend on positions or on the text), or the adapter is no longer attached. Nothing was changed.
        """
        return self.adapter.merge()

    def detach(self) -> PreTrainedModel:
        """Remove the adapter and return the base model in its original state."""
        return self.adapter.detach()

    def export_peft(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's format.

        Raises:
            ConfigError (a ValueError): the format cannot represent the adapter.
        """
        from hylo.adapters.peft.format import export_peft

        export_peft(self.adapter, Path(folder))

    @classmethod
    def import_peft(cls, base_model: PreTrainedModel, folder: str | Path) -> "HyLoRADAModel":
        """Load an adapter in PEFT's format onto the model it was trained on."""
        _check_base(base_model)
        from hylo.adapters.peft.format import import_peft

        return cls._of(import_peft(base_model, Path(folder)))

    # Interface used by training loops

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The trained tensors, by their names in a saved adapter. The base model has its own state_dict."""
        destination = {} if destination is None else destination
        for name, tensor in self.adapter.adapter_state_dict().items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()
        return destination

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the trained tensors from a state_dict, which must hold exactly these, whatever `strict` is.

        Raises:
            RecordError: a tensor is missing, unknown, or has the wrong shape.
        """
        self.adapter.load_adapter_state_dict(state_dict, "the state")
        return _IncompatibleKeys([], [])

    @property
    def config(self) -> PretrainedConfig:
        """The base model's config."""
        return self.base_model.config

    @property
    def device(self) -> torch.device:
        """The base model's device."""
        return self.base_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The base model's dtype. The adapter is float32."""
        return self.base_model.dtype

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the base model's loss takes the number of targets in a batch; read by Trainer."""
        parameters = inspect.signature(self.base_model.forward).parameters.values()
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        return getattr(self.base_model, "accepts_loss_kwargs", takes_any)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """Recompute activations in the backward pass, using the base model's implementation."""
        self.base_model.activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        self.base_model.activation_checkpointing_disable()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """The same as `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """The same as `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()


def _check_base(base_model: PreTrainedModel) -> None:
    name = type(base_model).__name__
    if isinstance(base_model, HyLoRADAModel | AdaptedModel):
        allowed = "a model that carries no adapter; this one does"
        raise ConfigError(problem("base_model", name, allowed, "merge() or detach() it first"))
    causal = isinstance(base_model, PreTrainedModel) and base_model.can_generate()
    if not causal or base_model.config.is_encoder_decoder:
        allowed = "a causal language model of transformers (a PreTrainedModel)"
        raise ConfigError(problem("base_model", name, allowed, "AutoModelForCausalLM.from_pretrained(...)"))


def _attach(base_model: PreTrainedModel, config: HyLoRADAConfig) -> AdaptedModel:
    _check_base(base_model)
    if not isinstance(config, HyLoRADAConfig):
        raise ConfigError(problem("config", type(config).__name__, "a HyLoRADAConfig", "HyLoRADAConfig(lora_rank=8)"))
    config = dataclasses.replace(config)  # validates it again: it may have been changed since
    length = _context_length(base_model, config)
    try:
        return AdaptedModel(base_model, config.method(), context_length=length, seed=config.seed)
    except ConfigError as error:
        raise ConfigError(*in_terms_of_config(error.problems)) from error


def _context_length(base_model: PreTrainedModel, config: HyLoRADAConfig) -> int:
    length, limit = config.max_sequence_length, model_context_length(base_model)
    if length is None and limit is None:
        allowed = f"a number of tokens: {type(base_model).__name__} has no maximum context length"
        raise ConfigError(problem("max_sequence_length", None, allowed, "max_sequence_length=1024"))
    if length is not None and limit is not None and length > limit:
        allowed = f"2 to {limit}, the longest context of {type(base_model).__name__}"
        raise ConfigError(problem("max_sequence_length", length, allowed, f"max_sequence_length={limit}"))
    chosen = length or limit
    assert chosen is not None, "refused above"
    return chosen
