"""Text that is both trained on and evaluated on, found by its content: copies, excerpts and edited copies.

Documents are compared by their passages of `PASSAGE` consecutive words, whatever stands between the words (line ends,
indentation, a byte-order mark). Passages are compared by a 64-bit polynomial hash of their words. Own design, after the
n-gram overlap of Brown et al. 2020, arXiv 2005.14165, appendix C, with passages long enough that a proverb is none.
"""

from collections.abc import Sequence

import numpy as np

from hylo.data.base import Document

PASSAGE = 50
"""Words of a passage."""
SHARE = 0.5
"""Share of a document's passages beyond which it is a copy, whole or in part."""


def copied(trained: Sequence[Document], evaluated: Sequence[Document], *, shortest: int) -> tuple[str, str] | None:
    """The first evaluated document that is a copy of a training document, or lies in one, or holds one.

    Args:
        shortest: bytes of text below which a document is not looked at.

    Returns:
        Names of the evaluated and of the training document; None: there is no such pair.
    """
    trained = [document for document in trained if len(document.text.encode()) >= shortest]
    evaluated = [document for document in evaluated if len(document.text.encode()) >= shortest]
    words: dict[str, int] = {}
    ours = [_passages(document.text, words) for document in trained]
    theirs = [_passages(document.text, words) for document in evaluated]
    if not ours or not theirs:
        return None
    sizes = np.array([len(passages) for passages in ours])
    known, owners = np.concatenate(ours), np.repeat(np.arange(len(ours)), sizes)
    shared = np.isin(known, np.concatenate(theirs))  # mostly none, so what follows costs nothing
    known, owners = known[shared], owners[shared]
    for document, passages in zip(evaluated, theirs, strict=True):
        common = np.bincount(owners[np.isin(known, passages)], minlength=len(ours))
        copies = np.flatnonzero(common > SHARE * np.minimum(sizes, len(passages)))
        if len(copies):
            return document.name, trained[copies[0]].name
    return None


def _passages(text: str, words: dict[str, int]) -> np.ndarray:
    """The distinct hashes of a text's passages; of a shorter text the hash of the whole. Extends `words`."""
    numbers = [words.setdefault(word, len(words)) for word in text.replace("\ufeff", " ").split()]
    if not numbers:
        return np.empty(0, dtype=np.uint64)
    # Consecutive numbers, spread over 64 bits (the constants are those of splitmix64).
    spread = (np.array(numbers, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    spread = (spread ^ (spread >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    length = min(PASSAGE, len(spread))
    hashes = np.zeros(len(spread) - length + 1, dtype=np.uint64)
    for place in range(length):
        hashes = hashes * np.uint64(0x94D049BB133111EB) + spread[place : place + len(hashes)]
    return np.unique(hashes)
