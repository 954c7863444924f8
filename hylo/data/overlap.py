"""Text that is both trained on and evaluated on, found by its content: copies, excerpts and edited copies.

Documents are compared by their passages of `PASSAGE` consecutive words, whatever stands between the words (line ends,
indentation, a byte-order mark). Passages are compared by a 64-bit polynomial hash of their words. Own design, after the
n-gram overlap of Brown et al. 2020, arXiv 2005.14165, appendix C, with passages long enough that a proverb is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hylo.data.base import Document

PASSAGE = 50
"""Words of a passage."""
SHARE = 0.5
"""Share of a document's passages beyond which it is a copy, whole or in part."""


@dataclass(frozen=True)
class Overlap:
    """Text that a data set holds twice."""

    copy: tuple[str, str] | None = None
    """Names of an evaluated and of a training document, one of which is a copy of the other, lies in it, or is its
    edited copy; None: there is no such pair."""
    shared: float = 0.0
    """Share of the passages of the evaluated documents that occur in training documents."""
    duplicates: int = 0
    """Number of training documents that repeat the text of another one."""
    evaluated_twice: int = 0
    """Number of evaluated documents that do. They make intervals narrower than the text deserves."""
    copied: tuple[int, ...] = ()
    """Places of all training documents that are one side of a pair as `copy`, in order."""

    def said(self, name: str) -> list[str]:
        """What a person should know before training on the data set of that name; one sentence each."""
        lines = []
        if self.shared:
            lines.append(
                f"data={name}: {100 * self.shared:.2g} % of the evaluated passages of {PASSAGE} words are trained on"
            )
        if self.duplicates:
            lines.append(f"data={name}: training documents that repeat the text of another one: {self.duplicates}")
        if self.evaluated_twice:
            lines.append(
                f"data={name}: evaluated documents that repeat the text of another one: {self.evaluated_twice}; "
                f"intervals are narrower than they should be"
            )
        return lines


def overlap(trained: Sequence[Document], evaluated: Sequence[Document], *, shortest: int) -> Overlap:
    """Text that is trained on twice, or trained on and evaluated on.

    Args:
        trained: the training documents.
        evaluated: the documents for evaluation.
        shortest: bytes of text below which a document is not looked at.
    """
    places = [place for place, document in enumerate(trained) if len(document.text.encode()) >= shortest]
    trained = [trained[place] for place in places]
    evaluated = [document for document in evaluated if len(document.text.encode()) >= shortest]
    words: dict[str, int] = {}
    ours = [_passages(document.text, words) for document in trained]
    theirs = [_passages(document.text, words) for document in evaluated]
    twice = [len(each) - len({passages.tobytes() for passages in each}) for each in (ours, theirs)]
    if not ours or not theirs:
        return Overlap(None, 0.0, twice[0], twice[1])
    sizes = np.array([len(passages) for passages in ours])
    known, owners = np.concatenate(ours), np.repeat(np.arange(len(ours)), sizes)
    everything = np.concatenate(theirs)
    in_both = np.isin(known, everything)  # mostly none, so what follows costs nothing
    known, owners = known[in_both], owners[in_both]
    shared = float(np.isin(everything, known).mean()) if len(known) else 0.0
    pair, copied = None, set[int]()
    for document, passages in zip(evaluated, theirs, strict=True) if len(known) else ():
        common = np.bincount(owners[np.isin(known, passages)], minlength=len(ours))
        copies = np.flatnonzero(common > SHARE * np.minimum(sizes, len(passages)))
        if len(copies) and pair is None:
            pair = (document.name, trained[copies[0]].name)
        copied.update(places[copy] for copy in copies)
    return Overlap(pair, shared, twice[0], twice[1], tuple(sorted(copied)))


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
