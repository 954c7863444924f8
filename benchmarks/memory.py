"""Peak memory of two training steps above the loaded weights; each side, method and shape in a separate process."""

import gc
from collections.abc import Iterator

from benchmarks.alone import alone
from benchmarks.results import Row, measured
from benchmarks.settings import METHODS, Settings, Shape, Subject, adapted_everywhere
from benchmarks.sides import SIDES, accelerator, base_model, make_side, text_windows
from hylo.core.devices import peak_memory_bytes, reset_peak_memory, resident_bytes
from hylo.core.progress import Progress
from hylo.runs.shared import weights_checksum

PART = "memory"
STEPS = 2
"""The first step allocates the optimizer's state."""


def rows(settings: Settings) -> Iterator[Row]:
    """Three methods for each shape."""
    with Progress("memory", len(settings.shapes) * len(METHODS) * len(SIDES)) as progress:
        done = 0
        for shape in settings.shapes:
            for method in METHODS:
                peaks = []
                for side in SIDES:
                    peaks.append([alone(peak_above_weights, settings.subject, side, method, shape)])
                    done += 1
                    progress.update(done)
                yield measured(PART, f"{method} {shape}", "peak_bytes_above_weights", *peaks)


def peak_above_weights(subject: Subject, side: str, method: str, shape: Shape) -> int:
    """Peak bytes of the steps, minus those in use once weights, adapters, text and libraries are loaded."""
    import peft  # noqa: F401  # so that its code does not count as memory of the steps

    config, base = adapted_everywhere(subject, method, shape), base_model(subject)
    windows = text_windows(subject, config, shape.batch)
    accelerator(config.trainer.device)
    weights_checksum(base)  # reads every weight, so that all are in memory before counting starts
    trained = make_side(side, subject, config, base)
    gc.collect()
    reset_peak_memory()
    loaded = resident_bytes()
    for _ in range(STEPS):
        trained.step(windows)
    return peak_memory_bytes() - loaded
