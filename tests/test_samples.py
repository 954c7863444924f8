"""Conversations as samples: what is written, which tokens are predicted, what their bytes are, what does not fit."""

from typing import Any

import numpy as np
import pytest
from launch import composed
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hylo.core.errors import ConfigError
from hylo.data.base import Bos, Document, Message, Protocol, Split, Template
from hylo.data.chat import PLAIN, template_text, written
from hylo.data.samples import cut_samples
from hylo.data.sources.instruction_files import InstructionFilesConfig
from hylo.data.sources.text_files import TextFilesConfig
from hylo.data.windows import IGNORED
from hylo.models.tiny import END_OF_TEXT, byte_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def conversation(*turns: str, name: str = "row") -> Document:
    """Turns of a user and an assistant, alternately."""
    messages = tuple(Message(("user", "assistant")[index % 2], turn) for index, turn in enumerate(turns))
    return Document(name, "\n\n".join(turns), messages)


def config(length: int = 128, **settings: Any) -> InstructionFilesConfig:
    return InstructionFilesConfig(name="chats", context_length=length, **settings)


def with_template(template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def predicted(document: Document, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> list[str]:
    """The stretches of text that the sample's predicted tokens make up."""
    windows = cut_samples([document], tokenizer, config(**settings)).windows
    (labels,) = windows.labels()
    stretches = np.split(labels, np.flatnonzero(np.diff(labels != IGNORED)) + 1)
    return [str(tokenizer.decode(each)) for each in stretches if each[0] != IGNORED]


# --- which tokens are predicted ---


def test_the_plain_template():
    """Written out: what docs/data.md shows."""
    text, (response,) = written(conversation("Why?", "Because."), byte_tokenizer(), PLAIN)
    assert text == f"### User:\nWhy?\n\n### Assistant:\nBecause.{END_OF_TEXT}\n\n"
    assert text[: response.start].endswith("### Assistant:\n")
    assert text[response.content : response.content_end] == "Because."
    assert text[response.start : response.end] == f"Because.{END_OF_TEXT}"


@pytest.mark.parametrize(("template", "end"), [(None, END_OF_TEXT), (CHATML, "<|im_end|>")])
def test_responses_and_their_ends_are_predicted(template: str | None, end: str):
    """Every response of a conversation, with the token that ends it: without it a model would never stop."""
    chat = conversation("One?", "Ein 🙂", "Two?", " Zwei\nDrei")
    assert predicted(chat, with_template(template)) == [f"Ein 🙂{end}", f" Zwei\nDrei{end}"]
    assert predicted(chat, with_template(template), chat_template=Template.plain)[0] == f"Ein 🙂{END_OF_TEXT}"


@pytest.mark.parametrize("template", [None, CHATML])
def test_bytes_are_those_of_the_responses_own_text(template: str | None):
    """What a template writes is easy to predict: with its bytes, bits per byte would be too low."""
    chat = conversation("Frage 🙂?", "Größe 🙂", "Und?", "ß")
    windows = cut_samples([chat], with_template(template), config(256)).windows
    assert windows.bytes.sum() == len("Größe 🙂ß".encode())
    assert windows.targets() == len("Größe 🙂ß".encode()) + 2, "byte tokens, and two that end a response"


def test_a_token_across_the_start_of_a_response_belongs_to_it():
    """With its share of bytes, so that no character of a response is left out."""
    vocabulary = {"q": 0, ":": 1, "a": 2, "b": 3, ":a": 4}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "a")])))
    fast.chat_template = (
        "{% for message in messages %}{{ message.content }}{% if message.role == 'user' %}:{% endif %}{% endfor %}"
    )
    windows = cut_samples([conversation("q", "ab")], fast, config(8)).windows
    assert windows.ids[0, :3].tolist() == [0, 4, 3]
    assert windows.counted is not None
    assert windows.counted[0].tolist() == [False, True, True] + [False] * 5
    assert windows.bytes[0, :2].tolist() == [1, 1]


def test_the_loss_of_prompts_is_a_switch():
    """Of training alone: the session asks for it with the training split."""
    chat, tokenizer = conversation("One?", "Ein"), byte_tokenizer()
    (labels,) = cut_samples([chat], tokenizer, config(), everything=True).windows.labels()
    text, _ = written(chat, tokenizer, PLAIN)
    assert tokenizer.decode(labels[labels != IGNORED]) == text[1:].rstrip(), (
        "from the second token to the last response"
    )


