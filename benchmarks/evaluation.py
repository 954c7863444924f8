"""Seconds to evaluate the same windows with LoRA attached: hylo computes losses without logits, peft from logits."""

import math
from collections.abc import Iterator
from functools import partial

from benchmarks.floor import Floor
from benchmarks.results import Row, measured
from benchmarks.settings import Settings, Shape, adapted_everywhere
from benchmarks.sides import SIDES, Side, base_model, make_side, text_windows
from benchmarks.timing import alternate, timed
from hylo.data.windows import Windows
from hylo.models.sharding import shared_copy

PART = "evaluation"
TOKENS = 4096
"""Tokens evaluated per round: half of a run's default."""


def rows(settings: Settings) -> Iterator[Row]:
    """One pair of rows for each context length among the shapes."""
    for length in dict.fromkeys(shape.length for shape in settings.shapes):
        wanted = Shape(max(1, TOKENS // length), length)
        config, base = adapted_everywhere(settings.subject, "lora", wanted), base_model(settings.subject)
        windows = text_windows(settings.subject, config, wanted.batch)
        shape = Shape(len(windows), length)
        sides: dict[str, Side] = {name: make_side(name, settings.subject, config, shared_copy(base)) for name in SIDES}
        nats: dict[str, float] = {}
        acts = {name: timed(partial(note_loss, side, windows, nats, name), base.device) for name, side in sides.items()}
        acts["floor"] = Floor(base, shape).forward
        seconds = alternate(acts, settings.rounds, f"evaluation of {shape}")
        # Untrained, both are the base model.
        assert math.isclose(nats["hylo"], nats["peft"], rel_tol=1e-3), f"the sides differ: {nats}"
        yield measured(PART, f"evaluation {shape}", "seconds_per_pass", *seconds.values())
        speeds = ([shape.tokens / each for each in side] for side in seconds.values())
        yield measured(PART, f"evaluation {shape}", "tokens_per_second", *speeds)


def note_loss(side: Side, windows: Windows, nats: dict[str, float], name: str) -> None:
    """Evaluate, and keep the summed loss for the comparison."""
    nats[name] = side.evaluate(windows)
