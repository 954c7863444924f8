"""The model of a cell: the base model with its components and kernels, and what the components begin with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.model import AdaptedModel, adapted
from hylo.adapters.start import load_start, save_start
from hylo.data.base import Split
from hylo.data.windows import model_inputs
from hylo.kernels.compiled import compiled_layers
from hylo.runs.config import Config
from hylo.runs.shared import Session
from hylo.runs.store import ADAPTER
from hylo.training.config import Kernels
from hylo.training.loop import training_batches

FIRST_BATCHES = 16
"""How many batches of training a component may start from."""


@contextmanager
def prepared(
    base: PreTrainedModel, config: Config, batches: Callable[[], list[dict[str, Tensor]]] | None = None
) -> Iterator[AdaptedModel]:
    """The base model with the cell's components and kernels; it leaves the block as it came.

    Arguments:
        batches: makes what the model is given first in training, for components that start from data.
    """
    kernels = config.trainer.kernels
    with (
        compiled_layers(base) if kernels is Kernels.compiled else nullcontext(),
        adapted(
            base,
            config.components,
            context_length=config.data.context_length,
            seed=config.seed,
            fused=kernels is Kernels.fused,
            first_batches=batches,
        ) as model,
    ):
        yield model


def first_batches(config: Config, session: Session, device: torch.device) -> list[dict[str, Tensor]]:
    """The model's inputs in the first steps of the cell's training, in its order."""
    windows = session.windows(config.data, config.model, Split.train)
    order = training_batches(windows, config.trainer.batch_size, seed=config.seed)
    return [model_inputs(batch.ids, batch.lengths, device) for batch in islice(order, FIRST_BATCHES)]


def begin(model: AdaptedModel, folder: Path, accelerator: Accelerator) -> None:
    """Keep what the components begin with beside the adapter to come; an interrupted run goes on from what it kept."""
    kept = load_start(model, folder / ADAPTER, untrained=True)
    accelerator.wait_for_everyone()  # until each process has seen that there was nothing
    if not kept and accelerator.is_main_process:
        save_start(model, folder / ADAPTER)
