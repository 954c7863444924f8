"""Columns of the retrieval probe's table, and its score from accuracy by depth. Arrays only: reports need no model."""

from typing import Any

import numpy as np

COLUMNS = ["facts", "list", "depth", "place", "exact", "answer_logprob", "answer_tokens"]
"""facts in the list, list, depth (0 is the first fact), place (index of the fact), exact (1: greedy decoding gives the
answer; else 0), answer_logprob (nats, the sum over the answer's tokens), answer_tokens; one row per question."""


def ends_minus_middle(by_depth: np.ndarray) -> Any:
    """The mean of the first and last depth minus the mean of the others, along the last axis, [..., D] to [...]."""
    return by_depth[..., [0, -1]].mean(axis=-1) - by_depth[..., 1:-1].mean(axis=-1)
