"""Training text for retrieval: document contents, one window per document, and no overlap with the probe."""

import re
from typing import Any

import numpy as np
import pytest
from launch import composed
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hylo.core.errors import ConfigError
from hylo.data.base import Split
from hylo.data.kv.text import PROBE_CODES
from hylo.data.kv.words import PROBE_WORDS
from hylo.data.sources.kv_lists import KvListsConfig
from hylo.data.tokens import tokenize
from hylo.data.windows import cut_windows
from hylo.models.tiny import byte_tokenizer
from hylo.runs.cell import check_documents
from hylo.runs.shared import Session

SMALL: dict[str, Any] = {"name": "kv_retrieval", "train_documents": 40, "held_out_documents": 10}


def word_tokenizer(digits: int) -> PreTrainedTokenizerBase:
    """One token per word with its space, sign, or group of digits, like English tokenizers on such a text.

    With one digit per token it matches SmolLM2: the space before a number is then a separate token.
    """
    space = "" if digits == 1 else " ?"
    pattern = rf" ?[A-Za-z]+|{space}[0-9]{{1,{digits}}}|."
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern + r"|\n"), "isolated")
    texts = [document.text for document in KvListsConfig(**SMALL).documents(Split.train)]
    numbers = [f"{lead}{number}" for number in range(10**digits) for lead in ("", " ")]
    tokenizer.train_from_iterator(texts + numbers, trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def parsed(text: str) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """A document's facts, and its questions with their answers."""
    facts, _, questions = text.partition("\n\n")
    lines = [re.fullmatch(r"The code for (\w+) is (\d{4})\.", line) for line in facts.splitlines()]
    assert all(lines)
    asked = re.findall(r"Question: what is the code for (\w+)\?\nAnswer: The code for (\w+) is (\d{4})\.\n", questions)
    assert [first for first, _, _ in asked] == [second for _, second, _ in asked]
    assert len(asked) == questions.count("Question")
    return {line[1]: int(line[2]) for line in lines if line}, [(word, int(code)) for word, _, code in asked]


def test_every_question_is_answered_from_its_list() -> None:
    config = KvListsConfig(**SMALL)
    sizes = []
    for document in config.documents(Split.train):
        facts, asked = parsed(document.text)
        assert all(facts[word] == code for word, code in asked)
        assert len(set(facts.values())) == len(facts)
        rounds = [word for word, _ in asked][: len(facts)]
        assert len(set(rounds)) == len(rounds), "every fact once before any again"
        sizes.append(len(facts))
    assert min(sizes) == 4
    assert max(sizes) == 14


@pytest.mark.parametrize("split", list(Split))
def test_nothing_of_the_probe_is_trained_on(split: Split) -> None:
    codes = set(PROBE_CODES.tolist())
    documents = KvListsConfig(**SMALL, context_length=512).documents(split)
    assert len(documents) > 1
    for document in documents:
        facts, _ = parsed(document.text)
        assert facts
        assert not facts.keys() & set(PROBE_WORDS)
        assert not set(facts.values()) & codes


def test_documents_depend_on_the_seed_and_the_split() -> None:
    config = KvListsConfig(**SMALL)
    assert config.documents(Split.train) == KvListsConfig(**SMALL).documents(Split.train)
    longer: dict[str, Any] = SMALL | {"train_documents": 50}
    more = KvListsConfig(**longer).documents(Split.train)
    assert more[:40] == config.documents(Split.train)
    other = KvListsConfig(**SMALL, seed=1).documents(Split.train)
    texts = [document.text for split in Split for document in config.documents(split)]
    texts += [document.text for document in other]
    assert len(texts) == len(set(texts)) == 2 * 40 + 2 * 10


@pytest.mark.parametrize("context", [128, 256, 512, 1024])
@pytest.mark.parametrize("digits", [1, 2, 3])
def test_one_window_a_document_from_its_first_token(digits: int, context: int) -> None:
    """For English tokenizers, however they split numbers; the window holds the list and at least one question."""
    config = KvListsConfig(**SMALL, context_length=context)
    documents, tokenizer = config.documents(Split.train), word_tokenizer(digits)
    tokenized = tokenize(documents, tokenizer)
    assert {len(each.ids) // context for each in tokenized} == {1}
    windows = cut_windows(tokenized, context)
    assert len(windows) == 40
    assert (windows.first_token == 0).all()
    questions = [
        document.text.encode()[: each.byte_ends[context - 1]].count(b"Answer")
        for document, each in zip(documents, tokenized, strict=True)
    ]
    assert min(questions) >= (2 if context > 128 else 1)


def test_bytes_are_tokens_where_the_config_says_so() -> None:
    config = KvListsConfig(**SMALL, context_length=400, characters_per_token=1.1)
    assert {len(each.ids) // 400 for each in tokenize(config.documents(Split.train), byte_tokenizer())} == {1}


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"max_facts": 30}, ["data.max_facts = 30", "at most 14 with data.context_length=256", "data.context_length="]),
        ({"min_facts": 9, "max_facts": 8}, ["data.min_facts = 9", "min_facts <= max_facts"]),
        ({"context_length": 32}, ["data.min_facts = 4", "at most 1 with"]),
    ],
)  # fmt: skip
def test_lists_that_leave_no_room_are_refused(settings: dict[str, Any], texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        KvListsConfig(**SMALL, **settings).documents(Split.train)
    assert [text for text in texts if text not in str(caught.value)] == []


def test_the_suggested_context_is_long_enough() -> None:
    with pytest.raises(ConfigError) as caught:
        KvListsConfig(**SMALL, max_facts=60).documents(Split.train)
    (length,) = re.findall(r"data\.context_length=(\d+), or", str(caught.value))
    assert KvListsConfig(**SMALL, max_facts=60, context_length=int(length)).documents(Split.train)


def test_it_is_composed_and_passes_the_check_of_documents() -> None:
    config = composed("data=kv_retrieval", "data.context_length=1024", "model=tiny_llama", "data.train_documents=30")
    check_documents(config, Session())
    documents = config.data.documents(Split.train)
    assert np.mean([len(parsed(document.text)[0]) for document in documents]) > 20
