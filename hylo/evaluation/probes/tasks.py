# lm-eval is an extra
# pyright: reportMissingImports=false
"""The task probe: any task of lm-eval, or a task file, with a score for every item.

The score of a task is a mean over its items, so two models that answered the same items are compared item by item
(hylo/analysis/task_scores.py). Gao et al. 2024, lm-evaluation-harness (doi 10.5281/zenodo.12608602). lm-eval is an
extra and is imported only if this probe is asked for.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import ConfigError, problem
from hylo.core.extras import need
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.evaluation.probes.base import Answers, Probe, ProbeConfig

if TYPE_CHECKING:
    from hylo.evaluation.tasks.language_model import Measured
    from hylo.evaluation.tasks.loading import Loaded


@register("probe", "tasks")
@dataclass(kw_only=True, slots=True)
class TasksProbeConfig(ProbeConfig):
    """Which tasks, and how they are asked."""

    tasks: list[str] = field(default_factory=lambda: ["shakespeare_next_line"])
    """Tasks, tags or groups of lm-eval by name, task files by path (*.yaml), or shakespeare_next_line."""
    fewshot: int | None = bounded(None, ge=0)
    """Examples in front of each question; None: what each task says."""
    limit: int | None = bounded(None, ge=2)
    """The first questions of each task; None: all."""
    longest: int | None = bounded(None, ge=2)
    """Tokens of a question with its answer; longer contexts are cut from the left, which is counted. None: nothing is
    cut, and questions that do not fit the model are an error."""
    batch_size: int | None = bounded(None, ge=1)
    """Rows of a forward pass; None: as many as fit in `memory_gib`."""
    memory_gib: float = bounded(1.0, gt=0)
    """Memory for a forward pass without `batch_size`, in GiB."""

    def problems(self) -> Iterator[str]:
        """Yields a message if no task is named, or one twice.

        Raises:
            MissingDependency: lm-eval is not installed.
        """
        need("lm_eval", "probe=tasks", "tasks", "probe=none")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            fix = "probe.tasks=[shakespeare_next_line]"
            yield problem("probe.tasks", self.tasks, "one or more tasks, each once", fix)

    def too_long(self, allowed: str, otherwise: str) -> str:
        return problem("probe.longest", self.longest, allowed, f"fewer tokens (contexts are cut), or {otherwise}")

    def content(self) -> str:
        return self._loaded().identity

    def build(self, tokenizer: PreTrainedTokenizerBase) -> "TasksProbe":
        return TasksProbe(self, self._loaded(), tokenizer)

    def _loaded(self) -> "Loaded":
        from hylo.evaluation.tasks.loading import loaded

        return loaded(tuple(self.tasks), self.fewshot, self.limit)


class TasksProbe(Probe):
    """The questions of all tasks."""

    def __init__(self, config: TasksProbeConfig, loaded: "Loaded", tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.loaded, self.tokenizer = config, loaded, tokenizer
        self.measured = {name: _measured(name, task, tokenizer, config) for name, task in loaded.tasks.items()}

    @property
    def longest(self) -> int:
        longest = max((length for one in self.measured.values() for length in one.lengths), default=0)
        return longest if self.config.longest is None else min(longest, self.config.longest)

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.measured.values())

    def ask(self, model: AdaptedModel, accelerator: Accelerator, *, cached: bool, label: str) -> Answers:
        from lm_eval.evaluator import evaluate

        from hylo.evaluation.tasks.language_model import Asked
        from hylo.evaluation.tasks.loading import prepared
        from hylo.evaluation.tasks.scores import item_scores

        model.eval()
        asked = Asked(
            model,
            self.tokenizer,
            accelerator,
            longest=self.config.longest,
            cached=cached,
            batch_size=self.config.batch_size,
            memory_gib=self.config.memory_gib,
            label=label,
        )
        began = time.perf_counter()
        with prepared(self.loaded.tasks):
            found: Any = evaluate(
                asked,
                {"tasks": self.loaded.tasks, "groups": self.loaded.groups},
                limit=self.config.limit,
                bootstrap_iters=0,
            )
        seconds = round(time.perf_counter() - began, 3)
        scores = item_scores(found["samples"], found["higher_is_better"])
        section = scores.section()
        for name, one in self.measured.items():
            told = {"version": found["versions"].get(name), "fewshot": found["n-shot"].get(name), "cut": self._cut(one)}
            section[name] |= told
        said = [*scores.said(), *self._cuts_said()]
        return Answers(scores.table(), {"tasks": section, "seconds": seconds}, said)

    def _cut(self, one: "Measured") -> int:
        """Number of questions whose context is cut."""
        return 0 if self.config.longest is None else sum(length > self.config.longest for length in one.lengths)

    def _cuts_said(self) -> Iterator[str]:
        for name, one in self.measured.items():
            if cut := self._cut(one):
                yield f"{name}: {cut} of {len(one.lengths)} contexts were cut to {self.config.longest} tokens"


def _measured(name: str, task: Any, tokenizer: PreTrainedTokenizerBase, config: TasksProbeConfig) -> "Measured":
    """A task's questions, measured.

    Raises:
        ConfigError: answers are drawn at random, or leave no room for a context.
    """
    from hylo.evaluation.tasks.language_model import Measured

    measured = Measured(tokenizer, config.longest)
    for kind in dict.fromkeys(each.request_type for each in task.instances):
        getattr(measured, kind)([each for each in task.instances if each.request_type == kind])
    if measured.samples:
        fix = "a task file with generation_kwargs.do_sample: false"
        raise ConfigError(problem("probe.tasks", name, "a task that decodes greedily; this one draws answers", fix))
    if config.longest is not None and measured.generated >= config.longest:
        allowed = f"more than {measured.generated}, the tokens that {name} generates"
        raise ConfigError(problem("probe.longest", config.longest, allowed, f"probe.longest={2 * measured.generated}"))
    return measured
