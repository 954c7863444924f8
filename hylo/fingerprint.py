"""What makes two runs the same: everything that can change a run's numbers, hashed.

The typed configuration without names and logging, the content of model and documents, the versions of the libraries,
and the source of the code that makes numbers: the training and evaluation modules and, of the components, only those
that the method uses. So a researcher who edits a component runs its cells again, and no others.
"""

import ast
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

import hylo.adapters.component
import hylo.adapters.model
import hylo.data.kv_text
import hylo.data.kv_words
import hylo.data.lines
import hylo.data.tokens
import hylo.data.windows
import hylo.evaluation
import hylo.fused
import hylo.memory
import hylo.probe.kv
import hylo.probe.measure
import hylo.step
import hylo.trainer
import hylo.training
from hylo.cache import text_hash
from hylo.config import Config
from hylo.data.base import Protocol, Split
from hylo.probe.kv import KvProbeConfig
from hylo.runtime import library_versions
from hylo.schema import plain
from hylo.session import Session
from hylo.trainer import Kernels, TrainerConfig

_FUSED = tuple(
    importlib.import_module(f"hylo.fused.{module.name}") for module in pkgutil.iter_modules(hylo.fused.__path__)
)
_MEASURES = (hylo.data.tokens, hylo.data.windows, hylo.evaluation, hylo.memory)
_PROBES = (hylo.data.kv_text, hylo.data.kv_words, hylo.data.tokens, hylo.probe.kv, hylo.probe.measure)
_TRAINS = (hylo.adapters.component, hylo.adapters.model, hylo.step, hylo.trainer, hylo.training)


def fingerprint(config: Config, session: Session) -> str:
    """Twelve hex digits. An untuned model has no seed, no training data and no optimizer in it: all cells share it."""
    data, trainer = config.data, plain(config.trainer)
    content: dict[str, Any] = {
        "model": session.identity(config.model),
        "protocol": data.protocol.name,
        "context_length": data.context_length,
        "eval_windows": data.eval_windows,
        "eval_documents": session.documents_identity(data, data.eval_split),
        "versions": library_versions(),
        "method": {slot: [type(part).__module__, plain(part)] for slot, part in sorted(config.components.items())},
    }
    measures = [*_MEASURES, *(_FUSED if config.trainer.kernels is Kernels.fused else ())]
    measures += [hylo.data.lines] if data.protocol is Protocol.lines else []
    if config.components:
        content["padding"] = [data.loss_on_padding, data.keep_blank_lines]
        content["train_documents"] = session.documents_identity(data, Split.train)
        content["trainer"] = {
            name: value for name, value in trainer.items() if name not in TrainerConfig.WITHOUT_EFFECT
        }
        content["seed"] = config.seed
        components = [sys.modules[type(part).__module__] for part in config.components.values()]
        content["source"] = source_hash(_closure([*components, *_TRAINS, *measures]))
    else:
        content["trainer"] = {name: trainer[name] for name in sorted(TrainerConfig.EVALUATION)}
        content["source"] = source_hash(measures)
    return text_hash(json.dumps(content, sort_keys=True))[:12]


def probe_mark(config: KvProbeConfig) -> str:
    """Twelve hex digits: of a probe's settings, words and code. It is no part of the fingerprint of the run that it is
    asked of, so a run need not be trained again for another probe."""
    return text_hash(json.dumps(plain(config), sort_keys=True), source_hash(_PROBES))[:12]


def source_hash(modules: Iterable[ModuleType]) -> str:
    """Hash of modules' code; comments, docstrings and layout are no part of it."""
    trees = []
    for module in sorted(modules, key=lambda module: module.__name__):
        trees += [module.__name__, _code(inspect.getsource(module))]
    return text_hash(*trees)


@cache
def _code(source: str) -> str:
    """The syntax tree of a source as text, without docstrings. A study asks for the same modules for every cell."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # pyright: ignore[reportAttributeAccessIssue]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _closure(modules: Iterable[ModuleType]) -> set[ModuleType]:
    """The modules and all adapter modules that they take names from."""
    found, queue = set(), list(modules)
    while queue:
        module = queue.pop()
        if module not in found:
            found.add(module)
            sources = {getattr(value, "__module__", None) for value in vars(module).values()}
            queue += [
                sys.modules[name] for name in sources if isinstance(name, str) and name.startswith("hylo.adapters.")
            ]
    return found
