"""Useful tokens per second: full windows of text, compared with the published protocol of one padded line per sample.

`data=wikitext2_lines` is that protocol on data from the hub; here the lines are those of two default plays, under the
same rules: padding counts in the loss, and blank lines are samples. Useful tokens are those of the text.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.random_models import RANDOM
from benchmarks.results import Row, measured
from benchmarks.settings import Settings, Shape, adapted_everywhere
from benchmarks.sides import SESSION, SIDES, Side, base_model, make_side
from benchmarks.timing import alternate, timed
from hylo.data.base import Protocol, Split
from hylo.data.windows import Windows
from hylo.models.architecture import model_context_length
from hylo.models.sharding import shared_copy
from hylo.runs.config import Config

PART = "lines"
SHAPE = Shape(4, 512)
ROUNDS = 2


def rows(settings: Settings) -> Iterator[Row]:
    """LoRA on full windows, and on lines with both libraries; nothing for a model without a tokenizer."""
    if settings.subject.model in RANDOM:
        return
    config = adapted_everywhere(settings.subject, "lora", SHAPE)
    base = base_model(settings.subject)
    assert (model_context_length(base) or SHAPE.length) >= SHAPE.length
    padded = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, protocol=Protocol.lines, loss_on_padding=True, keep_blank_lines=True),
    )
    packed, lines = batch(config), batch(padded)
    sides: dict[str, Side] = {name: make_side(name, settings.subject, config, shared_copy(base)) for name in SIDES}
    acts = {
        "packed": timed(partial(sides["hylo"].step, packed), base.device),
        "hylo": timed(partial(sides["hylo"].step, lines, loss_on_padding=True), base.device),
        "peft": timed(partial(sides["peft"].step, lines, loss_on_padding=True), base.device),
    }
    seconds = alternate(acts, ROUNDS, f"lines padded to {SHAPE.length}")
    share = useful_share(padded)
    useful = {name: [SHAPE.tokens * share / each for each in seconds[name]] for name in ("hylo", "peft")}
    full = [SHAPE.tokens / each for each in seconds["packed"]]
    yield measured(PART, f"packed beside lines, {SHAPE}", "useful_tokens_per_second", full, useful["peft"])
    yield measured(PART, f"lines on both sides, {SHAPE}", "useful_tokens_per_second", useful["hylo"], useful["peft"])
    yield measured(PART, "useful share of padded lines", "share", [share])


def samples(config: Config) -> Windows:
    """All samples of the validation plays."""
    return SESSION.windows(config.data, config.model, Split.validation)


def batch(config: Config) -> Windows:
    """A random batch of the samples."""
    found = samples(config)
    return found.take(np.random.default_rng(0).permutation(len(found))[: SHAPE.batch])


def useful_share(config: Config) -> float:
    """Share of text tokens among all tokens that a step computes for the samples."""
    found = samples(config)
    return found.tokens / found.ids.size
