"""Seconds of a training step and tokens a second: every method of a shape, on both sides, in the same rounds."""

from collections.abc import Iterator
from functools import partial

from benchmarks.floor import Floor
from benchmarks.results import Row, measured
from benchmarks.settings import METHODS, Settings, Shape, adapted_everywhere
from benchmarks.sides import SIDES, base_model, shared_copy, text_windows
from benchmarks.timing import Measurement, alternate, timed
from hylo.config import Config

PART = "step"


def rows(settings: Settings) -> Iterator[Row]:
    """Three methods for each shape."""
    for shape in settings.shapes:
        configs = {method: adapted_everywhere(settings.model, method, shape.length) for method in METHODS}
        seconds, rates = step_seconds(configs, shape, settings.rounds, f"step {shape}")
        for method in METHODS:
            ours, theirs, work = seconds[f"hylo {method}"], seconds[f"peft {method}"], f"{method} {shape}"
            yield measured(PART, work, "seconds_per_step", ours, theirs, seconds["floor"])
            speeds = ([shape.tokens / each for each in side] for side in (ours, theirs, seconds["floor"]))
            yield measured(PART, work, "tokens_per_second", *speeds)
        own = [a / b for a, b in zip(seconds["hylo hylorada"], seconds["hylo lora"], strict=True)]
        yield measured(PART, f"hylorada {shape}", "ratio_to_own_lora", own)
        yield measured(PART, f"products {shape}", "gigaflops", [rate / 1e9 for rate in rates])


def step_seconds(
    configs: dict[str, Config], shape: Shape, rounds: int, label: str
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds by round of `hylo <name>` and `peft <name>` for each configuration, and of `floor`; operations a second.

    All configurations are of one model.
    """
    first = next(iter(configs.values()))
    windows, base = text_windows(first, shape.batch), base_model(first)
    floor = Floor(base, shape)
    acts: dict[str, Measurement] = {}
    for name, config in configs.items():
        for side, make in SIDES.items():
            acts[f"{side} {name}"] = timed(partial(make(config, shared_copy(base)).step, windows))
    acts["floor"] = floor.step
    seconds = alternate(acts, rounds, label)
    return seconds, floor.rates[1:]
