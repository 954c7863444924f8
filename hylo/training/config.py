"""Training and evaluation settings, and the learning-rate schedule."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from hylo.core.devices import Device, Precision, process_count
from hylo.core.errors import problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.kernels.compiled import can_compile
from hylo.training.optimizers.base import OptimizerConfig


class Kernels(Enum):
    """How layers and loss are computed; results agree up to rounding."""

    auto = "whatever is fastest here: measured once per machine, model and batch shape, then remembered"
    fused = "fused functions from hylo/kernels, where supported"
    reference = "plain unfused formulas, with torch's autograd"
    compiled = "the reference kernels, with torch.compile applied to each decoder layer"


class LRScheduler(Enum):
    """Learning-rate decay after warm-up."""

    linear = "linearly to zero"
    cosine = "to zero along half a cosine"
    constant = "none"


@register("trainer", "trainer")
@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Training length, optimization, and hardware."""

    EVALUATION: ClassVar[frozenset[str]] = frozenset(
        {"eval_batch_size", "eval_memory_gib", "precision", "device", "kernels"}
    )
    """Fields that can change the results of a model that is not trained."""
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_seconds", "save_adapter", "states_gib", "sharded"}
    )
    """Fields that change no result and are therefore not part of the fingerprint."""

    steps: int = bounded(24, ge=1)
    """Optimizer steps."""
    batch_size: int = bounded(4, ge=1)
    """Windows per forward and backward pass, summed over all processes."""
    gradient_accumulation_steps: int = bounded(1, ge=1)
    """Passes per optimizer step."""
    learning_rate: float = bounded(5e-4, gt=0, le=10)
    """Peak learning rate, for every optimizer; components multiply it by their own factors."""
    warmup_steps: int = bounded(2, ge=0)
    """Steps over which the learning rate rises linearly to its peak; less than `steps`."""
    lr_scheduler: LRScheduler = LRScheduler.linear
    """linear, cosine or constant."""
    optimizer: OptimizerConfig = MISSING
    """The optimizer: conf/trainer/optimizer/."""
    max_grad_norm: float = bounded(1.0, gt=0)
    """Gradients are clipped to this norm, taken over all trained tensors."""
    max_nonfinite_steps: int = bounded(2, ge=0)
    """Steps with a non-finite loss or gradient are skipped and counted; the run stops if there are more than this."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: uses less memory but more time."""
    eval_batch_size: int | None = bounded(None, ge=1)
    """Evaluation windows per forward pass; None: as many as fit in `eval_memory_gib`."""
    eval_memory_gib: float = bounded(1.0, gt=0)
    """Memory for the activations of an evaluation pass, in GiB."""
    precision: Precision = Precision.float32
    """float32, or bfloat16 for the base model's arithmetic."""
    device: Device = Device.auto
    """auto, cpu, cuda or mps."""
    kernels: Kernels = Kernels.auto
    """auto (the fastest here, as measured), fused, reference or compiled."""
    sharded: bool = False
    """Divide the base model's layers among the processes of `accelerate launch` (FSDP): for one that does not fit one
    GPU."""
    states_gib: float = bounded(4.0, ge=0)
    """Space in the cache, in GiB, for what the frozen layers compute for each batch. Methods that act after the final
    norm alone begin there. 0: nothing is kept."""
    checkpoint_seconds: float = bounded(60.0, gt=0)
    """Time between checkpoints from which an interrupted run can resume."""
    save_adapter: bool = True
    """Save the trained tensors with the record."""


def trainer_problems(config: TrainerConfig) -> Iterator[str]:
    """Yields a message for each conflict between settings."""
    if config.warmup_steps >= config.steps:
        allowed = f"less than trainer.steps ({config.steps})"
        yield problem(
            "trainer.warmup_steps", config.warmup_steps, allowed, f"trainer.warmup_steps={config.steps // 10}"
        )


def sharding_problems(config: TrainerConfig, *, quantized: bool, probed: bool) -> Iterator[str]:
    """Yields a message for each setting that a base model divided among processes does not allow."""
    if not config.sharded:
        return
    if process_count() == 1:
        allowed = "false with one process, which would hold everything"
        yield problem("trainer.sharded", True, allowed, "accelerate launch --num_processes 2 train.py ...")
    if config.kernels is Kernels.compiled:
        allowed = "auto, fused or reference with trainer.sharded: compiled layers were never tried there"
        yield problem("trainer.kernels", "compiled", allowed, "trainer.kernels=auto")
    if quantized:
        allowed = "false with model.quantization: packed weights are not divided"
        yield problem("trainer.sharded", True, allowed, "trainer.sharded=false, or model.quantization=none")
    if probed:
        allowed = "false with a probe, which one process asks alone"
        yield problem("trainer.sharded", True, allowed, "trainer.sharded=false, or probe=none")


def kernel_problems(config: TrainerConfig) -> Iterator[str]:
    """Yields a message if the kernels cannot be built on this machine."""
    if config.kernels is Kernels.compiled and not can_compile():
        allowed = "only with a C++ compiler (g++ or clang++, or the one that CXX names) or a GPU"
        yield problem("trainer.kernels", config.kernels.name, allowed, "trainer.kernels=fused")


def learning_rate_factor(step: int, config: TrainerConfig) -> float:
    """Fraction of the peak learning rate at a step (from 0): rises to 1 during warm-up, then decays; never zero."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    left = (config.steps - step) / (config.steps - config.warmup_steps)
    if config.lr_scheduler is LRScheduler.linear:
        return left
    return 0.5 * (1 - math.cos(math.pi * left)) if config.lr_scheduler is LRScheduler.cosine else 1.0
