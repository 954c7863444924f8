"""Windows of the context length, cut from documents: no padding, no overlap, every token counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hylo.data.tokens import TokenizedDocument
from hylo.errors import ConfigError, problem


@dataclass(frozen=True)
class Windows:
    """W windows of L tokens.

    ids: [W, L] int32. bytes: [W, L - 1] int64, UTF-8 bytes of each predicted token. document, first_token: [W].
    """

    ids: np.ndarray
    bytes: np.ndarray
    document: np.ndarray
    first_token: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray) -> "Windows":
        """These windows, in this order."""
        return Windows(self.ids[index], self.bytes[index], self.document[index], self.first_token[index])

    def table(self) -> pd.DataFrame:
        """Columns window, document, first_token, length: enough to cut the same windows again."""
        count, length = self.ids.shape
        columns = {"window": np.arange(count), "document": self.document, "first_token": self.first_token}
        return pd.DataFrame(columns | {"length": np.full(count, length)})


def cut_windows(documents: list[TokenizedDocument], length: int) -> Windows:
    """Cut every document from its first token into windows of `length` tokens; a remainder is dropped.

    Raises:
        ConfigError: no document is long enough for one window.
    """
    counts = [len(document.ids) // length for document in documents]
    if sum(counts) == 0:
        longest = max((len(document.ids) for document in documents), default=0)
        fix = f"data.context_length={max(longest, 2)} or less, or longer documents"
        raise ConfigError(
            problem("data.context_length", length, f"at most the longest document ({longest} tokens)", fix)
        )
    ids, sizes, names, firsts = [], [], [], []
    for document, count in zip(documents, counts, strict=True):
        used = count * length
        ids.append(document.ids[:used].reshape(count, length))
        sizes.append(np.diff(document.byte_ends[:used], prepend=0).reshape(count, length)[:, 1:])
        names += [document.name] * count
        firsts.append(np.arange(count) * length)
    return Windows(np.concatenate(ids), np.concatenate(sizes), np.array(names, dtype=object), np.concatenate(firsts))


def sample(windows: Windows, count: int | None) -> Windows:
    """A random sample of `count` windows in the order of the text, the same one in every run; all of them for None.

    A smaller sample is part of a larger one, so numbers at two sizes are comparable. Not every n-th window: plays have
    a rhythm of their own, and a regular grid over the default ones was easier than random samples by a fifth.
    """
    if count is None or count >= len(windows):
        return windows
    return windows.take(np.sort(np.random.default_rng(0).permutation(len(windows))[:count]))


def batches(windows: Windows, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches [batch_size, L] in random order; every window comes once before any comes again."""
    order = np.empty(0, dtype=int)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(len(windows))])
        yield windows.ids[order[:batch_size]]
        order = order[batch_size:]
