# lm-eval is an extra
# pyright: reportMissingImports=false
"""A model with an adapter as lm-eval sees it.

lm-eval's own class for models of transformers (HFLM) is not used: it pads batches without a mask, which a method that
looks at the whole sequence would notice; it reads a context again for every choice; it sizes batches by running out of
GPU memory; and it cuts long contexts in silence. Tokens and scores are the same as its own.
"""

import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from transformers import PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel
from hylo.core.progress import Progress
from hylo.evaluation.tasks.continuations import Pair, Score, scores
from hylo.models.architecture import model_context_length
from hylo.models.memory import forward_bytes_per_token

GENERATED = 256
"""Most tokens of a generated answer where a task names no number, as in lm-eval."""
_SAMPLING = ("temperature", "top_k", "top_p", "do_sample")


@dataclass(frozen=True)
class Prompt:
    """A context to continue, as tokens, and how.

    Attributes:
        context: its tokens.
        most: tokens to generate at most.
        until: texts that end the answer.
        settings: everything else that the task says about generating.
    """

    context: list[int]
    most: int
    until: list[str]
    settings: dict[str, Any]


class Reader(TemplateLM):
    """Turns requests into tokens, by the rules of lm-eval, and hands them to `score` and `generate`.

    Args:
        tokenizer: the model's.
        longest: tokens of a window of a text that is predicted as a whole; None: the text is one window.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int | None) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer
        self.longest = longest

    @abstractmethod
    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """The score of each continuation after its context."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to each prompt."""

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            special["add_special_tokens"] = False
        return self.tokenizer.encode(string, **special)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[Score]:
        return self.score([Pair(tuple(context), tuple(answer)) for _, context, answer in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        windows = [self._windows(request) for request in requests]
        found = iter(self.score([pair for own in windows for pair in own]))
        return [sum(next(found)[0] for _ in own) for own in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        return self.generate([self._prompt(request) for request in requests])

    def _windows(self, request: Instance) -> list[Pair]:
        ids = self.tok_encode(request.args[0])
        predicted = len(ids) if self.longest is None else self.longest - 1
        rolling = utils.get_rolling_token_windows(ids, self.prefix_token_id, max(1, predicted), context_len=1)
        return [Pair(tuple(context), tuple(rest)) for context, rest in map(utils.make_disjoint_window, rolling)]

    def _prompt(self, request: Instance) -> Prompt:
        arguments: Any = request.args
        context, asked = arguments[:2]
        settings: dict[str, Any] = {**normalize_gen_kwargs(asked, GENERATED)}
        end = self.tokenizer.decode(self.eot_token_id)
        until = handle_stop_sequences(settings.pop("until"), eos=end)
        most = settings.pop("max_gen_toks")
        return Prompt(self.tok_encode(context), most, [text for text in until if text], settings)


class Measured(Reader):
    """Measures requests instead of answering them.

    Attributes:
        lengths: tokens of each question with its answer, of those that must fit a model's context at once.
        tokens: tokens read to answer all questions, contexts with several continuations once.
        generated: most tokens to generate for one answer.
        samples: whether an answer would be drawn at random.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int | None) -> None:
        super().__init__(tokenizer, longest)
        self.lengths: list[int] = []
        self.tokens, self.generated, self.samples = 0, 0, False

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        self.lengths += [len(pair) for pair in pairs]
        self.tokens += sum(map(len, {pair.context for pair in pairs})) + sum(len(pair.continuation) for pair in pairs)
        return [(0.0, False)] * len(pairs)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Cut into windows of any model's context, so no text is too long."""
        self.tokens += sum(len(pair) for request in requests for pair in self._windows(request))
        return [0.0] * len(requests)

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        lengths = [len(prompt.context) + prompt.most for prompt in prompts]
        self.lengths += lengths
        self.tokens += sum(lengths)
        self.generated = max(self.generated, *(prompt.most for prompt in prompts))
        self.samples = self.samples or any(prompt.settings["do_sample"] for prompt in prompts)
        return [""] * len(prompts)


class Asked(Reader):
    """Answers requests by a model with an adapter, which must be in evaluation mode.

    Args:
        longest: tokens of the longest question with its answer; contexts are cut from the left. None: the model's
            context, which every question is known to fit.
        cached: whether decoding may use the cache.
        batch_size: rows of a forward pass; None: as many as fit in `memory_gib`.
        label: name of the run in the progress bar.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        longest: int | None,
        cached: bool,
        batch_size: int | None,
        memory_gib: float,
        label: str,
    ) -> None:
        super().__init__(tokenizer, model_context_length(model.base) if longest is None else longest)
        self.model, self.accelerator, self.cached = model, accelerator, cached
        self.batch_size, self.memory_gib, self.label = batch_size, memory_gib, label

    def rows(self, length: int) -> int:
        """Rows of a forward pass over this many tokens."""
        if self.batch_size is not None:
            return self.batch_size
        row = forward_bytes_per_token(self.model.base, logits=True) * length
        return max(1, int(self.memory_gib * 2**30 / row))

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        kept = [pair.last(self.longest) for pair in pairs]
        with Progress(self.label, len(kept), visible=self.accelerator.is_main_process) as progress:
            done = 0

            def on_done(count: int) -> None:
                nonlocal done
                done += count
                progress.update(done)

            return scores(self.model, kept, self.accelerator, cached=self.cached, rows=self.rows, on_done=on_done)

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        found: dict[int, str] = {}
        with Progress(self.label, len(prompts), visible=self.accelerator.is_main_process) as progress:
            for batch in self._batches(prompts):
                answers = self._generated([prompts[index] for index in batch])
                found |= dict(zip(batch, answers, strict=True))
                progress.update(len(found))
        return [found[index] for index in range(len(prompts))]

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Indices of the prompts of each batch: of the same settings, longest first."""
        alike: dict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            alike[json.dumps([prompt.most, prompt.until, prompt.settings], sort_keys=True, default=str)].append(index)
        for members in alike.values():
            ordered = sorted(members, key=lambda index: -len(self._context(prompts[index])))
            while ordered:
                first = prompts[ordered[0]]
                size = self.rows(len(self._context(first)) + first.most)
                yield ordered[:size]
                ordered = ordered[size:]

    def _context(self, prompt: Prompt) -> list[int]:
        return prompt.context if self.longest is None else prompt.context[-(self.longest - prompt.most) :]

    def _generated(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy answers to prompts of the same settings, padded on the left under a mask."""
        first, contexts = prompts[0], [self._context(prompt) for prompt in prompts]
        length = max(map(len, contexts))
        padding = self.eot_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (length - len(own)) + own for own in contexts])
        mask = torch.tensor([[0] * (length - len(own)) + [1] * len(own) for own in contexts])
        device = self.model.base.device
        base: Any = self.model.base
        with torch.no_grad(), self.accelerator.autocast():
            output = base.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=first.most,
                do_sample=False,
                use_cache=self.cached,
                pad_token_id=padding,
                stopping_criteria=stop_sequences_criteria(self.tokenizer, first.until, length, len(prompts)),
                **{name: value for name, value in first.settings.items() if name not in _SAMPLING},
            )
        return [self._answer(row[length:], first.until) for row in output.tolist()]

    def _answer(self, ids: list[int], until: list[str]) -> str:
        """The text before the end of the text and before any text that ends the answer."""
        if self.eot_token_id in ids:
            ids = ids[: ids.index(self.eot_token_id)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return postprocess_generated_text(text, until, think_end_token=None)
