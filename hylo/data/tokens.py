"""Tokenises documents, once: results are cached by content."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from hylo.core.cache import cached_folder, text_hash
from hylo.core.errors import ConfigError, problem
from hylo.data.base import Bos, Document

_FORMAT = "3"
"""Part of the cache key; increase it when tokenisation changes."""


@dataclass(frozen=True)
class TokenizedDocument:
    """A document's tokens.

    Attributes:
        ids: [n] int32.
        byte_ends: [n] int64, UTF-8 bytes of the text up to the end of each token; a token that ends inside a character
            counts all of that character's bytes.
        word_ends: [n] int64, words of the text that begin before the end of each token; a word is a run of characters
            that are not white space.
    """

    name: str
    ids: np.ndarray
    byte_ends: np.ndarray
    word_ends: np.ndarray


def documents_identity(documents: list[Document]) -> str:
    """Hash of the documents' names, texts and conversations."""
    return text_hash(*(part for document in documents for part in _parts(document)))


def _parts(document: Document) -> tuple[str, ...]:
    turns = (part for message in document.messages for part in (message.role, message.content))
    return document.name, document.text, *turns


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the complete state of a fast tokenizer."""
    backend: Any = tokenizer.backend_tokenizer
    return text_hash(backend.to_str())


def bos_token(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> int | None:
    """The token that begins a window; None: there is none.

    Raises:
        ConfigError: it is wanted always, and the tokenizer has none.
    """
    token = tokenizer.bos_token_id
    if bos is Bos.always and not isinstance(token, int):
        allowed = "auto or never: this model's tokenizer has no beginning-of-text token"
        raise ConfigError(problem("data.bos", bos.name, allowed, "data.bos=auto"))
    by_itself = tokenizer("a")["input_ids"][:1] == [token]
    return token if isinstance(token, int) and (bos is Bos.always or (bos is Bos.auto and by_itself)) else None


def tokenize(documents: list[Document], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedDocument]:
    """Tokenises the documents as shipped, without cleaning or special tokens. Cached by content."""
    key = text_hash(_FORMAT, documents_identity(documents), tokenizer_identity(tokenizer))
    folder = cached_folder(f"tokens/{key[:24]}", lambda draft: _make(documents, tokenizer, draft))
    names = json.loads((folder / "documents.json").read_text())
    with safe_open(folder / "tokens.safetensors", framework="numpy") as file:
        ids, byte_ends, word_ends, ends = (file.get_tensor(name) for name in ("ids", "byte_ends", "word_ends", "ends"))
    starts = np.concatenate([[0], ends[:-1]])
    return [
        TokenizedDocument(name, ids[start:end], byte_ends[start:end], word_ends[start:end])
        for name, start, end in zip(names, starts, ends, strict=True)
    ]


def _make(documents: list[Document], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    ids, byte_ends, word_ends = [], [], []
    for document in documents:
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        character_ends = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 1]
        character_ends[-1:] = len(document.text)  # a normalizer or trimmed spaces can end the last token early
        character_bytes = [len(character.encode()) for character in document.text]
        space = np.array([True, *(character.isspace() for character in document.text)])
        begins = space[:-1] & ~space[1:]
        ids.append(np.asarray(encoded["input_ids"], dtype=np.int32))
        for ends, counts in ((byte_ends, character_bytes), (word_ends, begins)):
            ends.append(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[character_ends])
    tensors = {
        "ids": np.concatenate(ids),
        "byte_ends": np.concatenate(byte_ends),
        "word_ends": np.concatenate(word_ends),
        "ends": np.cumsum([len(each) for each in ids], dtype=np.int64),
    }
    save_file(tensors, folder / "tokens.safetensors")
    (folder / "documents.json").write_text(json.dumps([document.name for document in documents]))
