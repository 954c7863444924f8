"""Columns of the retrieval probes' tables, and their score from accuracy by depth. Arrays only: reports need no model.

A retrieval probe asks for facts at several depths of texts of several lengths: a grid.
"""

from typing import Any, NamedTuple

import numpy as np


class Grid(NamedTuple):
    """The words of a retrieval probe: columns of its table, and what a point of the grid is called."""

    length: str
    """Column with the length of the text, in what it counts."""
    text: str
    """Column with the number of the text among those of its length."""
    fact: str
    """What is asked for, as in `fact 3 of 60`."""

    @property
    def columns(self) -> list[str]:
        """Of the table, one row per question: length, text, depth (0 is the first), place (of the fact, counted from 0
        in the unit of the length), exact (1: greedy decoding gives the answer; else 0), answer_logprob (nats, the sum
        over the answer's tokens), answer_tokens."""
        return [self.length, self.text, "depth", "place", "exact", "answer_logprob", "answer_tokens"]

    def where(self, place: float, length: int) -> str:
        """A point of the grid in words."""
        return f"{self.fact} {place + 1:,.0f} of {length:,}"


GRIDS = {"kv": Grid("facts", "list", "fact"), "needle": Grid("tokens", "haystack", "needle at token")}
"""The retrieval probes by name."""


def ends_minus_middle(by_depth: np.ndarray) -> Any:
    """The mean of the first and last depth minus the mean of the others, along the last axis, [..., D] to [...]."""
    return by_depth[..., [0, -1]].mean(axis=-1) - by_depth[..., 1:-1].mean(axis=-1)
