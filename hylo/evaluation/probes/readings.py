"""What components choose, on average by position and layer: which landmark is read where, how far a gate opens.

Components tell it during a forward pass (`Positions.read` in hylo/adapters/positions.py); this probe listens to one
pass over the same stretches of held-out text for every run. It changes nothing and scores nothing: its numbers are
there to be looked at (hylo/report/figures/readings.py). Own design.

Shapes: B texts, T tokens, n values per token.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import ConfigError, TrainingDiverged, problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import Bos
from hylo.data.tokens import bos_token, documents_identity, tokenize
from hylo.evaluation.probes.base import Answers, Probe, ProbeConfig
from hylo.evaluation.probes.held_out import held_out_documents

COLUMNS = ["quantity", "layer", "item", "first", "last", "value"]
"""quantity, layer of the base model, item (landmark or head), first and last position of the bin, value (the mean over
texts and the bin's positions)."""
BINS = 16
"""Bins of positions."""


@register("probe", "readings")
@dataclass(kw_only=True, slots=True)
class ReadingsProbeConfig(ProbeConfig):
    """The text that is read."""

    tokens: int = bounded(256, ge=BINS)
    """Tokens of a text."""
    texts: int = bounded(8, ge=1, le=1_000)
    """Number of texts, one after the other from each document in turn."""
    files: list[str] = field(default_factory=list)
    """Text files, or patterns; empty: the held-out plays of data=shakespeare."""

    def problems(self) -> Iterator[str]:
        yield from ()  # the bounds cover everything

    def too_long(self, allowed: str, otherwise: str) -> str:
        return problem("probe.tokens", self.tokens, allowed, f"fewer tokens, or {otherwise}")

    def content(self) -> str:
        return documents_identity(held_out_documents(self.files))

    def build(self, tokenizer: PreTrainedTokenizerBase) -> "ReadingsProbe":
        bos = bos_token(tokenizer, Bos.auto)
        length = self.tokens - (bos is not None)
        documents = tokenize(held_out_documents(self.files), tokenizer)
        texts = [
            document.ids[start : start + length]
            for start in range(0, max(len(document.ids) for document in documents), length)
            for document in documents
            if start + length <= len(document.ids)
        ][: self.texts]
        if len(texts) < self.texts:
            allowed = f"at most {len(texts)} of {self.tokens} tokens each"
            raise ConfigError(problem("probe.texts", self.texts, allowed, "fewer or shorter texts"))
        ids = np.stack(texts)
        return ReadingsProbe(ids if bos is None else np.insert(ids, 0, bos, axis=1))


class ReadingsProbe(Probe):
    """Texts as tokens, [B, T]."""

    def __init__(self, ids_BT: np.ndarray) -> None:
        self.ids_BT = ids_BT

    @property
    def longest(self) -> int:
        return self.ids_BT.shape[1]

    @property
    def tokens(self) -> int:
        return self.ids_BT.size

    def ask(self, model: AdaptedModel, accelerator: Accelerator, *, cached: bool, label: str) -> Answers:
        model.eval()
        T = self.longest
        bins_T = torch.arange(T) * BINS // T
        sums: dict[tuple[str, int], Tensor] = defaultdict(lambda: torch.zeros(()))

        def listen(name: str, layer: int, values: Tensor) -> None:
            mean_Tn = values.double().mean(dim=0).cpu()
            by_bin = torch.zeros(BINS, mean_Tn.shape[-1], dtype=torch.double).index_add_(0, bins_T, mean_Tn)
            sums[name, layer] = sums[name, layer] + by_bin

        model.positions.reader = listen
        try:
            with torch.no_grad(), accelerator.autocast():
                for ids_T in self.ids_BT:
                    row = torch.from_numpy(ids_T.astype(np.int64)).to(model.base.device).unsqueeze(0)
                    model(input_ids=row, use_cache=False)
        finally:
            model.positions.reader = None
        table = _table(sums, bins_T, len(self.ids_BT))
        if not np.isfinite(table["value"].to_numpy(dtype=float)).all():
            raise TrainingDiverged("what a component chooses is not finite; try a lower learning rate")
        return Answers(table, {"quantities": sorted(set(table["quantity"]))}, [*_said(table)])


def _table(sums: dict[tuple[str, int], Tensor], bins_T: Tensor, texts: int) -> pd.DataFrame:
    counts = bins_T.bincount(minlength=BINS)
    ends = counts.cumsum(0)
    rows: list[tuple[Any, ...]] = []
    for (name, layer), by_bin in sorted(sums.items()):
        means = by_bin / (texts * counts.unsqueeze(-1))
        for place, values in enumerate(means.tolist()):
            first, last = int(ends[place] - counts[place]), int(ends[place]) - 1
            rows += [(name, layer, item, first, last, value) for item, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    return table.sort_values(COLUMNS[:4]).reset_index(drop=True)


def _said(table: pd.DataFrame) -> Iterator[str]:
    if table.empty:
        yield "no component chooses by position or text: nothing to read"
    for name, rows in table.groupby("quantity", sort=False):
        layers, items = rows["layer"].nunique(), rows["item"].nunique()
        yield f"{name}: {rows['value'].min():.3f} to {rows['value'].max():.3f} ({layers} layers, {items} values each)"
