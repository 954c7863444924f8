"""Texts: what a model writes after the same beginnings, before and after training, to be read.

Beginnings are your own prompts, or stretches of held-out text that end with a line. Continuations are greedy, or drawn
at a temperature with the probe's own seed, so two models differ only where their probabilities do. Nothing is scored:
the table stands in the report beside those of the numbers. Own design.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import problem
from hylo.core.progress import Progress
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import Document
from hylo.data.tokens import documents_identity
from hylo.evaluation.probes.base import Answers, Probe, ProbeConfig
from hylo.evaluation.probes.held_out import held_out_documents

COLUMNS = ["prompt", "beginning", "continuation", "tokens"]
"""Number of the prompt, its text, what the model wrote, and how many tokens that is; one row per prompt."""
LINES = 6
"""Lines of a beginning that is taken from held-out text."""


@register("probe", "texts")
@dataclass(kw_only=True, slots=True)
class TextsProbeConfig(ProbeConfig):
    """Beginnings, and how they are continued."""

    prompts: list[str] = field(default_factory=list)
    """Beginnings; empty: stretches of the held-out plays of data=shakespeare, or of `files`."""
    count: int = bounded(4, ge=1, le=100)
    """Number of beginnings taken from held-out text if no prompts are given."""
    files: list[str] = field(default_factory=list)
    """Text files, or patterns, instead of the plays."""
    new_tokens: int = bounded(60, ge=1, le=10_000)
    """Most tokens of a continuation; it ends earlier where the model ends the text."""
    temperature: float = bounded(0.0, ge=0)
    """0: the most likely token each time; above: drawn, 1 as the model says."""
    seed: int = bounded(0, ge=0)
    """Seed of the beginnings' places and of the draws."""

    def problems(self) -> Iterator[str]:
        """Yields a message for an empty prompt."""
        if any(not text.strip() for text in self.prompts):
            yield problem(
                "probe.prompts", self.prompts, "texts that are not empty", "probe.prompts=['Once upon a time']"
            )

    def too_long(self, allowed: str, otherwise: str) -> str:
        return problem("probe.new_tokens", self.new_tokens, allowed, f"fewer tokens, shorter prompts, or {otherwise}")

    def content(self) -> str:
        return "" if self.prompts else documents_identity(held_out_documents(self.files))

    def build(self, tokenizer: PreTrainedTokenizerBase) -> "TextsProbe":
        beginnings = self.prompts or _beginnings(held_out_documents(self.files), self.count, self.seed)
        return TextsProbe(self, beginnings, tokenizer)


def _beginnings(documents: list[Document], count: int, seed: int) -> list[str]:
    """Lines of each document in turn, from a random one on."""
    rng, found = np.random.default_rng(seed), []
    for place in range(count):
        lines = documents[place % len(documents)].text.split("\n")
        first = int(rng.integers(max(1, len(lines) - LINES)))
        found.append("\n".join(lines[first : first + LINES]) + "\n")
    return found


class TextsProbe(Probe):
    """The beginnings, as tokens of a model."""

    def __init__(self, config: TextsProbeConfig, beginnings: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.beginnings, self.tokenizer = config, beginnings, tokenizer
        self._ids: list[Any] = [tokenizer(text, return_tensors="pt")["input_ids"] for text in beginnings]

    @property
    def longest(self) -> int:
        return max(ids.shape[1] for ids in self._ids) + self.config.new_tokens

    @property
    def tokens(self) -> int:
        return sum(ids.shape[1] + self.config.new_tokens for ids in self._ids)

    def ask(self, model: AdaptedModel, accelerator: Accelerator, *, cached: bool, label: str) -> Answers:
        model.eval()
        drawn = {"do_sample": True, "temperature": self.config.temperature} if self.config.temperature else {}
        settings = GenerationConfig(
            max_new_tokens=self.config.new_tokens,
            use_cache=cached,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.eos_token_id,
            **drawn,
        )
        rows = []
        with Progress(label, len(self._ids), visible=accelerator.is_main_process) as progress:
            for number, ids in enumerate(self._ids):
                rows.append(
                    (number, self.beginnings[number], *self._continued(model, ids, settings, accelerator, number))
                )
                progress.update(number + 1)
        table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
        first = " ".join(str(table["continuation"].iloc[0]).split())
        return Answers(table, {"texts": len(table)}, [f"{len(table)} texts; the first goes on: {first[:100]}"])

    @torch.no_grad()
    def _continued(
        self, model: AdaptedModel, ids: Any, settings: GenerationConfig, accelerator: Accelerator, number: int
    ) -> tuple[str, int]:
        """The continuation of a beginning, and its number of tokens."""
        device, generate = model.base.device, cast(Any, model.base).generate
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), accelerator.autocast():
            torch.manual_seed(self.config.seed + number)
            whole = generate(ids.to(device), generation_config=settings)
        new = whole[0, ids.shape[1] :].tolist()
        return str(self.tokenizer.decode(new, skip_special_tokens=True)), len(new)
