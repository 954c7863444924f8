"""One optimizer step: the loss of its batches, gradients, clipping, the optimizer."""

import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hylo.adapters.model import AdaptedModel
from hylo.data.windows import Windows, model_inputs, next_tokens
from hylo.training.config import TrainerConfig


def update(
    model: AdaptedModel,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    step_batches: list[Windows],
    accelerator: Accelerator,
    config: TrainerConfig,
    *,
    loss_on_padding: bool,
) -> tuple[float, float | None, float]:
    """One optimizer step; left out where the loss or a gradient is not finite.

    Returns:
        Loss of the language model (nats a token), regularization (None where no component has one), gradient norm
        before clipping.
    """
    regularization = model.regularization()
    loss = accumulate(network, step_batches, accelerator, model.regularization, loss_on_padding=loss_on_padding)
    model.on_before_optimizer_step()
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.max_grad_norm)
    if math.isfinite(loss) and bool(torch.isfinite(norm)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, None if regularization is None else float(regularization.detach()), float(norm)


def accumulate(
    network: nn.Module,
    step_batches: list[Windows],
    accelerator: Accelerator,
    regularization: Callable[[], Tensor | None] = lambda: None,
    *,
    loss_on_padding: bool = False,
) -> float:
    """Forward and backward over a step's batches; gradients add up to those of the mean loss and the regularization.

    The mean is over all targets of the step: each weighs the same in whichever pass and process it comes. A mean of
    the passes' means would weigh the tokens of short lines more. NaN where the step has no target.

    Returns:
        The mean loss, without the regularization.
    """
    processes, mine = accelerator.num_processes, accelerator.process_index
    step_targets = sum(batch.targets(on_padding=loss_on_padding) for batch in step_batches)
    total = 0.0
    for batch in step_batches:
        shares = [batch.take(rows) for rows in np.array_split(np.arange(len(batch)), processes)]
        targets = next_tokens(shares[mine].labels(on_padding=loss_on_padding), accelerator.device)
        with accelerator.autocast():
            inputs = model_inputs(shares[mine].ids, shares[mine].lengths, accelerator.device)
            loss_sum = network(**inputs, targets=targets).sum()
        # Several processes: their gradients are averaged, not added.
        weighted = loss_sum * (processes / max(step_targets, 1))
        # In one backward pass with the loss: several processes average each gradient once, when it is complete.
        added = regularization()
        accelerator.backward(weighted if added is None else weighted + added / len(step_batches))
        gathered = accelerator.gather(loss_sum.detach())
        assert isinstance(gathered, Tensor)
        total += float(gathered.double().sum())
    return total / step_targets if step_targets else math.nan


def make_optimizer(model: AdaptedModel, config: TrainerConfig) -> torch.optim.Optimizer:
    """The chosen optimizer of the model's trained tensors. A group is a component's tensors of one kind and one rate:
    matrices decay, vectors and scalars do not; `peak` is the learning rate that the schedule is a share of."""
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
    """Seed of the random numbers (dropout) of one step in one process."""
    return int(np.random.SeedSequence([seed, 2, step, process]).generate_state(1)[0])
