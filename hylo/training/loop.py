"""The training loop: optimizes the adapter's tensors, with warm-up and decay, clipping and accumulation; resumable.

The loop is independent of the method and the optimizer. The random numbers of a step depend only on (seed, step), so a
resumed run draws the same numbers as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hylo.adapters.model import AdaptedModel
from hylo.core.busy import Busy
from hylo.core.devices import agreed
from hylo.core.errors import ConfigError, TrainingDiverged, problem
from hylo.core.files import finite_or_none
from hylo.core.interruption import asked_to_stop, interrupted
from hylo.core.progress import Progress
from hylo.core.registry import name_of
from hylo.data.windows import Windows, batches
from hylo.models.sharding import sharded_names
from hylo.training.checkpoint import CHECKPOINT, Checkpoint
from hylo.training.config import TrainerConfig, learning_rate_factor
from hylo.training.logs import CURVE, TRAJECTORY, Curve, Trajectory, logged_steps
from hylo.training.step import StepBatches, make_optimizer, step_seed, update

LAST = 10.0
"""Seconds of training that may be lost when the evaluation after it is interrupted."""
UNTRAINED: dict[str, Any] = {
    "optimizer": None,
    "steps": 0,
    "tokens": 0,
    "seconds": 0.0,
    "tokens_per_second": None,
    "utilization": None,
    "padding_share": None,
    "final_loss": None,
    "nonfinite_steps": 0,
    "max_loss_jump": None,
}
"""The record's `training` section for a model that was not trained."""


@dataclass
class TrainingState:
    """Training progress and running totals."""

    step: int = 0
    seconds: float = 0.0
    busy_seconds: float | None = 0.0
    tokens: int = 0
    targets: int = 0
    padding_targets: int = 0
    last_loss: float | None = None
    max_loss_jump: float | None = None
    nonfinite_steps: int = 0

    def count(self, step: StepBatches, loss: float, finite: bool, seconds: float) -> None:
        """Adds a step to the totals. A step without targets has no loss and does not count as non-finite."""
        self.step += 1
        self.tokens += step.tokens
        self.targets += step.targets
        self.padding_targets += step.padding_targets
        self.seconds += seconds
        if not finite:
            self.nonfinite_steps += step.targets > 0
            return
        if self.last_loss is not None:
            self.max_loss_jump = max(self.max_loss_jump or 0.0, loss - self.last_loss)
        self.last_loss = loss


