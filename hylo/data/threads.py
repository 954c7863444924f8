"""Trees of messages, where several people answered the same message, as one conversation per tree (the form of OASST,
arXiv 2304.07327)."""

from collections.abc import Iterable, Iterator
from typing import Any

from hylo.core.errors import ConfigError, problem


def threads(
    rows: Iterable[tuple[str, dict[str, Any]]], identity: str, parent: str, rank: str
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The best thread of each tree: its messages from the root on, always the answer of the lowest rank, and the name
    of the root's row. Answers without a rank come last; of equals, the first.

    Args:
        rows: each a message, with its name.
        identity, parent, rank: the columns of a message's identity, of that of the message it answers (empty at the
            root of a tree), and of its rank among the answers. A row may lack a rank.

    Raises:
        ConfigError: a message has no identity, or another one's: a thread might never end.
    """
    messages = list(rows)
    _check_identities(messages, identity)
    answers: dict[Any, list[dict[str, Any]]] = {}
    for _, message in messages:
        answers.setdefault(message.get(parent), []).append(message)
    for name, message in messages:
        if message.get(parent):
            continue
        thread = [message]
        while following := answers.get(thread[-1].get(identity)):
            thread.append(min(following, key=lambda each: (each.get(rank) is None, each.get(rank) or 0)))
        yield name, thread


def _check_identities(messages: Iterable[tuple[str, dict[str, Any]]], identity: str) -> None:
    seen: dict[str, str] = {}
    for name, message in messages:
        own = message.get(identity)
        fault = "empty" if own in (None, "") else f"that of {seen[str(own)]}" if str(own) in seen else ""
        if fault:
            allowed = f"a column with an identity for each message; in {name} it is {fault}"
            raise ConfigError(problem("data.id_column", identity, allowed, "name the right column"))
        seen[str(own)] = name
