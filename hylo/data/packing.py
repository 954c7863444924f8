"""Several samples in one window: positions and attention start again at each, so none sees another.

    best fit   the longest samples first, each into the fullest window with room for it     arXiv 2404.10830, section 2

Shapes: N samples, W windows, L tokens (the context length).
"""

from bisect import bisect_left, insort

import numpy as np

from hylo.data.tokens import TokenizedDocument
from hylo.data.windows import Windows


def pack(samples: Windows) -> Windows:
    """The samples, one per window [N, L], in as few windows [W, L] as best fit finds; none is cut or dropped.

    A window goes by the name of its first document. The first token of a sample is never predicted.
    """
    groups = best_fit(samples.lengths, samples.ids.shape[1])
    shape = len(groups), samples.ids.shape[1]
    ids, positions = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    counted, sizes = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
    for row, group in enumerate(groups):
        first = 0
        for index in group:
            n = int(samples.lengths[index])
            place = slice(first, first + n)
            ids[row, place], positions[row, place] = samples.ids[index, :n], np.arange(n)
            counted[row, first + 1 : first + n] = True if samples.counted is None else samples.counted[index, 1:n]
            sizes[row, first + 1 : first + n] = samples.bytes[index, : n - 1]
            first += n
        positions[row, first:] = np.arange(shape[1] - first)
    leading = np.array([group[0] for group in groups])
    lengths = np.array([samples.lengths[group].sum() for group in groups])
    places = samples.document[leading], samples.first_token[leading], lengths
    return Windows(ids, sizes[:, 1:], *places, counted=counted, positions=positions)


def best_fit(lengths: np.ndarray, length: int) -> list[list[int]]:
    """Groups of samples, by index, with at most `length` tokens each; in order within and between groups."""
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of each window that has some, with its number; sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        n = int(lengths[index])
        place = bisect_left(room, (n, 0))
        left, window = room.pop(place) if place < len(room) else (length, len(groups))
        if window == len(groups):
            groups.append([])
        groups[window].append(index)
        if left > n:
            insort(room, (left - n, window))
    return sorted(sorted(group) for group in groups)


def cut_with_ends(documents: list[TokenizedDocument], length: int, *, bos: int | None = None) -> Windows:
    """The windows of `cut_windows`, and the end of each document that fills none, padded on the right.

    Ends of fewer than two tokens, `bos` included, predict nothing and are dropped. Arguments as for `cut_windows`.
    """
    begin = [] if bos is None else [bos]
    taken = length - len(begin)
    cuts = [
        (document, first)
        for document in documents
        for first in range(0, len(document.ids), taken)
        if len(document.ids) - first + len(begin) > 1
    ]
    ids, sizes = np.zeros((len(cuts), length), dtype=np.int32), np.zeros((len(cuts), length), dtype=np.int64)
    lengths = np.zeros(len(cuts), dtype=int)
    for row, (document, first) in enumerate(cuts):
        own = np.concatenate([np.array(begin, dtype=np.int32), document.ids[first : first + taken]])
        ends = document.byte_ends[first : first + taken]
        before = document.byte_ends[first - 1] if first else 0
        ids[row, : len(own)], lengths[row] = own, len(own)
        sizes[row, len(begin) : len(own)] = np.diff(ends, prepend=before)
    names = np.array([document.name for document, _ in cuts], dtype=object)
    return Windows(ids, sizes[:, 1:], names, np.array([first for _, first in cuts], dtype=int), lengths)
