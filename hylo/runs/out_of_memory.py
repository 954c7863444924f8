"""Out of memory: a clear end of one cell, after which the others still run."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hylo.core.devices import is_out_of_memory
from hylo.core.errors import OutOfMemory
from hylo.models.weights import Dtype, Quantization
from hylo.runs.config import Config
from hylo.training.memory import available_bytes, gib

LONGEST_REASON = 200
"""Characters of the library's message that are shown."""


@contextmanager
def explained(config: Config, result: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Converts any error of missing memory into one that says what was estimated and what to lower.

    Args:
        config: the cell's.
        result: the record in progress; its `training` section holds the estimate as soon as there is one.
        device: where the cell runs.

    Raises:
        OutOfMemory: the block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        estimated = result["training"].get("estimated_peak_memory_bytes")
        known = "not yet estimated" if estimated is None else f"estimated as {gib(estimated)}"
        free = f"; {gib(size)} are free" if (size := available_bytes(device)) else ""
        raise OutOfMemory(
            f"the {device.type} ran out of memory ({reason})\n"
            f"    memory:  {known}{free}\n"
            f"    fix:     {'; '.join(lower(config))}"
        ) from error


def lower(config: Config) -> Iterator[str]:
    """Yields what takes less memory, the settings that change no result first."""
    trainer, model = config.trainer, config.model
    if trainer.eval_batch_size is not None and trainer.eval_batch_size > 1:
        yield f"trainer.eval_batch_size={trainer.eval_batch_size // 2}"
    elif trainer.eval_batch_size is None:
        yield f"trainer.eval_memory_gib={trainer.eval_memory_gib / 2:g}"
    if config.workers != 1:
        yield "workers=1"
    if config.components:
        if not trainer.gradient_checkpointing:
            yield "trainer.gradient_checkpointing=true"
        if trainer.batch_size > 1:
            passes = 2 * trainer.gradient_accumulation_steps
            yield f"trainer.batch_size={trainer.batch_size // 2} trainer.gradient_accumulation_steps={passes}"
    if model.dtype is Dtype.float32:
        yield "model.dtype=bfloat16"
    if model.quantization is not Quantization.nf4:
        yield "model.quantization=nf4"
    yield f"data.context_length={config.data.context_length // 2}"


def release_memory() -> None:
    """Returns what a failed cell has left behind, so that the next one starts with all of it. Call when its error is
    gone: a traceback keeps the tensors of the functions that it went through."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
