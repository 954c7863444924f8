"""The two sides of every comparison: a method as trained by a run of hylo, and by peft + transformers.

Both use the same weights (shared, not copied), windows, rank, alpha and layers, gradient clipping and AdamW. peft has
no counterpart of hylorada: its side is rsLoRA there, which is hylorada's low-rank part alone.
"""

import warnings
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from benchmarks.random_models import RANDOM, random_model
from benchmarks.settings import Subject, composed
from hylo.adapters.low_rank import LowRankConfig, Scaling
from hylo.adapters.model import AdaptedModel
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.data.base import Split
from hylo.data.windows import Windows, model_inputs, next_tokens, sample
from hylo.kernels.measured import measuring
from hylo.models.targets import ALL_LINEAR, default_targets
from hylo.models.weights import uses_dequantized
from hylo.runs.attach import fastest
from hylo.runs.config import Config
from hylo.runs.shared import Session
from hylo.training.loop import prepare_for_training
from hylo.training.memory import evaluation_batch_size
from hylo.training.step import StepBatches, make_optimizer, update

SESSION = Session()
PEFT_BATCH_TOKENS = 8 * 256
"""Tokens that peft's side evaluates at a time: the usual batch of 8 windows, whose logits are already large."""


@cache
def accelerator(device: Device) -> Accelerator:
    """The process's accelerator. What is narrower than float32 lies in the model's weights, not in autocast."""
    return accelerator_for(device, Precision.float32)


class Side(Protocol):
    """One library with a method attached to a model."""

    @property
    def model(self) -> nn.Module:
        """The model with the method in place."""
        ...

    def step(self, windows: Windows, *, loss_on_padding: bool = False) -> None:
        """One optimizer step on a batch."""
        ...

    def evaluate(self, windows: Windows) -> float:
        """Sum of the losses of all predicted tokens, in nats."""
        ...


class HyloSide:
    """A method as trained and evaluated by a run of hylo."""

    def __init__(self, config: Config, base: PreTrainedModel) -> None:
        self._config, self._device = config, base.device
        self.model = AdaptedModel(base, config.components, context_length=config.data.context_length, seed=0)
        with fastest(self.model, config):
            pass  # measured here, if it is not remembered, and not within a step
        self._optimizer = make_optimizer(self.model, config.trainer)
        prepare_for_training(self.model, config.trainer)
        self.model.on_step_start(0, config.trainer.steps)

    def step(self, windows: Windows, *, loss_on_padding: bool = False) -> None:
        model, trainer = self.model, self._config.trainer
        step = StepBatches([windows], loss_on_padding)
        with measuring(self._device):
            update(model, model, self._optimizer, step, accelerator(trainer.device), trainer)

    @torch.no_grad()
    def evaluate(self, windows: Windows) -> float:
        """In batches that fill a run's memory budget for evaluation."""
        size = evaluation_batch_size(self.model, self._config.trainer, windows.ids.shape[1])
        self.model.eval()
        total = 0.0
        with measuring(self._device):
            for batch in _batches(windows, size):
                targets = next_tokens(batch.labels(), self._device)
                inputs = model_inputs(batch.ids, batch.lengths, self._device)
                total += float(self.model(**inputs, targets=targets).double().sum())
        return total


class PeftSide:
    """The same with peft, and the loss of transformers."""

    def __init__(self, config: Config, base: PreTrainedModel, *, kernels: str = "plain") -> None:
        self._config, self._device = config, base.device
        use_own_products(base)
        if kernels == "liger":
            import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance(base)
        self.model = with_peft(config, base).train()
        if kernels == "compiled":
            self.model.compile()
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=config.trainer.learning_rate, weight_decay=0.0)

    def step(self, windows: Windows, *, loss_on_padding: bool = False) -> None:
        labels = torch.from_numpy(windows.labels(on_padding=loss_on_padding)).to(self._device)
        self.model(**model_inputs(windows.ids, windows.lengths, self._device), labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(self._trained, self._config.trainer.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, windows: Windows) -> float:
        """From the logits of each batch and their cross-entropy."""
        size = max(1, PEFT_BATCH_TOKENS // windows.ids.shape[1])
        self.model.eval()
        total = 0.0
        for batch in _batches(windows, size):
            logits = self.model(**model_inputs(batch.ids, batch.lengths, self._device), use_cache=False).logits
            targets = next_tokens(batch.labels(), self._device)
            total += float(F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"))
        return total


SIDES = ("hylo", "peft")


def make_side(name: str, subject: Subject, config: Config, base: PreTrainedModel) -> Side:
    """One of SIDES for a method, on a shared copy of the subject's model."""
    return HyloSide(config, base) if name == "hylo" else PeftSide(config, base, kernels=subject.peft)


def use_own_products(base: PreTrainedModel) -> None:
    """Let quantized layers compute as the library that quantized them does, and not as in a run of hylo."""
    for module in base.modules():
        if uses_dequantized(module):
            module.__class__ = type(module).__bases__[0]


def with_peft(config: Config, base: PreTrainedModel) -> nn.Module:
    """The low-rank part of a method in peft, on the same layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 reads a name that transformers 5.23 deprecates
        from peft import LoraConfig, get_peft_model

        low_rank = config.components["low_rank"]
        assert isinstance(low_rank, LowRankConfig)
        targets: Any = low_rank.target_modules or default_targets(base)
        alpha: Any = low_rank.alpha
        settings = LoraConfig(
            r=low_rank.rank,
            lora_alpha=alpha,
            use_rslora=low_rank.scaling is Scaling.rank_stabilized,
            use_dora=low_rank.magnitude,
            target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(base, settings)


@cache
def base_model(subject: Subject) -> PreTrainedModel:
    """The subject's model, loaded once per process. Attach only to a `shared_copy` of it."""
    device = torch.device(subject.device)
    if subject.model in RANDOM:
        return random_model(subject.model, device, getattr(torch, subject.dtype), quantized=subject.quantized)
    return SESSION.base(composed(subject, "none").model, device)


def text_windows(subject: Subject, config: Config, count: int) -> Windows:
    """Windows of the configuration's test text; random tokens for a model with random weights."""
    if type(config.model).pretrained:
        return sample(SESSION.windows(config.data, config.model, Split.test), count)
    length, vocabulary = config.data.context_length, base_model(subject).config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (count, length), dtype=np.int32)
    names = np.full(count, "random", dtype=object)
    return Windows(ids, np.ones((count, length - 1), int), names, np.arange(count), np.full(count, length))


def _batches(windows: Windows, size: int) -> list[Windows]:
    return [windows.take(np.arange(first, min(first + size, len(windows)))) for first in range(0, len(windows), size)]
