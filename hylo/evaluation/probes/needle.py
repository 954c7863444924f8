"""Needles in a haystack: asks for facts at several depths of real text, at several lengths.

    ...
    The code for river is 4821.            a needle, on a line of its own between two lines of the text
    ...

    Question: what is the code for river?
    Answer: The code for river is 4821

Every haystack holds one needle per depth, at evenly spaced line ends from its beginning to its end, and is read once
for all of its questions; the other needles are distractors. So models are compared at the same places of the same text.
Words and codes are those of the probe `kv` (hylo/data/kv/). Haystacks depend only on the probe's own settings, not on
the run. After "needle in a haystack" (Kamradt 2023) with several keys, as in RULER (arXiv 2404.06654, section 3.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.data.base import Bos, Document
from hylo.data.kv.text import PROBE_CODES, draw, fact, question
from hylo.data.kv.words import PROBE_WORDS
from hylo.data.tokens import TokenizedDocument, bos_token, documents_identity, tokenize
from hylo.evaluation.probes.base import ProbeConfig
from hylo.evaluation.probes.depths import DepthProbe, Text, prompts_of
from hylo.evaluation.probes.held_out import held_out_documents
from hylo.evaluation.probes.score import GRIDS

Source = tuple[Document, TokenizedDocument]


@register("probe", "needle")
@dataclass(kw_only=True, slots=True)
class NeedleProbeConfig(ProbeConfig):
    """Lengths, depths, and the text."""

    tokens: list[int] = field(default_factory=lambda: [512, 1024, 2048])
    """Tokens of a haystack with its needles, a question and the answer; each length is measured separately."""
    depths: int = bounded(5, ge=3, le=20)
    """Needles in a haystack, evenly spaced from its beginning to its end."""
    haystacks: int = bounded(8, ge=2, le=1_000)
    """Haystacks of each length. Every one is asked for each of its needles."""
    files: list[str] = field(default_factory=list)
    """Text files to take haystacks from, or patterns; empty: the held-out plays of data=shakespeare."""
    seed: int = bounded(0, ge=0)
    """Seed of the haystacks: where they begin, words and codes."""

    def problems(self) -> Iterator[str]:
        """Yields a message if a length is named twice, or none."""
        if not self.tokens or len(set(self.tokens)) < len(self.tokens) or min(self.tokens) < 1:
            allowed = "one or more numbers above 0, each once"
            yield problem("probe.tokens", self.tokens, allowed, "probe.tokens=[512,1024,2048]")

    def too_long(self, allowed: str, otherwise: str) -> str:
        return problem("probe.tokens", self.tokens, allowed, f"fewer tokens, or {otherwise}")

    def content(self) -> str:
        return documents_identity(held_out_documents(self.files))

    def build(self, tokenizer: PreTrainedTokenizerBase) -> DepthProbe:
        return DepthProbe(GRIDS["needle"], prompts_of([*self._texts(tokenizer)], tokenizer))

    def _texts(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Text]:
        """All haystacks in the order of asking: one of each length, then the next of each."""
        documents = held_out_documents(self.files)
        sources = [*zip(documents, tokenize(documents, tokenizer), strict=True)]
        for number in range(self.haystacks):
            for tokens in self.tokens:
                rng = np.random.default_rng([self.seed, tokens, number])
                yield _haystack(tokens, number, self.depths, sources, rng, tokenizer)


def _haystack(
    tokens: int,
    number: int,
    depths: int,
    sources: list[Source],
    rng: np.random.Generator,
    tokenizer: PreTrainedTokenizerBase,
) -> Text:
    """A haystack with its needles and questions, none longer than `tokens`.

    Raises:
        ConfigError: needles and question leave no room for text, or no document is long enough.
    """

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    words, codes = draw(rng, PROBE_WORDS, PROBE_CODES, depths)
    needles = [f"{fact(word, code)}.\n" for word, code in zip(words, codes, strict=True)]
    questions = [question(word, code) for word, code in zip(words, codes, strict=True)]
    begun = int(bos_token(tokenizer, Bos.auto) is not None)
    tokens_of_text = tokens - begun
    fixed = count("".join(needles)) + max(map(count, questions))
    lines = _lines(tokens_of_text - fixed, sources, rng)
    while len(lines) >= depths - 1:
        places = np.linspace(0, len(lines), depths).round().astype(int).tolist()
        parts = ["".join(lines[start:end]) for start, end in pairwise([0, *places, len(lines)])]
        pieces = [part + needle for part, needle in zip(parts, needles, strict=False)]
        asked = ["".join(pieces) + parts[-1] + each for each in questions]
        if max(map(count, asked)) <= tokens_of_text:
            starts = [begun + count("".join(pieces[:depth]) + parts[depth]) for depth in range(depths)]
            return Text(tokens, number, starts, asked, [str(code) for code in codes])
        lines.pop()  # needles change how the text around them is split into tokens, by a few
    allowed = f"more than {fixed + 2 * depths} ({depths} needles, a question and some text), and a text that long"
    raise ConfigError(problem("probe.tokens", tokens, allowed, f"probe.tokens=[{4 * fixed}], or other probe.files"))


def _lines(room: int, sources: list[Source], rng: np.random.Generator) -> list[str]:
    """Lines of a document from a random one on, about `room` tokens of them; empty if no document has as many."""
    long = [source for source in sources if len(source[1].ids) >= room > 0]
    if not long:
        return []
    document, tokenized = long[rng.integers(len(long))]
    lines = [f"{line}\n" for line in document.text.split("\n")]
    ends = np.searchsorted(tokenized.byte_ends, np.cumsum([len(line.encode()) for line in lines]))
    starts = np.concatenate([[0], ends[:-1]])
    first = rng.choice(np.flatnonzero(len(tokenized.ids) - starts >= room))
    return lines[first : np.searchsorted(ends, starts[first] + room, side="right")]
