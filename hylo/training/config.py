"""Settings of training and evaluation, and the schedule of the learning rate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from hylo.core.devices import Device, Precision
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.kernels.compiled import can_compile
from hylo.training.optimizers.base import OptimizerConfig


class Kernels(Enum):
    """How layers and loss are computed; the numbers agree up to rounding."""

    fused = "by the functions in hylo/kernels, where they serve"
    reference = "by the formulas as they are written, through torch's autograd"
    compiled = "the reference formulas, each decoder layer through torch.compile"


class LRScheduler(Enum):
    """Course of the learning rate after warm-up."""

    linear = "to zero in a straight line"
    cosine = "to zero along half a cosine"
    constant = "none"


@register("trainer", "trainer")
@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """How long, how fast, and on what."""

    EVALUATION: ClassVar[frozenset[str]] = frozenset(
        {"eval_batch_size", "eval_memory_gib", "precision", "device", "kernels"}
    )
    """Fields that can change the numbers of an untrained model."""
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds", "save_adapter"})
    """Fields that change no number, and so do not make another run."""

    steps: int = bounded(24, ge=1)
    """Optimizer steps."""
    batch_size: int = bounded(4, ge=1)
    """Windows a forward and backward pass, over all processes together."""
    gradient_accumulation_steps: int = bounded(1, ge=1)
    """Passes an optimizer step."""
    learning_rate: float = bounded(5e-4, gt=0, le=10)
    """Peak learning rate, of every optimizer; a component multiplies it by its own factor."""
    warmup_steps: int = bounded(2, ge=0)
    """Steps in which the learning rate rises in a straight line to its peak; less than steps."""
    lr_scheduler: LRScheduler = LRScheduler.linear
    """linear, cosine or constant."""
    optimizer: OptimizerConfig = MISSING
    """How gradients become steps: conf/trainer/optimizer/."""
    max_grad_norm: float = bounded(1.0, gt=0)
    """Gradients are scaled down to at most this norm over all trained tensors."""
    max_nonfinite_steps: int = bounded(2, ge=0)
    """Steps with a loss or gradient that is not finite are counted and skipped; one more than this stops the run."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    eval_batch_size: int | None = bounded(None, ge=1)
    """Evaluation windows a forward pass; None: as many as `eval_memory_gib` holds."""
    eval_memory_gib: float = bounded(1.0, gt=0)
    """Memory for the activations of an evaluation pass, in GiB."""
    precision: Precision = Precision.float32
    """float32, or bfloat16 for the base model's arithmetic."""
    device: Device = Device.auto
    """auto, cpu, cuda or mps."""
    kernels: Kernels = Kernels.fused
    """fused, reference or compiled."""
    checkpoint_seconds: float = bounded(60.0, gt=0)
    """Time between two states from which an interrupted run continues."""
    save_adapter: bool = True
    """Keep the trained tensors with the record."""


def trainer_problems(config: TrainerConfig) -> Iterator[str]:
    """Settings that contradict each other, as text."""
    if config.warmup_steps >= config.steps:
        allowed = f"less than trainer.steps ({config.steps})"
        yield problem(
            "trainer.warmup_steps", config.warmup_steps, allowed, f"trainer.warmup_steps={config.steps // 10}"
        )


def kernel_problems(config: TrainerConfig) -> Iterator[str]:
    """Kernels that cannot be built on this machine, as text."""
    if config.kernels is Kernels.compiled and not can_compile():
        allowed = "only with a C++ compiler (g++ or clang++, or the one that CXX names) or a GPU"
        yield problem("trainer.kernels", config.kernels.name, allowed, "trainer.kernels=fused")


def learning_rate_factor(step: int, config: TrainerConfig) -> float:
    """Share of the peak learning rate at a step (from 0): rises to 1 over the warm-up, then decays; never zero."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    left = (config.steps - step) / (config.steps - config.warmup_steps)
    if config.lr_scheduler is LRScheduler.linear:
        return left
    return 0.5 * (1 - math.cos(math.pi * left)) if config.lr_scheduler is LRScheduler.cosine else 1.0
