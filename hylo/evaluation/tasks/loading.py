# lm-eval is an extra
# pyright: reportMissingImports=false
"""Tasks by name, with their questions: lm-eval's own, a task file of the user's, or one that ships with hylo.

    arc_easy                     one of lm-eval's tasks, tags or groups; its data come from the hub
    tasks/mine.yaml              a task file, an explicit path; it may run code (SECURITY.md)
    shakespeare_next_line        ships with hylo (hylo/evaluation/tasks/next_line.py)

What does not depend on the model is loaded once per process. lm-eval draws few-shot examples, and some tasks their
questions, from global random states; these are seeded here and restored.
"""

import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import evaluate
import lm_eval.api.task
import numpy as np
from lm_eval.tasks import TaskManager

from hylo.core.cache import text_hash
from hylo.core.errors import ConfigError, HyloError, MissingDependency, first_line, problem
from hylo.evaluation.tasks import next_line

SHIPPED = {next_line.NAME: next_line.config}
FILES = (".yaml", ".yml")
"""Endings that make an entry a path."""
SEED = 1234
"""Of few-shot examples, as in lm-eval."""


@dataclass(frozen=True)
class Loaded:
    """Tasks with their questions.

    Attributes:
        tasks: lm-eval's tasks by name, each with its requests built.
        groups: as `lm_eval.evaluator.evaluate` takes them.
        identity: hash of everything that is asked and of how answers are scored.
    """

    tasks: dict[str, Any]
    groups: dict[str, Any]
    identity: str


@cache
def loaded(names: tuple[str, ...], fewshot: int | None, limit: int | None) -> Loaded:
    """The tasks of these names and files.

    Args:
        fewshot: examples in front of each question; None: what each task says.
        limit: the first questions of each task; None: all.

    Raises:
        ConfigError: there is no such task or file, or the task cannot be asked of a language model here.
        MissingDependency: the task's data, or a library that it needs, is not available.
    """
    manager = TaskManager(include_defaults=any(_is_from_library(name) for name in names))
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in names:
        found = _load(manager, name)
        if twice := tasks.keys() & found["tasks"].keys():
            allowed = f"every task once; {', '.join(sorted(twice))} is named twice"
            raise ConfigError(problem("probe.tasks", list(names), allowed, "leave one of them out"))
        tasks |= found["tasks"]
        groups |= found.get("groups", {})
    with prepared(tasks) as refused:
        for name, task in tasks.items():
            _set_fewshot(name, task, fewshot)
            with _explained(name, refused):
                task.build_all_requests(limit=limit)
    contents = [json.dumps(_asked(task), sort_keys=True, default=str) for _, task in sorted(tasks.items())]
    return Loaded(tasks, groups, text_hash(version("lm_eval"), *contents))


@contextmanager
def prepared(tasks: dict[str, Any]) -> Iterator[list[str]]:
    """Where lm-eval's code runs: global random states and few-shot draws from fixed seeds, no bars or log lines, and no
    metric that would be code from the hub; yields the names of those that were refused."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  lm-eval's tasks read the global state
    log, refused = logging.getLogger("lm_eval"), []
    level = log.level

    def refuse(metric: str, *unused: Any, **ignored: Any) -> None:
        refused.append(metric)
        raise ImportError(f"the metric {metric} is code from the hub")

    log.setLevel(logging.CRITICAL)
    random.seed(0)
    np.random.seed(SEED)  # noqa: NPY002
    without_bar = _replaced(lm_eval.api.task, "tqdm", lambda rows, **unused: rows)
    try:
        for task in tasks.values():
            task.set_fewshot_seed(SEED)
        with without_bar, _replaced(evaluate, "load", refuse):
            yield refused
    finally:
        log.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _is_from_library(name: str) -> bool:
    return name not in SHIPPED and not name.endswith(FILES)


def _load(manager: TaskManager, name: str) -> Any:
    if name in SHIPPED:
        spec: Any = SHIPPED[name]()
    elif name.endswith(FILES):
        if not Path(name).is_file():
            raise ConfigError(problem("probe.tasks", name, "a file that exists", "correct the path"))
        spec = name
    elif name in manager.task_index:
        spec = name
    else:
        near = get_close_matches(name, [*SHIPPED, *manager.all_tasks], n=3)
        allowed = "a task, tag or group of lm-eval (`lm-eval ls tasks`), " + ", ".join(SHIPPED) + ", or a *.yaml file"
        raise ConfigError(problem("probe.tasks", name, allowed, " or ".join(near) or "correct the name"))
    with prepared({}) as refused, _explained(name, refused):
        found = manager.load(spec)
    for each, task in found["tasks"].items():
        if problems := [*_unusable(each, task)]:
            raise ConfigError(*problems)
    return found


def _unusable(name: str, task: Any) -> Iterator[str]:
    """Yields why a task cannot be asked."""
    settings = task.config
    if getattr(task, "UNSAFE_CODE", False) or settings.unsafe_code:
        yield problem("probe.tasks", name, "a task that does not run what the model writes", "leave it out")
    if getattr(task, "MULTIMODAL", False) or settings.doc_to_image or settings.doc_to_audio:
        yield problem("probe.tasks", name, "a task of text alone", "leave it out")


def _set_fewshot(name: str, task: Any, fewshot: int | None) -> None:
    """Set the number of examples, as lm-eval does: a task that fixes it at 0 keeps it, which here is an error."""
    own = task.get_config("num_fewshot")
    if fewshot is not None and own == 0 != fewshot:
        raise ConfigError(problem("probe.fewshot", fewshot, f"0 or null, because {name} fixes it at 0", "null"))
    task.set_config(key="num_fewshot", value=own or 0 if fewshot is None else fewshot)


def _asked(task: Any) -> dict[str, Any]:
    """What the answers and their scores depend on, wherever the task's files lie."""
    elsewhere = ("metadata", "dataset_path", "dataset_kwargs", "custom_dataset")
    settings = {name: value for name, value in task.dump_config().items() if name not in elsewhere}
    requests = [[each.doc_id, each.request_type, each.args, each.doc] for each in task.instances]
    return {"config": settings, "requests": requests, "version": task.VERSION}


@contextmanager
def _explained(name: str, refused: list[str]) -> Iterator[None]:
    """Turns whatever a task raises while it is loaded into one error that a user can act on; `refused` are metrics."""
    try:
        try:
            yield
        finally:
            if refused:
                allowed = f"a task whose metrics are lm-eval's or its own; {refused[0]} would be code from the hub"
                raise ConfigError(problem("probe.tasks", name, allowed, "another metric in a task file"))
    except HyloError:
        raise
    except ImportError as error:
        raise MissingDependency(
            f"probe.tasks: {name} needs a library that is not installed: {first_line(error)}\n"
            f"    fix:     install it, or leave the task out"
        ) from error
    except OSError as error:  # among them everything that `datasets` and the hub raise for what is not there
        raise MissingDependency(
            f"probe.tasks: the data of {name} are not here: {first_line(error)}\n"
            f"    With network: unset HF_HUB_OFFLINE, and `hf auth login` for gated data; later runs need none.\n"
            f"    Without network: probe.tasks=[{next_line.NAME}] needs none; a task file can name local data."
        ) from error
    except Exception as error:
        allowed = f"a task that loads ({type(error).__name__}: {first_line(error)})"
        raise ConfigError(problem("probe.tasks", name, allowed, "correct the task file, or leave it out")) from error
