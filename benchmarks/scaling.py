"""How the cost grows: with the context length, with the rank, and with the number of cells in one call of train.py."""

from collections.abc import Iterator

from benchmarks.alone import alone
from benchmarks.results import Row, measured
from benchmarks.scripts import Inputs, hylo_seconds, peft_seconds, prepared
from benchmarks.settings import Settings, Shape
from benchmarks.sides import base_model
from benchmarks.steps import LORA, step_seconds
from hylo.models.architecture import hidden_size, model_context_length

PART = "scaling"
TOKENS = 2048
LENGTHS = (128, 256, 512, 1024, 2048)
RANKS = (4, 8, 16, 32, 64)
RANK_SHAPE = Shape(4, 256)
CELLS = ("lora", "rslora", "dora")
CELL_STEPS, CELL_EVAL_WINDOWS = 2, 4


def rows(settings: Settings) -> Iterator[Row]:
    """Rows by context length, rank and number of cells, all with LoRA or a variant of it."""
    yield from contexts(settings)
    yield from ranks(settings)
    if settings.subject.whole_programs:
        with prepared(settings.subject) as inputs:
            yield from cells(inputs)


def contexts(settings: Settings) -> Iterator[Row]:
    """Seconds per step at a constant number of tokens, in longer and fewer windows."""
    longest = model_context_length(base_model(settings.subject))
    for length in (each for each in LENGTHS if longest is None or each <= longest):
        seconds, _ = alone(step_seconds, settings.subject, LORA, Shape(TOKENS // length, length), settings.rounds)
        yield measured(PART, f"context {length}", "seconds_per_step", *seconds.values())


def ranks(settings: Settings) -> Iterator[Row]:
    """Seconds per step of one shape, by rank."""
    width = hidden_size(base_model(settings.subject))
    for rank in (each for each in RANKS if each <= width // 4):
        seconds, _ = alone(step_seconds, settings.subject, LORA, RANK_SHAPE, settings.rounds, rank=rank)
        yield measured(PART, f"rank {rank}", "seconds_per_step", *seconds.values())


def cells(inputs: Inputs) -> Iterator[Row]:
    """Seconds per trained cell in short runs, by the number of cells that share one call of train.py.

    Each call also evaluates the base model. peft's side is one script per cell, none for the base model.
    """
    short = (f"trainer.steps={CELL_STEPS}", "trainer.warmup_steps=1", f"data.eval_windows={CELL_EVAL_WINDOWS}")
    hylo_seconds(inputs, inputs.folder / "outputs-0", ["-m", f"method={CELLS[0]}", *short])  # warms the system's caches
    scripts: list[float] = []
    for count, method in enumerate(CELLS, 1):
        print(f"cells: {count}/{len(CELLS)}", flush=True)
        scripts.append(peft_seconds(inputs, method, steps=CELL_STEPS, eval_windows=CELL_EVAL_WINDOWS))
        swept = f"method={','.join(CELLS[:count])}"
        seconds = hylo_seconds(inputs, inputs.folder / f"outputs-{count}", ["-m", swept, *short])
        yield measured(PART, f"cells {count}", "seconds_per_cell", [seconds / count], [sum(scripts) / count])
