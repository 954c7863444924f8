"""Tokens: as produced by the tokenizer, with the bytes that each covers; cached, and never confused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hylo.core.errors import ConfigError
from hylo.data.base import Bos, Document
from hylo.data.tokens import TokenizedDocument, bos_token, tokenize
from hylo.models.tiny import END_OF_TEXT, byte_tokenizer

CORPUS = ["To be, or not to be: that is the question. \n\n\tcafé é naïve ﬁ 北京大学 🙂🙃👩‍👧 \r\n"] * 4


def byte_level(*, trim: bool, normalizer: Any = None) -> PreTrainedTokenizerBase:
    """Byte-level BPE, like GPT-2, SmolLM2 and (with a normalizer) Qwen2; special tokens at both ends."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=310, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    template = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), template])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def sentence_piece() -> PreTrainedTokenizerBase:
    """A space before the text and byte fallback for rare characters, like Llama."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, limit_alphabet=25, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "trimmed": byte_level(trim=True),
    "untrimmed": byte_level(trim=False),
    "normalized": byte_level(trim=False, normalizer=normalizers.NFC()),
    "sentence pieces": sentence_piece(),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("trimmed", {Bos.auto: 0, Bos.always: 0, Bos.never: None}), ("bytes", {Bos.auto: None, Bos.never: None})],
)
def test_a_window_begins_as_the_tokenizer_begins_a_text(name: str, expected: dict[Bos, int | None]):
    assert {bos: bos_token(TOKENIZERS[name], bos) for bos in expected} == expected


def test_a_tokenizer_that_begins_no_text_by_itself():
    """GPT-2's has such a token, and puts none in front."""
    tokenizer = byte_tokenizer()
    with pytest.raises(ConfigError, match=r"data\.bos = 'always'(.|\n)*data\.bos=auto"):
        bos_token(tokenizer, Bos.always)
    tokenizer.bos_token = END_OF_TEXT
    assert bos_token(tokenizer, Bos.auto) is None
    assert bos_token(tokenizer, Bos.always) == tokenizer.eos_token_id


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test only."""
    monkeypatch.setenv("HYLO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def documents(*texts: str) -> list[Document]:
    return [Document(f"document {index}", text) for index, text in enumerate(texts)]


def check(tokens: TokenizedDocument, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks the tokenizer's ids, and that byte ends rise to the text's length."""
    assert tokens.ids.dtype == np.int32
    assert tokens.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokens.byte_ends) == len(tokens.ids)
    sizes = np.diff(tokens.byte_ends, prepend=0)
    assert (sizes >= 0).all()
    assert sizes.sum() == len(text.encode())


TEXTS = [
    "To be, or not to be", "", " ", " a  \n\n ", "trailing \t", "\r\n", "café", "cafe\u0301", "ﬁ", "北京 東京", "🙂",
    "x🙃y", "👩‍👧", "a\u200db\ufeff", "\x00", END_OF_TEXT, "<s>", "é" * 50,
]  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_bytes(name: str):
    """Most of these split multi-byte characters over several tokens: one byte per character, or byte counts from
    decoding each token alone, would be wrong. Documents do not run into each other."""
    tokenizer = TOKENIZERS[name]
    for tokens, text in zip(tokenize(documents(*TEXTS), tokenizer), TEXTS, strict=True):
        check(tokens, text, tokenizer)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_and_bytes_of_any_text(name: str, text: str):
    (tokens,) = tokenize(documents(text), TOKENIZERS[name])
    check(tokens, text, TOKENIZERS[name])


def test_a_character_counts_where_its_first_token_ends():
    (tokens,) = tokenize(documents("aé🙂b"), byte_tokenizer())
    assert tokens.byte_ends.tolist() == [1, 3, 3, 7, 7, 7, 7, 8]


def test_names_and_order():
    given_documents = [Document("z", "one"), Document("a/b c.txt", "two"), Document("é", "three")]
    tokens = tokenize(given_documents, byte_tokenizer())
    assert [each.name for each in tokens] == ["z", "a/b c.txt", "é"]
    assert [len(each.ids) for each in tokens] == [3, 3, 5]


def test_a_second_call_reads_the_cache():
    tokenizer = byte_level(trim=False)
    first = tokenize(documents(*TEXTS), tokenizer)
    mute = cast(PreTrainedTokenizerBase, SimpleNamespace(backend_tokenizer=tokenizer.backend_tokenizer))
    with pytest.raises(TypeError, match="not callable"):
        tokenize(documents("another text"), mute)
    second = tokenize(documents(*TEXTS), mute)
    assert [each.name for each in second] == [each.name for each in first]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.byte_ends, other.byte_ends)


@pytest.mark.parametrize(
    "change",
    [
        documents("one", "two!"),
        documents("two", "one"),
        documents("onet", "wo"),  # the same characters, split elsewhere
        documents("one"),
        [Document("document 0", "one"), Document("renamed", "two")],
    ],
    ids=["text", "order", "cut", "fewer", "name"],
)
def test_other_documents_have_another_entry(cache: Path, change: list[Document]):
    tokenizer = byte_tokenizer()
    tokenize(documents("one", "two"), tokenizer)
    for tokens, document in zip(tokenize(change, tokenizer), change, strict=True):
        assert tokens.name == document.name
        assert tokenizer.decode(tokens.ids) == document.text
    assert len(list((cache / "tokens").iterdir())) == 2


def test_another_tokenizer_has_another_entry(cache: Path):
    """Even one with the same tokens and ids that only differs in the order of its merges."""
    vocabulary = {token: index for index, token in enumerate(("a", "b", "c", "ab", "bc"))}
    found = []
    for merges in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")]):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)))
        (tokens,) = tokenize(documents("abc"), tokenizer)
        found.append(tokens.ids.tolist())
    assert found == [[3, 2], [0, 4]]
    assert len(list((cache / "tokens").iterdir())) == 2
