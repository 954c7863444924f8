"""Rows of prompts and answers, or of messages, as conversations. Their column names are settings.

Three forms of rows are read:

    prompt and response     the prompt from one or several columns                    Alpaca, MetaMathQA
    a list of messages      each with a role and a content                            ChatML, ShareGPT
    one message per row     with the identity of the message that it answers          OASST
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from hylo.core.devices import say_once
from hylo.core.errors import ConfigError, problem
from hylo.data.base import DataConfig, Document, Message, Protocol, Split, Template
from hylo.data.threads import threads

Row = tuple[str, dict[str, Any]]
"""A row's name and its columns."""
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""The three roles by the names that data sets give them."""


@dataclass(kw_only=True, slots=True)
class ConversationConfig(DataConfig):
    """Where a row holds its prompt and response, or its messages. Subclasses add where the rows come from."""

    protocol: Protocol = Protocol.samples
    """samples: a conversation is never cut into windows."""
    prompt_columns: list[str] = field(default_factory=lambda: ["prompt"])
    """Columns of the prompt, the user's message; those with text are joined by an empty line."""
    response_column: str = "response"
    """Column of the response."""
    system: str | None = None
    """System message in front of conversations without one; None: none. A chat template may add its own."""
    messages_column: str | None = None
    """Column with a list of messages, instead of a prompt and a response."""
    role: str = "role"
    """The role of a message: in the list of messages, or the column of rows that are messages."""
    content: str = "content"
    """The text of a message, likewise."""
    id_column: str | None = None
    """Column with the identity of a message, where a row is one message of a tree of answers. Each tree gives one
    conversation: from its root, always the answer of the best rank."""
    parent_column: str = "parent_id"
    """Column with the identity of the message that is answered; empty at the root."""
    rank_column: str = "rank"
    """Column with the rank among the answers to one message, 0 is best."""
    where: dict[str, str] = field(default_factory=dict)
    """Only rows with these values, by column."""
    skip_empty: bool = False
    """Leave out conversations with an empty message or without a response, and say how many; false: refuse them."""
    chat_template: Template = Template.auto
    """auto: the tokenizer's own chat template, or plain without one; plain: the one of hylo/data/chat.py."""

    @property
    def template(self) -> Template:
        return self.chat_template


def conversations(
    rows: Iterable[Row], config: ConversationConfig, split: Split, *, most: int | None = None
) -> list[Document]:
    """The conversations of a split's rows, `most` at most.

    Raises:
        ConfigError: a column is missing or holds something else, a role is unknown, or a conversation has an empty
            message or no response and `skip_empty` is off.
    """
    chosen = (row for row in rows if all(str(_column(row, key, "where")) == want for key, want in config.where.items()))
    empty: Counter[str] = Counter()

    def documents() -> Iterator[Document]:
        for name, messages in _messages(chosen, config):
            if fault := _fault(messages):
                empty[fault] += 1
                if not config.skip_empty:
                    fix = "correct or remove it, or data.skip_empty=true"
                    raise ConfigError(problem(f"{split.name} data, {name}", fault, "a prompt and a response", fix))
                continue
            if config.system and messages[0].role != "system":
                messages = (Message("system", config.system), *messages)
            yield Document(name, "\n\n".join(message.content for message in messages), messages)

    taken = list(islice(documents(), most))
    for fault, count in empty.items():
        say_once(f"data={config.name}: {count:,} {split.name} conversations are left out: {fault}")
    return taken


def _messages(rows: Iterable[Row], config: ConversationConfig) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """The messages of each conversation, with the name of its (first) row."""
    if config.id_column:
        for name, turns in threads(rows, config.id_column, config.parent_column, config.rank_column):
            yield name, _of_turns(name, turns, config)
        return
    for row in rows:
        yield row[0], _of_list(row, config) if config.messages_column else _of_columns(row, config)


def _fault(messages: tuple[Message, ...]) -> str | None:
    """Why nothing can be learned from a conversation; None: something can."""
    if not any(message.role == "assistant" for message in messages):
        return "no response"
    for message in messages:
        if not message.content.strip():
            return f"empty {'response' if message.role == 'assistant' else 'prompt'}"
    return None


def _of_columns(row: Row, config: ConversationConfig) -> tuple[Message, ...]:
    prompts = [_text(row, name, "prompt_columns") for name in config.prompt_columns]
    prompt = "\n\n".join(text for text in prompts if text.strip())
    return Message("user", prompt), Message("assistant", _text(row, config.response_column, "response_column"))


def _of_list(row: Row, config: ConversationConfig) -> tuple[Message, ...]:
    assert config.messages_column is not None
    turns = _column(row, config.messages_column, "messages_column")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _wrong(row, "messages_column", config.messages_column, "a column with a list of messages")
    return _of_turns(row[0], turns, config)


def _of_turns(name: str, turns: list[dict[str, Any]], config: ConversationConfig) -> tuple[Message, ...]:
    messages = []
    for turn in turns:
        role = ROLES.get(_text((name, turn), config.role, "role"))
        if role is None:
            raise _wrong((name, turn), "role", config.role, f"the role of a message: {', '.join(ROLES)}")
        messages.append(Message(role, _text((name, turn), config.content, "content")))
    while messages and messages[-1].role != "assistant":  # nothing answers these
        messages.pop()
    return tuple(messages)


def _text(row: Row, column: str, key: str) -> str:
    value = _column(row, column, key)
    if value is not None and not isinstance(value, str):
        raise _wrong(row, key, column, "a column of text")
    return value or ""


def _column(row: Row, column: str, key: str) -> Any:
    if column not in row[1]:
        raise _wrong(row, key, column, f"a column of the data ({', '.join(sorted(row[1]))})")
    return row[1][column]


def _wrong(row: Row, key: str, column: str, allowed: str) -> ConfigError:
    return ConfigError(problem(f"data.{key}", column, f"{allowed}; see {row[0]}", "name the right column"))
