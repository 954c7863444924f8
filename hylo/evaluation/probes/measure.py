"""Texts with an answer at their end, as a model sees them: the answer's log-probability, and whether greedy decoding
would give it. What probes share.

Questions that begin alike are read together: what they share is read once, into a cache, which is then repeated for
the rest of each. Where the audit of the run found that the cache changes the numbers (published pooling that sees later
tokens), every question is a full pass.

Shapes: D questions, P tokens that they share, T tokens of the longest rest, V words of the vocabulary.
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
from hylo.data.base import Document
from hylo.data.tokens import tokenize
from hylo.data.windows import model_inputs


@dataclass(frozen=True, kw_only=True)
class Questions:
    """D questions that begin alike, as tokens.

    prefix: [P] int32, what all D begin with; may be empty where they are read by full passes. tails: D arrays [T_d]
    int32, what follows; they end with the answer. answer_tokens: [D], tokens of the answer.
    """

    prefix: np.ndarray
    tails: list[np.ndarray]
    answer_tokens: np.ndarray

    @property
    def longest(self) -> int:
        """Tokens of the longest question with its answer."""
        return len(self.prefix) + max(len(tail) for tail in self.tails)

    @property
    def tokens(self) -> int:
        """Tokens that are read where what is shared is read once."""
        return len(self.prefix) + sum(len(tail) for tail in self.tails)


def tokens_of(
    texts: Sequence[str], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[np.ndarray], list[int]]:
    """The tokens of texts that end with their answers, and how many of them are the answer's.

    A text is tokenised as a whole, and a token belongs to the answer if any of its characters does: so the tokens are
    those that the tokenizer makes of such a text, wherever it puts the space before a word.
    """
    tokenized = tokenize([Document(str(place), text) for place, text in enumerate(texts)], tokenizer)
    before = [len(text.encode()) - len(answer.encode()) for text, answer in zip(texts, answers, strict=True)]
    counts = [int((each.byte_ends > start).sum()) for each, start in zip(tokenized, before, strict=True)]
    return [each.ids for each in tokenized], counts


@torch.no_grad()
def answered(
    model: AdaptedModel, questions: Questions, accelerator: Accelerator, *, cached: bool
) -> list[tuple[bool, float]]:
    """Of each question, whether greedy decoding gives its answer, and the answer's log-probability in nats, which may
    not be finite. The model is in evaluation mode."""
    with accelerator.autocast():
        logits_DTV = (cached_logits if cached else full_logits)(model, questions)
    counts = questions.answer_tokens
    return [graded(*each) for each in zip(logits_DTV, questions.tails, counts, strict=True)]


def graded(logits_TV: Tensor, tail: np.ndarray, tokens: int) -> tuple[bool, float]:
    """Whether every token of the answer is the likeliest given those before it, and their log-probability in nats.

    The first holds exactly where greedy decoding from the question gives the answer.
    """
    first = len(tail) - tokens
    answer = torch.from_numpy(tail[first:].astype(np.int64)).to(logits_TV.device)
    scores = logits_TV[first - 1 : len(tail) - 1].cpu().double()
    chosen = scores.log_softmax(-1).gather(1, answer.cpu()[:, None])
    return bool((scores.argmax(-1) == answer.cpu()).all()), float(chosen.sum())


def cached_logits(model: AdaptedModel, questions: Questions) -> Tensor:
    """Logits [D, T, V] of what follows the shared tokens, which are read once. Tails are padded on the right, where no
    token of theirs sees it."""
    device, count = model.base.device, len(questions.tails)
    prefix = torch.from_numpy(questions.prefix.astype(np.int64)).to(device)
    one_logit = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}  # the head is a fifth of the work
    cache = model(input_ids=prefix[None], use_cache=True, **one_logit).past_key_values
    cache.batch_repeat_interleave(count)
    tails = torch.from_numpy(_padded(questions.tails).astype(np.int64)).to(device)
    return model(input_ids=tails, past_key_values=cache, use_cache=True).logits


def full_logits(model: AdaptedModel, questions: Questions) -> Tensor:
    """The same by passes over whole questions, padding masked."""
    whole = [np.concatenate([questions.prefix, tail]) for tail in questions.tails]
    inputs = model_inputs(_padded(whole), np.array([len(each) for each in whole]), model.base.device)
    return model(**inputs, use_cache=False).logits[:, len(questions.prefix) :]


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several lengths as one array, the ends filled with each row's last token."""
    length = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, length - len(row)), mode="edge") for row in rows])


def _takes(model: AdaptedModel, argument: str) -> bool:
    return argument in inspect.signature(type(model.base).forward).parameters