def train(
    model: AdaptedModel,
    windows: Windows,
    config: TrainerConfig,
    accelerator: Accelerator,
    *,
    seed: int,
    folder: Path,
    label: str,
    loss_on_padding: bool = False,
    on_step: Callable[[dict[str, Any]], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains the model's components; resumes from a checkpoint in `folder` if there is one.

    Args:
        windows: training windows, [W, L].
        folder: the run's folder, for curve.jsonl, trajectory.jsonl and the checkpoint.
        label: name of the run in the progress bar.
        loss_on_padding: padding counts in the loss like other tokens.
        on_step: receives each line of curve.jsonl as it is written: step, loss, learning_rate, grad_norm, the step's
            own tokens (without padding) and seconds, and regularization if a component has one. The loss is that of
            the language model alone. Non-finite values, and the loss of a step without targets, are None.

    Returns:
        The record's `training` section: optimizer (its name), steps, tokens and tokens_per_second (without padding),
        seconds, utilization (share of them in which the device worked; None: unknown), padding_share (of the loss's
        targets), final_loss (nats per token, of the last finite step), nonfinite_steps, max_loss_jump (largest rise
        between consecutive finite steps, in nats per token).

    Raises:
        ConfigError: the windows or the number of processes do not fit the batch size.
        TrainingDiverged: more steps than allowed had a non-finite loss or gradient.
        Interrupted: a signal asked to stop; the state after the last step is saved.
    """
    check_batches(config, windows, accelerator.num_processes)
    optimizer = make_optimizer(model, config)
    checkpoint = Checkpoint(folder / CHECKPOINT, model, optimizer, every_seconds=config.checkpoint_seconds)
    main = accelerator.is_main_process
    done = TrainingState(**checkpoint.restore(logged=logged_steps(folder / CURVE)))
    if done.step and main:
        print(f"{label}: continues from step {done.step}", flush=True)
    curve = Curve(folder / CURVE, keep=done.step, write=main)
    trajectory = Trajectory(folder / TRAJECTORY, model.observed(), steps=config.steps, done=done.step, write=main)
    passes = config.gradient_accumulation_steps
    source = islice(training_batches(windows, config.batch_size, seed=seed), done.step * passes, None)
    network = replicated(model, accelerator) if accelerator.num_processes > 1 else model
    prepare_for_training(model, config)

    busy = Busy(accelerator.device, done.busy_seconds)
    with torch.random.fork_rng(), Progress(label, config.steps, done.step, main) as progress:
        while done.step < config.steps:
            began = time.perf_counter()
            busy.begin()
            torch.manual_seed(step_seed(seed, done.step, accelerator.process_index))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_factor(done.step, config)
            model.on_step_start(done.step, config.steps)
            step = StepBatches(list(islice(source, passes)), loss_on_padding)
            loss, regularization, norm = update(model, network, optimizer, step, accelerator, config)
            finite = math.isfinite(loss) and math.isfinite(norm)
            seconds = time.perf_counter() - began
            busy.end(seconds)
            done.busy_seconds = busy.seconds
            rate = config.learning_rate * learning_rate_factor(done.step, config)
            done.count(step, loss, finite, seconds)
            line = {"step": done.step, "loss": finite_or_none(loss), "learning_rate": rate}
            line |= {"grad_norm": finite_or_none(norm), "tokens": step.tokens, "seconds": round(seconds, 4)}
            if regularization is not None:
                line["regularization"] = finite_or_none(regularization)
            curve.add(line)
            trajectory.add(done.step, model.observed())
            on_step(line)
            if done.nonfinite_steps > config.max_nonfinite_steps:
                raise diverged(done, config, loss, norm)
            progress.update(done.step, loss=loss, tokens_per_second=done.tokens / done.seconds)
            stopping = done.step < config.steps and agreed(asked_to_stop(), accelerator)
            if main:
                checkpoint.save_if_due(asdict(done), now=stopping)
            if stopping:
                accelerator.wait_for_everyone()  # until the state is saved
                raise interrupted()
    if main:
        checkpoint.save_if_due(asdict(done), every=LAST)  # an interrupted evaluation must not cost the training
    model.eval()
    return {
        "optimizer": name_of("optimizer", type(config.optimizer)),
        "steps": done.step,
        "tokens": done.tokens,
        "seconds": round(done.seconds, 3),
        "tokens_per_second": round(done.tokens / done.seconds, 1),
        "utilization": None if done.busy_seconds is None else round(done.busy_seconds / done.seconds, 3),
        "padding_share": done.padding_targets / done.targets if done.targets else None,
        "final_loss": done.last_loss,
        "nonfinite_steps": done.nonfinite_steps,
        "max_loss_jump": done.max_loss_jump,
    }


def replicated(model: AdaptedModel, accelerator: Accelerator) -> nn.Module:
    """The model such that gradients of the trained tensors are averaged over all processes (DDP)."""
    # Where frozen weights are divided among processes, they must not be made alike.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded_names(model))
    return accelerator.prepare_model(model)


def training_batches(windows: Windows, batch_size: int, *, seed: int) -> Iterator[Windows]:
    """The infinite sequence of a run's batches."""
    return batches(windows, batch_size, np.random.default_rng([seed, 1]))


def prepare_for_training(model: AdaptedModel, config: TrainerConfig) -> None:
    """Sets training mode, and activation checkpointing as configured."""
    model.train()
    if config.gradient_checkpointing:
        model.base.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.base.activation_checkpointing_disable()


def check_batches(config: TrainerConfig, windows: Windows, processes: int) -> None:
    """Checks that the batch size fits the windows and processes.

    Raises:
        ConfigError: there are fewer windows than a batch needs, or the batch size is not a multiple of the processes.
    """
    if config.batch_size > len(windows):
        fix = f"trainer.batch_size={len(windows)}, or more text"
        raise ConfigError(
            problem("trainer.batch_size", config.batch_size, f"at most {len(windows)}, the training windows", fix)
        )
    if config.batch_size % processes:
        fix = f"trainer.batch_size={processes}"
        raise ConfigError(
            problem("trainer.batch_size", config.batch_size, f"a multiple of the {processes} processes", fix)
        )


def diverged(done: TrainingState, config: TrainerConfig, loss: float, norm: float) -> TrainingDiverged:
    """The error for too many non-finite steps."""
    return TrainingDiverged(
        f"step {done.step}: loss {loss:g}, gradient norm {norm:g}; "
        f"{done.nonfinite_steps} steps had a non-finite loss or gradient; "
        f"at most {config.max_nonfinite_steps} are allowed (trainer.max_nonfinite_steps). "
        f"Try a lower trainer.learning_rate (now {config.learning_rate:g}) or a longer warm-up."
    )
