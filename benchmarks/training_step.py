"""One training step of hylo's adapters beside the same method of PEFT, as ratios of time and of memory.

Both sides train the same base weights on the same batch with the same optimizer, in one process, one step in turns, so
that a busy machine slows both. Time is the median step; memory is what autograd keeps for the backward pass (saved
tensors, each storage once, without parameters): unlike the process's peak it does not depend on what ran before.

    python benchmarks/training_step.py                        the default model, 4 windows of 256 tokens
    python benchmarks/training_step.py --model tiny_llama     seconds, on random weights

Numbers are of this machine and this run; they are printed, never asserted. Own design.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from hydra import initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.low_rank import LowRankConfig, Scaling
from hylo.adapters.model import AdaptedModel
from hylo.cli import compose
from hylo.config import Config
from hylo.models.architecture import default_targets
from hylo.step import causal_loss

CONF = Path(__file__).parent.parent / "conf"
METHODS = ("lora", "rslora", "dora")


def main() -> None:
    """Measure every method and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="a choice of conf/model/")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="measured steps a side, after one that is not")
    options = parser.parse_args()
    table = Table(
        title=f"{options.model}, {options.batch_size} x {options.context_length} tokens", title_justify="left"
    )
    for header in ("method", "hylo s/step", "PEFT s/step", "time ratio", "hylo MiB", "PEFT MiB", "memory ratio"):
        table.add_column(header, justify="left" if header == "method" else "right")
    for method in METHODS:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config, _ = compose([f"model={options.model}", f"method={method}"])
        shape = (options.batch_size, options.context_length)
        table.add_row(method, *compare(config, shape, options.steps, label=method))
    Console().print(table, "Ratios are hylo / PEFT: below 1.00 hylo takes less.")


def compare(config: Config, shape: tuple[int, int], steps: int, label: str) -> list[str]:
    """The table's row of a method: seconds a step and MiB of saved tensors of both sides, and their ratios."""
    ours, theirs = hylo_model(config), peft_model(config)
    ids = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    sides = [Step(model, ids) for model in (ours, theirs)]
    memory = [saved_bytes(side) for side in sides]
    seconds: list[list[float]] = [[], []]
    for number in track(range(steps + 1), description=label, transient=True):
        for side, times in zip(sides, seconds, strict=True):
            began = time.perf_counter()
            side()
            if number:  # the first step allocates the optimizer's state
                times.append(time.perf_counter() - began)
    medians = [statistics.median(times) for times in seconds]
    mebibytes = [size / 2**20 for size in memory]
    cells = [f"{medians[0]:.3f}", f"{medians[1]:.3f}", f"{medians[0] / medians[1]:.2f}"]
    return [*cells, f"{mebibytes[0]:,.0f}", f"{mebibytes[1]:,.0f}", f"{mebibytes[0] / mebibytes[1]:.2f}"]


def hylo_model(config: Config) -> nn.Module:
    """The base model with the method's components."""
    return AdaptedModel(config.model.load(), config.components, context_length=256, seed=0)


def peft_model(config: Config) -> nn.Module:
    """The same method by PEFT, on the same layers of a base model of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 reads a name that transformers 5.23 deprecates
        from peft import LoraConfig, get_peft_model

        base: PreTrainedModel = config.model.load()
        low_rank = config.components["low_rank"]
        assert isinstance(low_rank, LowRankConfig)
        settings = LoraConfig(
            r=low_rank.rank,
            lora_alpha=low_rank.alpha,  # pyright: ignore[reportArgumentType]
            use_rslora=low_rank.scaling is Scaling.rank_stabilized,
            use_dora=low_rank.magnitude,
            target_modules=low_rank.target_modules or default_targets(base),
        )
        return get_peft_model(base, settings)


class Step:
    """One optimizer step of a model on a batch."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model, self.ids = model.train(), ids
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)

    def loss(self) -> Tensor:
        """The loss of the batch, with its graph."""
        return causal_loss(self.model(input_ids=self.ids).logits, self.ids)

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def saved_bytes(step: Step) -> int:
    """Bytes that one forward pass keeps for the backward pass: every storage once, parameters and buffers left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in _state(step.model)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    unchanged: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, unchanged):
        loss = step.loss()  # held until all addresses are read, so that none is used twice
    del loss
    return sum(kept.values())


def _state(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


if __name__ == "__main__":
    main()
