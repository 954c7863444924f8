"""Estimates a run's memory before it starts, from what autograd saves in a short forward pass.

    peak = resident now + activations + workspace + gradients and optimizer state of the trained tensors

Activations are measured, not guessed: the tensors that autograd saves in a pass over a few tokens, each storage counted
once, without parameters. They grow linearly with the tokens (SDPA attention keeps no scores). With gradient
checkpointing only the layers' inputs are kept, and one layer at a time is recomputed. The workspace is temporary memory
of layers and loss. Own design; the record holds the estimate next to the measured peak.
"""

import math
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from hylo.adapters.model import AdaptedModel
from hylo.core.devices import resident_bytes
from hylo.models.architecture import hidden_size, layer_count, layer_shape
from hylo.models.memory import forward_bytes_per_token
from hylo.models.sharding import held
from hylo.models.targets import linear_layers
from hylo.models.weights import is_quantized
from hylo.training.config import TrainerConfig
from hylo.training.optimizers.base import FLOAT


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """A memory estimate, in bytes."""

    resident: int
    """Used before the first step: weights, libraries, text."""
    activations: int
    """Kept for the backward pass."""
    workspace: int
    """Temporary memory, the larger of a training and an evaluation pass."""
    trained: int
    """Gradients and optimizer state of the trained tensors."""

    @property
    def peak(self) -> int:
        return self.resident + self.activations + self.workspace + self.trained

    def record(self) -> dict[str, int]:
        """The estimate's entry of the record's `training` section."""
        return {"estimated_peak_memory_bytes": self.peak}

    def beside(self, measured: int) -> dict[str, int]:
        """The memory entries of the record's `training` section."""
        return {"peak_memory_bytes": measured} | self.record()

    def __str__(self) -> str:
        parts = {"resident": self.resident, "activations": self.activations, "workspace": self.workspace}
        parts["gradients and optimizer"] = self.trained
        shown = ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
        return f"about {gib(self.peak)} ({shown})"


def estimate(
    model: AdaptedModel, probe: Tensor, config: TrainerConfig, *, length: int, eval_windows: int, processes: int
) -> MemoryEstimate:
    """Estimates the memory of a run; `probe` [B, T] holds a few tokens, `length` is the tokens per window."""
    trained = sum(tensor.numel() for tensor in model.adapter_state_dict().values())
    evaluated = min(evaluation_batch_size(model, config, length), eval_windows)
    evaluated *= length * evaluation_bytes_per_token(model)
    dense = dequantized_bytes(model)
    if not trained:
        return MemoryEstimate(resident=resident_bytes(), activations=0, workspace=evaluated + dense, trained=0)
    tokens = -(-config.batch_size // processes) * length
    always, kept = kept_bytes(model, probe[:1])
    if config.gradient_checkpointing:
        layers = layer_count(model.base)
        kept = kept / layers + (layers + 1) * hidden_size(model.base) * FLOAT
    return MemoryEstimate(
        resident=resident_bytes(),
        activations=round(always + kept * tokens),
        workspace=max(tokens * evaluation_bytes_per_token(model), evaluated) + dense,
        trained=round(trained * (FLOAT + config.optimizer.state_bytes)),
    )


def evaluation_batch_size(model: AdaptedModel, config: TrainerConfig, length: int) -> int:
    """Evaluation windows per forward pass: as configured, or as many as fit in `eval_memory_gib`; at least one."""
    if config.eval_batch_size is not None:
        return config.eval_batch_size
    return max(1, int(config.eval_memory_gib * 2**30 / (evaluation_bytes_per_token(model) * length)))


def evaluation_bytes_per_token(model: AdaptedModel) -> int:
    """Memory per token in a forward pass that saves nothing for a backward pass."""
    return forward_bytes_per_token(model.base, logits=not model.losses_without_logits)


def dequantized_bytes(model: AdaptedModel) -> int:
    """Memory of the largest quantized weight when it is dequantized, which one is at a time; 0 without any."""
    layers = [layer for layer in linear_layers(model.base).values() if is_quantized(layer)]
    return FLOAT * max((math.prod(layer_shape(layer)) for layer in layers), default=0)


def kept_bytes(model: AdaptedModel, ids: Tensor) -> tuple[float, float]:
    """Bytes that a training pass saves for its backward pass: those of any pass (changed weights), and those per token.

    Measured on ids [B, T] and on their first half. Leaves no gradients behind.
    """
    short = ids[:, : ids.shape[1] // 2]
    few, many = _saved(model, short), _saved(model, ids)
    each = (many - few) / (ids.numel() - short.numel())
    return max(0.0, many - each * ids.numel()), each


def _saved(model: AdaptedModel, ids: Tensor) -> int:
    known = {held(tensor).untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor  # kept alive until all are counted, so that no address is reused
        return tensor

    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=ids, targets=ids.roll(-1, dims=1))
    finally:
        for module, training in modes.items():
            module.training = training
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type == "cpu" else None


def gib(size: float) -> str:
    """Formats bytes as GiB."""
    return f"{size / 2**30:.1f} GiB"
