"""The published protocol: one line of text per sample, truncated or padded to the context length.

It exists to reproduce published numbers (`data.protocol=lines`). Most of a batch is padding, which also dominates the
training loss if it counts there (`data.loss_on_padding`).
"""

import re
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from hylo.core.devices import say_once
from hylo.core.errors import ConfigError, problem
from hylo.data.base import DataConfig, Document
from hylo.data.tokens import TokenizedDocument, bos_token, tokenize
from hylo.data.windows import Windows


def split_lines(text: str) -> list[str]:
    """Splits a text into lines, dropping only the line endings (\\n or \\r\\n)."""
    lines = re.split(r"\r?\n", text)
    return lines[:-1] if text.endswith("\n") else lines


def cut_lines(documents: list[Document], tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> Windows:
    """Returns one window per line, each tokenised on its own and padded on the right with the end-of-text token.

    A window's first_token counts the tokens of its document's earlier lines. Tokens beyond the context are dropped,
    which is said. Lines of fewer than two tokens, a beginning-of-text token included, predict nothing and are kept only
    with `config.keep_blank_lines`.

    Raises:
        ConfigError: no line has at least two tokens, or the tokenizer has no end-of-text token.
    """
    padding, length = tokenizer.eos_token_id, config.context_length
    if not isinstance(padding, int):
        allowed = "packed: this model's tokenizer has no end-of-text token to pad lines with"
        raise ConfigError(problem("data.protocol", "lines", allowed, "data.protocol=packed, or another model"))
    split = [split_lines(document.text) for document in documents]
    owner = np.repeat(np.arange(len(documents)), [len(lines) for lines in split])
    tokenized = tokenize([Document(f"line-{n}", line) for n, line in enumerate(chain(*split))], tokenizer)
    bos = bos_token(tokenizer, config.bos)
    texts = np.array([len(line.ids) for line in tokenized])
    tokenized = [_begun(line, bos) for line in tokenized]
    sizes = np.array([len(line.ids) for line in tokenized])
    if sizes.max(initial=0) < 2:
        fix = "other text, or data.protocol=packed"
        raise ConfigError(
            problem("data.protocol", "lines", f"text with a line of two tokens; {config.name} has none", fix)
        )
    before = np.cumsum(texts) - texts
    first_token = before - before[np.searchsorted(owner, owner)]
    chosen = np.flatnonzero(sizes > 1) if not config.keep_blank_lines else np.arange(len(sizes))
    ids = np.full((len(chosen), length), padding, dtype=np.int32)
    predicted_bytes, predicted_words = np.zeros((2, len(chosen), length - 1), dtype=np.int64)
    for row, line in enumerate(tokenized[index] for index in chosen):
        ids[row, : len(line.ids)] = line.ids[:length]
        for predicted, ends in ((predicted_bytes, line.byte_ends), (predicted_words, line.word_ends)):
            gained = np.diff(ends[:length])
            predicted[row, : len(gained)] = gained
    names = np.array([document.name for document in documents], dtype=object)
    lengths = np.minimum(sizes, length)
    if cut := int((sizes[chosen] > length).sum()):
        say_once(f"data={config.name}: {cut:,} of {len(chosen):,} lines are cut off at {length} tokens")
    places = names[owner[chosen]], first_token[chosen], lengths[chosen]
    return Windows(ids, predicted_bytes, *places, words=predicted_words)


def _begun(line: TokenizedDocument, bos: int | None) -> TokenizedDocument:
    """The line with the beginning-of-text token, if any, in front."""
    if bos is None:
        return line
    ends = (np.insert(counts, 0, 0) for counts in (line.byte_ends, line.word_ends))
    return TokenizedDocument(line.name, np.insert(line.ids, 0, bos), *ends)


def predicting(windows: Windows) -> Windows:
    """The windows with at least one token to predict."""
    return windows.take(np.flatnonzero(windows.predicted > 0))
