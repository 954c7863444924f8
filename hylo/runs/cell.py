"""A cell: a named configuration, and checks that it can run."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hylo.adapters.component import BuildContext, component_name
from hylo.adapters.model import method_problems
from hylo.core.devices import bfloat16_problems, device_problems, process_count
from hylo.core.errors import ConfigError, problem
from hylo.data.base import Split, data_problems
from hylo.models.architecture import model_context_length
from hylo.models.rope import longer_rope, rope_problems
from hylo.models.weights import Quantization
from hylo.runs.config import Config
from hylo.runs.shared import Session
from hylo.training.config import kernel_problems, sharding_problems, trainer_problems
from hylo.training.loop import check_batches


@dataclass(frozen=True)
class Cell:
    """A named configuration in a group (a study or sweep)."""

    group: str
    name: str
    config: Config
    overrides: tuple[str, ...] = ()
    """Arguments of train.py that run this cell alone."""
    base_name: str = "none"
    """Name of the base model's cell that this one is compared with, unless a study has a cell for it."""
    planned: str | None = None
    """Fingerprint of the run when it was planned; None: it was not planned, but is run at once."""

    def folder(self, fingerprint: str) -> Path:
        """The folder of the cell's record."""
        seed = f"seed{self.config.seed}-" if self.config.components else ""
        return Path(self.config.outputs) / self.group / f"{self.name}-{seed}{fingerprint}"

    def base_cell(self) -> "Cell":
        """The cell that evaluates the base model on the same data."""
        config = dataclasses.replace(self.config, method={}, seed=0)
        return Cell(self.group, self.base_name, config, (*self.overrides, "method=none"))

    def check_unchanged(self, fingerprint: str) -> None:
        """Refuse to run something else than what was planned.

        Raises:
            ConfigError: source files or the model's or data's files were edited since.
        """
        if self.planned not in (None, fingerprint):
            raise ConfigError(
                f"{self.name}: source or input files were edited since the run was planned; it would mix two versions\n"
                f"    fix:     start again: finished runs of either version are kept"
            )


def check(cell: Cell, session: Session) -> None:
    """Refuses a cell that cannot run, before anything expensive starts or is written.

    Raises:
        ConfigError: settings conflict with each other, the model or this machine.
        MissingDependency: model or data cannot be reached, or the tracker's library is not installed.
    """
    config = cell.config
    config.tracking.check()
    config.launcher.check()
    skeleton = session.skeleton(config.model)
    context = BuildContext(skeleton, config.data.context_length, config.seed)
    problems = [*data_problems(config.data), *trainer_problems(config.trainer), *kernel_problems(config.trainer)]
    problems += sharding_problems(
        config.trainer,
        quantized=config.model.quantization is not Quantization.none,
        probed=config.probe_config is not None,
    )
    problems += device_problems(config.trainer.device)
    for key, value in {"model.dtype": config.model.dtype, "trainer.precision": config.trainer.precision}.items():
        problems += bfloat16_problems(key, config.trainer.device) if value.name == "bfloat16" else []
    problems += method_problems(config.components, context)
    problems += rope_problems(config.model.rope, skeleton, config.data.context_length)
    problems += packing_problems(config)
    limit = model_context_length(skeleton)
    if limit is not None and config.data.context_length > limit:
        allowed = f"4 to {limit}, the longest context of {config.model.name}"
        fix = f"data.context_length={limit}{longer_rope(config.model.rope, skeleton, config.data.context_length)}"
        problems.append(problem("data.context_length", config.data.context_length, allowed, fix))
    if problems:
        raise ConfigError(*problems)
    if probed := [*probe_problems(config, session, limit)]:
        raise ConfigError(*probed)
    check_documents(config, session)
    check_windows(config, session)


def packing_problems(config: Config) -> Iterator[str]:
    """Yields a message for each component that would mix the samples of a window."""
    for slot, component in config.components.items():
        if config.data.pack_samples and "causality" in component.breaks:
            allowed = f"false with method.{slot}={component_name(component)}, which reads the whole window"
            yield problem("data.pack_samples", True, allowed, "data.pack_samples=false, or another component")


def probe_problems(config: Config, session: Session, limit: int | None) -> Iterator[str]:
    """Yields why the probe cannot be asked of this cell; `limit` is the model's maximum context length, if any."""
    probe = config.probe_config
    if probe is None:
        return
    if config.components and not config.trainer.save_adapter:
        fix = "trainer.save_adapter=true, or probe=none"
        yield problem("trainer.save_adapter", False, "true with a probe, which reads the recorded adapter", fix)
    if problems := [*probe.problems()]:
        yield from problems
        return
    longest = session.probe(probe, config.model).longest
    if limit is None:
        return
    if longest > limit:
        allowed = f"questions that fit {config.model.name}: {limit} tokens; the longest has {longest}"
        yield probe.too_long(allowed, "a model with a longer context")
    elif [*method_problems(config.components, BuildContext(session.skeleton(config.model), longest, config.seed))]:
        allowed = f"questions that leave the method enough positions: {limit} minus the {longest} tokens of the longest"
        yield probe.too_long(allowed, "a smaller prefix")


def check_documents(config: Config, session: Session) -> None:
    """Refuses data without documents, or with text that is both trained on and evaluated on (hylo/data/overlap.py).

    Documents with fewer bytes than the context has tokens are exempt: they fill no window, and headings, say, recur in
    sound data.

    Raises:
        ConfigError: as above; it names the splits or the document.
    """
    if not session.documents(config.data, config.data.eval_split):
        split = config.data.eval_split.name
        raise ConfigError(
            f"data={config.data.name} has no {split} documents\n    fix:     name some, or data.eval_split=..."
        )
    if config.components and not session.documents(config.data, Split.train):
        raise ConfigError(f"data={config.data.name} has no train documents\n    fix:     name some, or method=none")
    if config.components and (pair := session.overlap(config.data).copy):
        split = config.data.eval_split.name
        raise ConfigError(
            f"data={config.data.name}: the {split} document {pair[0]!r} is also trained on, in {pair[1]!r}\n"
            f"    allowed: no text in two splits\n"
            f"    fix:     leave it out of one of them, or data.drop_copies=true, which does not train on it"
        )


def check_tokens(config: Config, session: Session) -> None:
    """Refuses a tokenizer that belongs to another model.

    Raises:
        ConfigError: a token of the windows has no row in the model's embedding.
    """
    embedding: Any = session.skeleton(config.model).get_input_embeddings()
    rows = embedding.weight.shape[0]
    highest = session.highest_token(config.data, config.model, trained=bool(config.components))
    if highest >= rows:
        allowed = f"a model whose tokenizer belongs to it: token {highest} has no row in an embedding of {rows}"
        fix = "the tokenizer files of that model, or model.resize_token_embeddings before training it"
        raise ConfigError(problem("model.name", config.model.name, allowed, fix))


def check_windows(config: Config, session: Session) -> None:
    """Refuses text that fills too few windows.

    Raises:
        ConfigError: fewer than two evaluation windows, which no interval can be computed from, or too few training
            windows for a batch.
    """
    data, split = config.data, config.data.eval_split.name
    check_tokens(config, session)
    found = len(session.eval_windows(data, config.model))
    if found < 2:
        raise ConfigError(
            f"data={data.name}: the {split} documents fill {found} window of {data.context_length} tokens\n"
            f"    allowed: two windows or more, because intervals need them\n"
            f"    fix:     more {split} text, or a smaller data.context_length"
        )
    if config.components:
        check_batches(config.trainer, session.windows(data, config.model, Split.train), process_count())
