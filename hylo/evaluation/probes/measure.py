"""Scores answers at the end of texts: log-probability, and whether greedy decoding gives them. Shared by probes.

Questions with a common prefix are read together: the prefix is read once, into a cache, which is then repeated for the
rest of each question. If the run's audit found that the cache changes the numbers (published pooling that sees later
tokens), every question gets a full forward pass.

Shapes: D questions, P shared tokens, T tokens of the longest remainder, V vocabulary size.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel
from hylo.data.base import Bos, Document
from hylo.data.tokens import bos_token, tokenize
from hylo.data.windows import model_inputs


@dataclass(frozen=True, kw_only=True)
class Questions:
    """D questions with a common prefix, as tokens.

    Attributes:
        prefix: [P] int32, the common prefix; may be empty if the questions are read by full forward passes.
        tails: D arrays [T_d] int32, the remainders, each ending with the answer.
        answer_tokens: [D], number of tokens of the answer.
    """

    prefix: np.ndarray
    tails: list[np.ndarray]
    answer_tokens: np.ndarray

    @property
    def longest(self) -> int:
        """Number of tokens of the longest question with its answer."""
        return len(self.prefix) + max(len(tail) for tail in self.tails)

    @property
    def tokens(self) -> int:
        """Number of tokens read if the prefix is read once."""
        return len(self.prefix) + sum(len(tail) for tail in self.tails)


def tokens_of(
    texts: Sequence[str], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[np.ndarray], list[int]]:
    """Tokenises texts that end with their answers; returns the tokens and how many of them belong to the answer.

    A text is tokenised as a whole, and a token belongs to the answer if any of its characters does. This gives the
    tokenizer's natural tokens, wherever it puts the space before a word. A beginning-of-text token stands in front if
    the tokenizer puts one there by itself.
    """
    tokenized = tokenize([Document(str(place), text) for place, text in enumerate(texts)], tokenizer)
    before = [len(text.encode()) - len(answer.encode()) for text, answer in zip(texts, answers, strict=True)]
    counts = [int((each.byte_ends > start).sum()) for each, start in zip(tokenized, before, strict=True)]
    bos = bos_token(tokenizer, Bos.auto)
    return [each.ids if bos is None else np.insert(each.ids, 0, bos) for each in tokenized], counts


@torch.no_grad()
def answered(
    model: AdaptedModel, questions: Questions, accelerator: Accelerator, *, cached: bool
) -> list[tuple[bool, float]]:
    """For each question, whether greedy decoding gives its answer, and the answer's log-probability in nats.

    The log-probability may not be finite. The model must be in evaluation mode.
    """
    with accelerator.autocast():
        logits_DTV = (cached_logits if cached else full_logits)(model, questions)
    counts = questions.answer_tokens
    return [graded(*each) for each in zip(logits_DTV, questions.tails, counts, strict=True)]


def graded(logits_TV: Tensor, tail: np.ndarray, tokens: int) -> tuple[bool, float]:
    """Whether every answer token is the most likely given those before it, and their total log-probability in nats.

    The former is equivalent to greedy decoding from the question producing the answer.
    """
    first = len(tail) - tokens
    answer = torch.from_numpy(tail[first:].astype(np.int64)).to(logits_TV.device)
    scores = logits_TV[first - 1 : len(tail) - 1].cpu().double()
    chosen = scores.log_softmax(-1).gather(1, answer.cpu()[:, None])
    return bool((scores.argmax(-1) == answer.cpu()).all()), float(chosen.sum())


def cached_logits(model: AdaptedModel, questions: Questions) -> Tensor:
    """Logits [D, T, V] of the tails, with the prefix read once if the model returns a cache."""
    found = logits_after(model, questions.prefix[None], questions.tails, [0] * len(questions.tails))
    return full_logits(model, questions) if found is None else found


def logits_after(
    model: AdaptedModel, prefixes: np.ndarray, tails: Sequence[np.ndarray], owners: Sequence[int]
) -> Tensor | None:
    """Logits [D, T, V] of tails, each after the prefix that owns it; every prefix is read once, into a cache.

    Tails are padded on the right, where causal attention hides the padding from their tokens.

    Args:
        prefixes: [C, P] tokens.
        tails: D arrays [T_d].
        owners: D indices of prefixes.

    Returns:
        None if the model returns no cache.
    """
    device = model.base.device
    read = torch.from_numpy(prefixes.astype(np.int64)).to(device)
    one_logit = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}  # the head is costly
    cache = getattr(model(input_ids=read, use_cache=True, **one_logit), "past_key_values", None)
    if cache is None:
        return None
    cache.batch_select_indices(torch.tensor(owners, device=device))
    padded = torch.from_numpy(_padded(tails).astype(np.int64)).to(device)
    return model(input_ids=padded, past_key_values=cache, use_cache=True).logits


def full_logits(model: AdaptedModel, questions: Questions) -> Tensor:
    """Logits [D, T, V] of the tails from forward passes over whole questions, with padding masked."""
    whole = [np.concatenate([questions.prefix, tail]) for tail in questions.tails]
    inputs = model_inputs(_padded(whole), np.array([len(each) for each in whole]), model.base.device)
    return model(**inputs, use_cache=False).logits[:, len(questions.prefix) :]


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks rows of different lengths, padding each with its last token."""
    length = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, length - len(row)), mode="edge") for row in rows])


def _takes(model: AdaptedModel, argument: str) -> bool:
    return argument in inspect.signature(type(model.base).forward).parameters
