"""Conversations as text: written by a chat template, with the place of every response.

The tokenizer's own template is used if it has one. Templates are Jinja, which transformers runs in a sandbox.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hylo.core.errors import ConfigError, problem
from hylo.data.base import Document, Message, Template

PLAIN = (
    "{% for message in messages %}### {{ message.role | capitalize }}:\n{{ message.content }}"
    "{{ (eos_token or '') if message.role == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""The plain template: "### User:", the message, an empty line, and so on; a response ends with the end-of-text token if
the tokenizer has one."""
TODAY = datetime(2025, 1, 1, tzinfo=UTC)
"""The date for templates that write today's, which would be another text every day."""
_FORMATS = "".join(f" | replace('%{letter}', '{TODAY.strftime(f'%{letter}')}')" for letter in "aAbBdmYyHM")
_STRFTIME_NOW = "{% macro strftime_now(format) %}{{ format" + _FORMATS + " }}{% endmacro %}"
"""In front of a template that asks for today's date: takes the place of transformers' function."""


@dataclass(frozen=True)
class Response:
    """Places of a response in the written text, in characters."""

    start: int
    """Where the model begins to write."""
    content: int
    """Where the response's own text begins: the same place, unless the template writes something before it."""
    content_end: int
    end: int
    """After what the template ends a response with, which the model has to predict too; without line ends after it."""


def template_text(tokenizer: PreTrainedTokenizerBase, template: Template) -> str:
    """The Jinja template that conversations are written with."""
    own = tokenizer.chat_template if template is Template.auto else None
    if isinstance(own, dict):
        own = own.get("default")
    if own is None:
        return PLAIN
    return f"{_STRFTIME_NOW}{own}" if "strftime_now" in own else own


def written(document: Document, tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, list[Response]]:
    """The text of a conversation and its responses.

    Args:
        document: a document with messages.
        tokenizer: gives the template its special tokens.
        template: Jinja, see `template_text`.

    Raises:
        ConfigError: the template refuses the conversation, changes a response, or rewrites earlier messages.
    """
    messages, responses = document.messages, []
    whole = _apply(document, messages, tokenizer, template)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _apply(document, messages[:place], tokenizer, template, asked=True)
        after = _apply(document, messages[: place + 1], tokenizer, template)
        content = message.content.strip()
        found = after.find(content, len(before))
        if not (after.startswith(before) and whole.startswith(after) and found >= 0):
            raise _unusable(document, "one that writes every response as it is, after the messages before it")
        responses.append(Response(len(before), found, found + len(content), len(after.rstrip())))
    return whole, responses


def _apply(
    document: Document,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    *,
    asked: bool = False,
) -> str:
    """The messages as text, with the beginning of a response if one is asked for."""
    turns: list[Any] = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=asked,
            date_string=TODAY.strftime("%d %b %Y"),
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise _unusable(document, f"one that takes the conversation ({error})") from error
    assert isinstance(text, str)
    return text


def _unusable(document: Document, allowed: str) -> ConfigError:
    return ConfigError(problem("data.chat_template", f"auto, for {document.name}", allowed, "data.chat_template=plain"))
