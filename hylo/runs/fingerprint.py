"""Fingerprints identify runs: a hash of everything that can change a run's results.

It covers the typed configuration without names and logging, the content of model and documents, library versions, and
the source of all code that a run reaches (hylo/core/sources.py): the run module, its imports, and the modules that the
configuration selects. Editing a component therefore invalidates its own cells and no others.
"""

import json
from typing import Any

from hylo.adapters.component import component_name
from hylo.core.cache import text_hash
from hylo.core.devices import library_versions
from hylo.core.registry import name_of
from hylo.core.schema import to_container
from hylo.core.sources import source_hash
from hylo.data.base import Split
from hylo.data.tokens import bos_token
from hylo.evaluation.probes.base import ProbeConfig
from hylo.runs.config import Config
from hylo.runs.shared import Session
from hylo.training.config import TrainerConfig

RUN = "hylo.runs.run"
"""Root module of a run's code. The root of a probe's code is its own module."""
WATCHES = ("hylo.tracking", "hylo.core.progress", "hylo.core.timer")
"""Packages that only observe: changing the tracker does not change the run."""


def fingerprint(config: Config, session: Session) -> str:
    """Twelve hex digits. A base model's omits seed, training data and optimizer, so all cells share its run."""
    return session.once("fingerprint", config, make=lambda: _fingerprint(config, session))


def _fingerprint(config: Config, session: Session) -> str:
    data, trainer = config.data, to_container(config.trainer)
    content: dict[str, Any] = {
        "model": session.identity(config.model),
        "protocol": data.protocol.name,
        "context_length": data.context_length,
        "bos": bos_token(session.tokenizer(config.model), data.bos),
        "eval_windows": data.eval_windows,
        "stride": data.stride,
        "eval_documents": session.documents_identity(data, data.eval_split),
        "versions": library_versions(),
        "method": {
            slot: [component_name(part), to_container(part)] for slot, part in sorted(config.components.items())
        },
    }
    if (template := session.template(data, config.model)) is not None:
        content["template"] = template
    if config.components:
        content["training_data"] = [name for name in sorted(data.TRAINING_ALONE) if getattr(data, name)]
        content["train_documents"] = session.documents_identity(data, Split.train)
        content["trainer"] = {
            name: value for name, value in trainer.items() if name not in TrainerConfig.WITHOUT_EFFECT
        }
        content["optimizer"] = name_of("optimizer", type(config.trainer.optimizer))
        content["seed"] = config.seed
    else:
        content["trainer"] = {name: trainer[name] for name in sorted(TrainerConfig.EVALUATION)}
    chosen = [config.model, config.data, *config.components.values()]
    chosen += [config.trainer.optimizer] if config.components else []
    roots = sorted({RUN, *(type(part).__module__ for part in chosen)})
    content["source"] = session.once("source", roots, make=lambda: source_hash(roots, without=WATCHES))
    return text_hash(json.dumps(content, sort_keys=True))[:12]


def probe_fingerprint(config: ProbeConfig) -> str:
    """Twelve hex digits, from a probe's settings, code and content (its vocabulary, the questions of its files).

    It is not part of the run's fingerprint, so another probe does not require training again.
    """
    code = source_hash([type(config).__module__], without=WATCHES)
    content = [found] if (found := config.content()) else []
    return text_hash(json.dumps(to_container(config), sort_keys=True), code, *content)[:12]
