"""A cell's model: the base model with components and kernels, and the components' starting values."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.model import AdaptedModel, adapted
from hylo.adapters.start import load_start, save_start
from hylo.core.devices import Precision, process_count, say
from hylo.core.errors import ConfigError, problem
from hylo.data.base import Split
from hylo.kernels.compiled import can_compile, compiled_layers
from hylo.kernels.fastest import COMPILED
from hylo.kernels.frozen_states import FrozenStates
from hylo.kernels.measured import measuring
from hylo.models.architecture import hidden_size
from hylo.models.causality import mixes_samples
from hylo.models.sharding import shard, sharded_names, shared_copy
from hylo.runs.cell import Cell
from hylo.runs.config import Config
from hylo.runs.fingerprint import fingerprint
from hylo.runs.layout import ADAPTER
from hylo.runs.shared import Session
from hylo.training.config import Kernels
from hylo.training.loop import training_batches
from hylo.training.memory import gib

FIRST_BATCHES = 16
"""Number of training batches that a component may be initialized from."""


@contextmanager
def prepared(
    base: PreTrainedModel,
    config: Config,
    batches: Callable[[], list[dict[str, Tensor]]] | None = None,
    *,
    device: torch.device,
) -> Iterator[AdaptedModel]:
    """The base model with the cell's components and kernels; restored when the block ends.

    Args:
        batches: returns the model inputs of the first training steps, for components initialized from data.
        device: where it computes: the base model's device, or the one of this process's share of it.

    Raises:
        ConfigError: the cell trains on windows of several samples, which the base model would mix; or a base model is
            to be divided of which the method trains everything.
    """
    if config.components and config.data.pack_samples and mixes_samples(base):
        allowed = f"false with {type(base).__name__}, whose attention does not start again with the positions"
        raise ConfigError(problem("data.pack_samples", True, allowed, "data.pack_samples=false, or another model"))
    kernels, sharded = config.trainer.kernels, config.trainer.sharded
    with (
        compiled_layers(base) if kernels is Kernels.compiled else nullcontext(),
        adapted(
            shared_copy(base) if sharded else base,
            config.components,
            context_length=config.data.context_length,
            seed=config.seed,
            fused=kernels in (Kernels.auto, Kernels.fused),
            first_batches=batches,
        ) as model,
        # Processes that measure would wait for others to gather a layer's weights.
        fastest(model, config) if kernels is Kernels.auto and not sharded else nullcontext(),
    ):
        if sharded:
            divide(model, device)
        if kernels is Kernels.compiled:
            model.kernels["layers"] = COMPILED
        yield model


def divide(model: AdaptedModel, device: torch.device) -> None:
    """Divides the base model's layers among the processes, and moves the rest to this one's device.

    Raises:
        ConfigError: the method trains all weights of the layers, which are then whole in every process.
    """
    shard(model.base, device, whole=model.adapter_state_dict().values())
    if not (names := sharded_names(model)):
        allowed = "false with a method that trains all weights of the layers"
        raise ConfigError(problem("trainer.sharded", True, allowed, "trainer.sharded=false, or another method"))
    model.to(device)
    say(f"{len(names)} tensors of the base model are divided among {process_count()} processes")


@contextmanager
def fastest(model: AdaptedModel, config: Config) -> Iterator[None]:
    """Uses the kernels that are fastest on this machine, for the duration of the block."""
    base, trainer = model.base, config.trainer
    kind = base.device.type
    with measuring(base.device) as choices, ExitStack() as stack:
        if config.components:
            shape = (max(1, trainer.batch_size // process_count()), config.data.context_length)
            ids = torch.arange(shape[0] * shape[1], device=base.device).reshape(shape)
            ids = ids % base.config.get_text_config().vocab_size
            with torch.autocast(kind, torch.bfloat16, enabled=trainer.precision is Precision.bfloat16):
                model.choose_kernels(choices, ids, compilable=kind == "cuda" and can_compile())
            if model.kernels["layers"] == COMPILED:
                stack.enter_context(compiled_layers(base))
        yield


def frozen_states(base: PreTrainedModel, cell: Cell, session: Session, accelerator: Accelerator) -> FrozenStates | None:
    """What the cells of a base model share if their methods act after the final norm alone; None: this cell does not,
    or its batches do not fit the space for them."""
    config = cell.config
    trainer, data = config.trainer, config.data
    apart = config.components and all(part.after_final_norm for part in config.components.values())
    if not apart or accelerator.num_processes > 1:
        return None
    windows = trainer.steps * trainer.batch_size * trainer.gradient_accumulation_steps
    windows += len(session.eval_windows(data, config.model))
    size = windows * data.context_length * hidden_size(base) * base.dtype.itemsize
    budget = trainer.states_gib * 2**30
    if size > budget:
        if budget:
            say(f"hidden states are not kept: {gib(size)} are needed, trainer.states_gib allows {gib(budget)}")
        return None
    states = FrozenStates(base, fingerprint(cell.base_cell().config, session), budget)
    if states.declined:
        say(f"hidden states are not kept: {states.declined}")
        return None
    return states


def first_batches(config: Config, session: Session, device: torch.device) -> list[dict[str, Tensor]]:
    """The model inputs of the first training steps of the cell, in order."""
    windows = session.windows(config.data, config.model, Split.train)
    order = training_batches(windows, config.trainer.batch_size, seed=config.seed)
    return [batch.inputs(device) for batch in islice(order, FIRST_BATCHES)]


def begin(model: AdaptedModel, folder: Path, accelerator: Accelerator) -> None:
    """Saves the components' starting values in the adapter folder; an interrupted run resumes from those saved."""
    kept = load_start(model, folder / ADAPTER, untrained=True)
    accelerator.wait_for_everyone()  # until every process has seen that nothing was saved
    if not kept and accelerator.is_main_process:
        save_start(model, folder / ADAPTER)
