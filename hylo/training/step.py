"""One optimizer step: loss, gradients, clipping, update."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hylo.adapters.model import AdaptedModel
from hylo.data.windows import Windows, next_tokens
from hylo.training.config import TrainerConfig


@dataclass(frozen=True)
class StepBatches:
    """The batches of one optimizer step, over all processes, with their token counts."""

    batches: list[Windows]
    loss_on_padding: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return sum(batch.tokens for batch in self.batches)

    @cached_property
    def targets(self) -> int:
        """Number of tokens that count in the loss."""
        return sum(batch.targets(on_padding=self.loss_on_padding) for batch in self.batches)

    @property
    def padding_targets(self) -> int:
        """Number of targets that are padding."""
        return self.targets - sum(batch.targets() for batch in self.batches) if self.loss_on_padding else 0


def update(
    model: AdaptedModel,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: StepBatches,
    accelerator: Accelerator,
    config: TrainerConfig,
) -> tuple[float, float | None, float]:
    """Takes one optimizer step; skipped if the loss or a gradient is not finite.

    Returns:
        Loss of the language model (nats per token), regularization (None if no component has one), gradient norm before
        clipping.
    """
    regularization = model.regularization()
    loss = accumulate(network, step, accelerator, model.regularization)
    model.on_before_optimizer_step()
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.max_grad_norm)
    if math.isfinite(loss) and bool(torch.isfinite(norm)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, None if regularization is None else float(regularization.detach()), float(norm)


def accumulate(
    network: nn.Module,
    step: StepBatches,
    accelerator: Accelerator,
    regularization: Callable[[], Tensor | None] = lambda: None,
) -> float:
    """Forward and backward passes over a step's batches; accumulates gradients of the mean loss plus regularization.

    The mean is over all targets of the step, so each has the same weight in whichever pass and process it occurs. A
    mean of per-pass means would give tokens of short lines more weight. NaN if the step has no targets.

    Returns:
        The mean loss, without the regularization.
    """
    processes, mine = accelerator.num_processes, accelerator.process_index
    total = 0.0
    for batch in step.batches:
        shares = [batch.take(rows) for rows in np.array_split(np.arange(len(batch)), processes)]
        targets = next_tokens(shares[mine].labels(on_padding=step.loss_on_padding), accelerator.device)
        with accelerator.autocast():
            inputs = shares[mine].inputs(accelerator.device)
            loss_sum = network(**inputs, targets=targets).sum()
        # With several processes, gradients are averaged, not summed.
        weighted = loss_sum * (processes / max(step.targets, 1))
        # In the same backward pass as the loss: with several processes, each gradient is averaged once, when complete.
        added = regularization()
        accelerator.backward(weighted if added is None else weighted + added / len(step.batches))
        gathered = accelerator.gather(loss_sum.detach())
        assert isinstance(gathered, Tensor)
        total += float(gathered.double().sum())
    return total / step.targets if step.targets else math.nan


def make_optimizer(model: AdaptedModel, config: TrainerConfig) -> torch.optim.Optimizer:
    """The configured optimizer for the model's trained tensors.

    A parameter group holds a component's tensors of one kind and learning rate: matrices decay, vectors and scalars do
    not. `peak` is the learning rate that the schedule scales.
    """
    multipliers = model.learning_rate_multipliers()
    groups = []
    for slot, tensors in model.tensors().items():
        for matrices, weight_decay in ((True, config.optimizer.weight_decay), (False, 0.0)):
            chosen = {name: tensor for name, tensor in tensors.items() if (tensor.dim() > 1) == matrices}
            for multiplier in dict.fromkeys(multipliers[slot][name] for name in chosen):
                peak = config.learning_rate * multiplier
                params = [tensor for name, tensor in chosen.items() if multipliers[slot][name] == multiplier]
                groups.append({"params": params, "peak": peak, "lr": peak, "weight_decay": weight_decay})
    return config.optimizer.build(groups)


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed for the random numbers (dropout) of one step in one process."""
    return int(np.random.SeedSequence([seed, 2, step, process]).generate_state(1)[0])
