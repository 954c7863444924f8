"""Windows of the context length, cut from documents, and the model inputs made from them.

Shapes: W windows (B in a batch), L tokens (the context length). Windows cut from documents (`cut_windows`) are full;
those made from lines (hylo/data/lines.py) or whole documents (hylo/data/samples.py) are padded on the right. A training
window may hold several samples (hylo/data/packing.py).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from hylo.core.errors import ConfigError, problem
from hylo.data.base import SHORTEST_CONTEXT
from hylo.data.tokens import TokenizedDocument

IGNORED = -100
"""Label of a token that is not a target of the loss; the default `ignore_index` of torch's cross_entropy."""


@dataclass(frozen=True)
class Windows:
    """W windows of L tokens.

    Attributes:
        ids: [W, L] int32.
        bytes: [W, L - 1] int64, UTF-8 bytes of each predicted token.
        document, first_token: [W], where each window was cut.
        lengths: [W], number of tokens before the padding.
        words: [W, L - 1] int64, words that begin in each predicted token; None: not counted.
        context: [W], number of first tokens that are read but not predicted; None: one each.
        counted: [W, L] bool, the tokens that are predicted; None: all but the first of each window and the padding.
        positions: [W, L] int32, each token's position in its own sample, and from 0 again in the padding; None: every
            window is one sample.
    """

    ids: np.ndarray
    bytes: np.ndarray
    document: np.ndarray
    first_token: np.ndarray
    lengths: np.ndarray
    words: np.ndarray | None = None
    context: np.ndarray | None = None
    counted: np.ndarray | None = None
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray) -> "Windows":
        """The windows at these indices, in this order."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: each[index] for name, each in fields.items() if each is not None})

    def table(self) -> pd.DataFrame:
        """Columns window, document, first_token, length: enough to cut the same windows again. Windows that overlap
        have a column context, too."""
        columns = {"window": np.arange(len(self)), "document": self.document, "first_token": self.first_token}
        read = {} if self.context is None else {"context": self.context}
        return pd.DataFrame(columns | {"length": self.lengths} | read)

    @property
    def tokens(self) -> int:
        """Number of tokens in all windows, without padding."""
        return int(self.lengths.sum())

    def targets(self, *, on_padding: bool = False) -> int:
        """Number of predicted tokens in all windows, with padding only if `on_padding`."""
        return int(self.bytes.size if on_padding else self.predicted.sum())

    @property
    def predicted(self) -> np.ndarray:
        """[W], number of predicted tokens of each window."""
        return np.maximum(self.lengths - 1, 0) if self.counted is None else self.counted[:, 1:].sum(axis=1)

    def labels(self, *, on_padding: bool = False) -> np.ndarray:
        """[W, L] int64: the ids; IGNORED where nothing is predicted, in padding unless `on_padding`."""
        labels = labels_of(self.ids, self.lengths, on_padding=on_padding)
        return labels if self.counted is None else np.where(self.counted, labels, IGNORED)

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The model inputs for these windows."""
        return model_inputs(self.ids, self.lengths, device, positions=self.positions)


def cut_windows(
    documents: list[TokenizedDocument], length: int, *, bos: int | None = None, stride: int | None = None
) -> Windows:
    """Cuts every document into windows of `length` tokens, the first at its first token; the remainder is dropped.

    Args:
        documents: the documents.
        length: L, tokens per window.
        bos: the first token of every window, followed by L - 1 tokens of the document; None: L tokens of the document.
        stride: tokens between the starts of consecutive windows, less than L. All but a document's first window then
            predict only their last `stride` tokens, so that no token is predicted twice. None: the windows follow each
            other without overlap.

    Raises:
        ConfigError: no document is long enough for one window.
    """
    taken = length if bos is None else length - 1
    step = taken if stride is None else stride
    counts = [max(0, (len(document.ids) - taken) // step + 1) for document in documents]
    if sum(counts) == 0:
        longest = max((len(document.ids) for document in documents), default=0)
        shorter = f"data.context_length={longest} or less, or " if longest >= SHORTEST_CONTEXT else ""
        allowed = f"at most the longest document ({longest} tokens)"
        raise ConfigError(problem("data.context_length", length, allowed, f"{shorter}longer documents"))
    ids, sizes, words, names, firsts = [], [], [], [], []
    for document, count in ((document, count) for document, count in zip(documents, counts, strict=True) if count):
        own = sliding_window_view(document.ids, taken)[::step]
        ids.append(own if bos is None else np.insert(own, 0, bos, axis=1))
        for gained, ends in ((sizes, document.byte_ends), (words, document.word_ends)):
            predicted = sliding_window_view(np.diff(ends, prepend=0), taken)[::step]
            gained.append(predicted[:, 1:] if bos is None else predicted)
        names += [document.name] * count
        firsts.append(np.arange(count) * step)
    first_token = np.concatenate(firsts)
    return Windows(
        np.concatenate(ids),
        np.concatenate(sizes),
        np.array(names, dtype=object),
        first_token,
        np.full(len(names), length),
        np.concatenate(words),
        None if stride is None else np.where(first_token == 0, 1, length - stride),
    )


def sample(windows: Windows, count: int | None) -> Windows:
    """Returns a random sample of `count` windows in text order, the same in every run; None: all windows.

    A smaller sample is a subset of a larger one, so numbers at two sizes are comparable. The sample is not every n-th
    window: plays have a rhythm of their own, and a regular grid over the default ones was easier than random samples.
    """
    if count is None or count >= len(windows):
        return windows
    return windows.take(np.sort(np.random.default_rng(0).permutation(len(windows))[:count]))


def batches(windows: Windows, batch_size: int, rng: np.random.Generator) -> Iterator[Windows]:
    """Yields batches of batch_size windows forever, in random order; each window is used once before any repeats."""
    order = np.empty(0, dtype=int)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(len(windows))])
        yield windows.take(order[:batch_size])
        order = order[batch_size:]


def model_inputs(
    ids: np.ndarray, lengths: np.ndarray, device: torch.device, *, positions: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Returns the model inputs for windows [B, L]: input_ids, and attention_mask if any window is padded.

    A window of nothing but padding keeps its first token unmasked: attention over no tokens is undefined.

    With positions [B, L] that start again at each sample: position_ids instead of a mask. Where they do not go up by
    one, transformers (`find_packed_sequence_indices`) hides what lies before from what follows; padding is one more
    sample, which nothing is predicted from.
    """
    inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64)).to(device)}
    if positions is not None:
        inputs["position_ids"] = torch.from_numpy(positions.astype(np.int64)).to(device)
    elif (lengths < ids.shape[1]).any():
        real = np.arange(ids.shape[1]) < np.maximum(lengths, 1)[:, None]
        inputs["attention_mask"] = torch.from_numpy(real.astype(np.int64)).to(device)
    return inputs


def labels_of(ids: np.ndarray, lengths: np.ndarray, *, on_padding: bool = False) -> np.ndarray:
    """[W, L] int64: token ids [W, L], IGNORED after the first `lengths` tokens of a row unless `on_padding`."""
    padding = np.arange(ids.shape[1]) >= lengths[:, None]
    return np.where(padding & (not on_padding), IGNORED, ids.astype(np.int64))


def next_tokens(labels: np.ndarray, device: torch.device) -> Tensor:
    """Targets [B, L] for labels [B, L]: at each position the next label; the last position has none."""
    shifted = np.full_like(labels, IGNORED)
    shifted[:, :-1] = labels[:, 1:]
    return torch.from_numpy(shifted).to(device)
