"""Seconds per training step and tokens per second: each method and shape in a separate process, as in a researcher's
script."""

from collections.abc import Iterator
from functools import partial

from benchmarks.alone import alone
from benchmarks.floor import Floor
from benchmarks.results import Row, measured
from benchmarks.settings import METHODS, RANK, Settings, Shape, Subject, adapted_everywhere
from benchmarks.sides import SIDES, HyloSide, base_model, make_side, text_windows
from benchmarks.timing import Measurement, alternate, timed
from hylo.models.sharding import shared_copy

PART = "step"
LORA, *OTHERS = METHODS


def rows(settings: Settings) -> Iterator[Row]:
    """Three methods for each shape."""
    for shape in settings.shapes:
        for method in METHODS:
            seconds, rates = alone(step_seconds, settings.subject, method, shape, settings.rounds)
            work, sides = f"{method} {shape}", (seconds["hylo"], seconds["peft"], seconds["floor"])
            yield measured(PART, work, "seconds_per_step", *sides)
            speeds = ([shape.tokens / each for each in side] for side in sides)
            yield measured(PART, work, "tokens_per_second", *speeds)
            if method in OTHERS:
                own = [a / b for a, b in zip(seconds["hylo"], seconds[LORA], strict=True)]
                yield measured(PART, work, "ratio_to_own_lora", own)
            else:
                yield measured(PART, f"products {shape}", "gigaflops", [rate / 1e9 for rate in rates])


def step_seconds(
    subject: Subject, method: str, shape: Shape, rounds: int, *, rank: int = RANK
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds by round of `hylo`, `peft`, `floor` and, beside other methods, hylo's `lora`; operations per second."""
    configs = {name: adapted_everywhere(subject, name, shape, rank=rank) for name in {method, LORA}}
    windows, base = text_windows(subject, configs[method], shape.batch), base_model(subject)
    floor = Floor(base, shape)
    trained = {side: make_side(side, subject, configs[method], shared_copy(base)) for side in SIDES}
    if method in OTHERS:
        trained[LORA] = HyloSide(configs[LORA], shared_copy(base))
    acts: dict[str, Measurement] = {
        name: timed(partial(side.step, windows), base.device) for name, side in trained.items()
    }
    acts["floor"] = floor.step
    seconds = alternate(acts, rounds, f"step of {method}, rank {rank}, {shape}")
    return seconds, floor.rates[1:]