def test_a_plain_text_is_predicted_whole():
    data = TextFilesConfig(name="x", context_length=8, protocol=Protocol.samples)
    found = cut_samples([Document("a", "ab"), Document("b", "x"), Document("c", "123456789")], byte_tokenizer(), data)
    assert found.windows.lengths.tolist() == [2, 8]
    assert found.windows.predicted.tolist() == [1, 7]
    assert found.windows.bytes.sum(axis=1).tolist() == [1, 7]
    assert (found.truncated, found.left_out) == (1, 1)


@pytest.mark.parametrize("writes_it", [False, True])
def test_a_beginning_of_text_token_comes_once(writes_it: bool):
    """Templates of Llama and Gemma write it themselves."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = ("{{ bos_token }}" if writes_it else "") + CHATML
    windows = cut_samples([conversation("One?", "Ein")], tokenizer, config(bos=Bos.always)).windows
    assert windows.ids[0].tolist().count(tokenizer.bos_token_id) == 1
    assert windows.ids[0, 0] == tokenizer.bos_token_id
    never = cut_samples([conversation("One?", "Ein")], tokenizer, config(bos=Bos.never)).windows
    assert never.ids[0].tolist().count(tokenizer.bos_token_id) == writes_it, "what a template writes stays"


# --- what does not fit ---


def test_truncation_is_counted_and_said():
    tokenizer = byte_tokenizer()
    chats = [conversation("a" * size, "b" * 10, name=f"row {size}") for size in (1, 20, 40, 200)]
    found = cut_samples(chats, tokenizer, config(48))
    assert found.windows.document.tolist() == ["row 1", "row 20"]
    assert (found.truncated, found.left_out) == (1, 2)
    assert found.said("chats", Split.train) == [
        "data=chats: 1 of 2 train samples are cut off at 48 tokens",
        "data=chats: 2 train documents are left out, because nothing to predict lies in their first 48 tokens",
    ]
    assert cut_samples(chats, tokenizer, config(512)).said("chats", Split.train) == []
    with pytest.raises(ConfigError, match=r"data\.context_length = 16\n.*something to predict"):
        cut_samples(chats, tokenizer, config(16))


# --- templates ---

REWRITES = CHATML.replace("message['content']", "(message['content'] if loop.last else 'gone')")
UPPER = CHATML.replace("message['content']", "message['content'] | upper")
REFUSES = "{{ raise_exception('System role not supported') }}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [(REWRITES, "as it is"), (UPPER, "as it is"), (REFUSES, "System role not supported"), ("{% for %}", "Expected")],
)
def test_a_template_that_cannot_be_used(template: str, reason: str):
    """One that leaves out earlier messages, say: the tokens trained on would not be those of a chat."""
    with pytest.raises(ConfigError, match=r"data\.chat_template = 'auto, for row'") as caught:
        cut_samples([conversation("a", "b", "c", "d")], with_template(template), config())
    assert reason in str(caught.value)
    assert "data.chat_template=plain" in str(caught.value)


def test_a_template_that_writes_the_date_writes_the_same_every_day():
    tokenizer = with_template(
        "{{ strftime_now('%d %b %Y') }} {{ date_string }} {{ strftime_now('%A %Y-%m') }}\n" + CHATML
    )
    text, _ = written(conversation("a", "b"), tokenizer, template_text(tokenizer, Template.auto))
    assert text.startswith("01 Jan 2025 01 Jan 2025 Wednesday 2025-01\n<|im_start|>user")


def test_of_several_templates_the_default_one_is_used():
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    assert template_text(tokenizer, Template.auto) == CHATML
    assert template_text(tokenizer, Template.plain) == template_text(byte_tokenizer(), Template.auto) == PLAIN


@pytest.mark.slow
def test_the_default_models_own_template():
    tokenizer = composed("data=instructions").model.tokenizer()
    windows = cut_samples([conversation("One?", "Ein, zwei.")], tokenizer, config()).windows
    text = str(tokenizer.decode(windows.ids[0, : windows.lengths[0]]))
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    labels = windows.labels()[0]
    assert tokenizer.decode(labels[labels != IGNORED]) == "Ein, zwei.<|im_end|>"
    assert windows.bytes.sum() == len("Ein, zwei.")
