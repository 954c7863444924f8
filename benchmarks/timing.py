"""Measuring in alternation: every side runs once per round, so that a busy machine slows all of them."""

import gc
import time
from collections.abc import Callable, Mapping

import torch

from hylo.core.progress import Progress

Measurement = Callable[[], float]
"""Does something once and returns the seconds to count."""


def timed(action: Callable[[], object], device: torch.device) -> Measurement:
    """A measurement of an action's seconds: by the wall clock on a CPU, by the GPU's own events there."""

    def by_the_clock() -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    def by_events() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        began.record()
        action()
        ended.record()
        torch.cuda.synchronize(device)
        return began.elapsed_time(ended) / 1e3

    return by_events if device.type == "cuda" else by_the_clock


def alternate(measurements: Mapping[str, Measurement], rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of each measurement in each round. A warm-up round is not counted: it allocates and fills caches.

    Every other round runs the measurements in reverse, so that none always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in measurements}
    order, total = list(measurements), (rounds + 1) * len(measurements)
    with Progress(label, total) as progress:
        for number in range(rounds + 1):
            for place, name in enumerate(order if number % 2 else reversed(order), 1):
                gc.collect()
                took = measurements[name]()
                if number:
                    seconds[name].append(took)
                progress.update(number * len(measurements) + place)
    return seconds
