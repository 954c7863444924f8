"""Whole documents as samples: short texts, or conversations of which the responses alone are predicted.

A token is predicted if it holds a character of a response or of what ends it (the end-of-turn token, which the model
has to predict too). Bytes are those of the responses' own text: bits per byte does not count what a template writes.

Shapes: W windows, L tokens (the context length).
"""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from hylo.core.errors import ConfigError, problem
from hylo.data.base import DataConfig, Document, Split
from hylo.data.chat import Response, template_text, written
from hylo.data.tokens import TokenizedDocument, bos_token, tokenize
from hylo.data.windows import Windows


@dataclass(frozen=True)
class Samples:
    """The samples of a split, one per window, and what did not fit."""

    windows: Windows
    truncated: int
    """Samples of which tokens beyond the context were dropped."""
    left_out: int
    """Documents of which no predicted token lies in the context."""

    def said(self, name: str, split: Split) -> list[str]:
        """What a person should know before training on the data set of that name; one sentence each."""
        length, lines = self.windows.ids.shape[1], []
        if self.truncated:
            what = f"{self.truncated:,} of {len(self.windows):,} {split.name} samples"
            lines.append(f"data={name}: {what} are cut off at {length} tokens")
        if self.left_out:
            lines.append(
                f"data={name}: {self.left_out:,} {split.name} documents are left out, because nothing to predict lies "
                f"in their first {length} tokens"
            )
        return lines


@dataclass(frozen=True)
class _Sample:
    """A document's tokens [n], which of them are predicted, and their bytes."""

    ids: np.ndarray
    counted: np.ndarray
    bytes: np.ndarray


def cut_samples(
    documents: list[Document], tokenizer: PreTrainedTokenizerBase, config: DataConfig, *, everything: bool = False
) -> Samples:
    """One window per document, padded on the right; tokens beyond the context are dropped.

    Args:
        everything: all tokens of conversations are predicted, not the responses alone.

    Raises:
        ConfigError: no document has a predicted token in the context, or a chat template cannot be used.
    """
    bos = bos_token(tokenizer, config.bos)
    samples = [_begun(sample, bos) for sample in _samples(documents, tokenizer, config)]
    length = config.context_length
    if everything:
        samples = [_Sample(sample.ids, np.arange(len(sample.ids)) > 0, sample.bytes) for sample in samples]
    chosen = [index for index, sample in enumerate(samples) if sample.counted[:length].any()]
    if not chosen:
        allowed = f"documents with something to predict in their first {length} tokens; {config.name} has none"
        raise ConfigError(problem("data.context_length", length, allowed, "a longer context, or other documents"))
    padding = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else 0
    ids = np.full((len(chosen), length), padding, dtype=np.int32)
    counted = np.zeros((len(chosen), length), dtype=bool)
    sizes = np.zeros((len(chosen), length), dtype=np.int64)
    for row, sample in enumerate(samples[index] for index in chosen):
        own = slice(min(len(sample.ids), length))
        ids[row, own], counted[row, own], sizes[row, own] = sample.ids[own], sample.counted[own], sample.bytes[own]
    full = np.array([len(samples[index].ids) for index in chosen])
    names = np.array([documents[index].name for index in chosen], dtype=object)
    windows = Windows(
        ids, sizes[:, 1:], names, np.zeros(len(chosen), dtype=int), np.minimum(full, length), counted=counted
    )
    return Samples(windows, int((full > length).sum()), len(samples) - len(chosen))


def _samples(documents: list[Document], tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[_Sample]:
    template = template_text(tokenizer, config.template) if config.template else ""
    texts: list[tuple[str, list[Response] | None]] = [
        written(document, tokenizer, template) if document.messages else (document.text, None) for document in documents
    ]
    renamed = [Document(document.name, text) for document, (text, _) in zip(documents, texts, strict=True)]
    tokenized = tokenize(renamed, tokenizer)
    return [_sample(tokens, *text) for tokens, text in zip(tokenized, texts, strict=True)]


def _sample(tokens: TokenizedDocument, text: str, responses: list[Response] | None) -> _Sample:
    ends = tokens.byte_ends
    starts = np.concatenate([[0], ends[:-1]])
    if responses is None:
        return _Sample(tokens.ids, np.ones(len(ends), dtype=bool), ends - starts)
    counted, sizes = np.zeros(len(ends), dtype=bool), np.zeros(len(ends), dtype=np.int64)
    for response in responses:
        first, content, content_end, last = (
            len(text[:place].encode())
            for place in (response.start, response.content, response.content_end, response.end)
        )
        # A token inside a character has no bytes of its own: it belongs where the character does.
        counted |= (ends > first) & ((starts < last) | (ends <= last))
        sizes += np.maximum(np.minimum(ends, content_end) - np.maximum(starts, content), 0)
    used = int(np.flatnonzero(counted).max(initial=-1)) + 1  # nothing is learned from what follows
    return _Sample(tokens.ids[:used], counted[:used], sizes[:used])


def _begun(sample: _Sample, bos: int | None) -> _Sample:
    """The sample with the beginning-of-text token in front, unless there is none or the template wrote it. Its first
    token is context only."""
    if bos is not None and sample.ids[:1].tolist() != [bos]:
        sample = _Sample(
            np.insert(sample.ids, 0, bos), np.insert(sample.counted, 0, False), np.insert(sample.bytes, 0, 0)
        )
    return _Sample(sample.ids, sample.counted & (np.arange(len(sample.ids)) > 0), sample.bytes)
