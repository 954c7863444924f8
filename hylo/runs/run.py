"""One run of a cell, from its configuration to its record."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hylo.adapters.model import AdaptedModel
from hylo.adapters.start import load_start
from hylo.audit import Audit, Contributions, Finding, print_findings
from hylo.core.devices import (
    accelerator_for,
    agreed,
    environment,
    is_main_process,
    peak_memory_bytes,
    process_count,
    reset_peak_memory,
    say,
)
from hylo.core.files import exclusive, write_json, write_table
from hylo.core.interruption import stop_if_asked
from hylo.core.registry import name_of
from hylo.core.schema import to_container
from hylo.core.timer import Clock
from hylo.data.base import Split
from hylo.data.windows import Windows
from hylo.evaluation.perplexity import Evaluation, evaluate
from hylo.kernels.measured import current
from hylo.runs.attach import begin, first_batches, frozen_states, prepared
from hylo.runs.cell import Cell
from hylo.runs.config import Config
from hylo.runs.fingerprint import fingerprint, probe_fingerprint
from hylo.runs.layout import ADAPTER, AUDIT, COMPLETE, EVAL, HALF, THIRDS, WINDOWS
from hylo.runs.out_of_memory import explained, release_memory
from hylo.runs.record import RunRecord
from hylo.runs.reuse import copy_record, finished_run, probed
from hylo.runs.shared import Session, weights_checksum
from hylo.runs.store import add_probe, checked, read_run
from hylo.runs.writer import new_result, recording
from hylo.tracking.base import TrackedRun, Tracker, log_run, log_step
from hylo.tracking.guard import open_tracker
from hylo.tracking.none import NullTracker
from hylo.training.loop import UNTRAINED, prepare_for_training, train
from hylo.training.memory import MemoryEstimate, estimate, evaluation_batch_size, gib


def run_cell(cell: Cell, session: Session) -> RunRecord:
    """Runs a cell, or reuses the record if the same run is already complete in any group.

    If the record lacks the cell's probe, it is asked of the recorded model; interrupting it loses only the probe. With
    several processes (accelerate), all compute and the first one writes the record.
    """
    run_fingerprint = fingerprint(cell.config, session)
    cell.check_unchanged(run_fingerprint)
    folder = cell.folder(run_fingerprint)
    accelerator = accelerator_for(cell.config.trainer.device, cell.config.trainer.precision)
    main = accelerator.is_main_process
    with exclusive(folder) if main else nullcontext():
        done = finished_run(cell, run_fingerprint) if main else None
        if not agreed(done is not None, accelerator):
            result = new_result(cell, run_fingerprint, session)
            whole = explained(cell.config, result, accelerator.device)
            with recording(cell, folder, result) if main else nullcontext(), whole:
                execute(cell, folder, result, session, accelerator)
        elif done:
            copy_record(done, folder, study=cell.group, cell=cell.name, seed=cell.config.seed)
        if main and not probed(cell, record := read_run(folder)):
            with explained(cell.config, record.result, accelerator.device):
                ask_probe(cell, record, session, accelerator)
    accelerator.wait_for_everyone()  # until the first process has written the record
    return read_run(folder)


def run_or_report(cell: Cell, session: Session) -> RunRecord | None:
    """Runs a cell. A failure is printed and recorded with its traceback, so that the other cells can still run."""
    try:
        return run_cell(cell, session)
    except Exception as error:
        print(f"{cell.name}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if process_count() > 1:  # the other processes are waiting for this one in the middle of a step
            raise
    release_memory()
    return None


def execute(cell: Cell, folder: Path, result: dict[str, Any], session: Session, accelerator: Accelerator) -> None:
    """Loads, adapts, audits, trains, evaluates and saves. Fills the sections of `result`."""
    clock, config, label = Clock(), cell.config, f"{cell.name} (seed {cell.config.seed})"
    # Where the whole base model lies: one GPU may have no room for it.
    whole = torch.device("cpu") if config.trainer.sharded else accelerator.device
    base = session.base(config.model, whole)
    eval_windows = session.eval_windows(config.data, config.model)
    untouched = weights_checksum(base)
    probe, base_logits = (
        each.to(accelerator.device) for each in session.audit_sample(config.data, config.model, whole)
    )
    read = session.contribution(config.data, config.model, whole) if config.components else None
    states = frozen_states(base, cell, session, accelerator)
    with tracked(cell) as tracker:
        with prepared(base, config, lambda: first_batches(config, session, whole), device=accelerator.device) as model:
            begin(model, folder, accelerator)
            audit = Audit(model, probe, base_logits, seed=config.seed, packed=config.data.pack_samples)
            findings = audit.before_training()
            contributions = Contributions(model, read[0], read[1].to(accelerator.device)) if read else None
            reset_peak_memory()
            memory = estimate(
                model,
                probe,
                config.trainer,
                length=config.data.context_length,
                eval_windows=len(eval_windows),
                processes=accelerator.num_processes,
            )
            result["params"], result["training"] = model.parameter_counts(), memory.record()
            announce(label, model, findings, memory)
            size = evaluation_batch_size(model, config.trainer, config.data.context_length)

            def measured(name: str, **options: Any) -> Evaluation:
                said = f"{label}, {name}"
                with clock.working():
                    return evaluate(model, eval_windows, accelerator, batch_size=size, label=said, **options)

            def on_step(line: dict[str, Any]) -> None:
                log_step(tracker, line)
                if line["step"] == config.trainer.steps // 2:
                    half = measured("evaluation half-way")
                    prepare_for_training(model, config.trainer)
                    if accelerator.is_main_process:
                        write_table(folder / HALF, half.bins)

            model.states = states
            with clock.working():
                training = trained(model, config, session, accelerator, folder=folder, label=label, on_step=on_step)
            stop = {"each_batch": stop_if_asked} if accelerator.num_processes == 1 else {}
            evaluation = measured("evaluation", **stop)
            if states:
                model.states = None
                training = training | states.counts
                say(f"{label}: {states}")
            audit.after_training(contributions)
            peak = peak_memory_bytes()
            say(f"{label}: memory: peak {gib(peak)}, estimated {gib(memory.peak)}")
            result |= {
                "audit": {"failed": audit.failed},
                "contribution": contributions.section if contributions else {},
                "metrics": evaluation.metrics(),
                "training": training | memory.beside(peak),
                "environment": environment(accelerator) | {"kernels": kernels_of(model)},
            }
            if accelerator.is_main_process:
                write_tables(folder, audit, evaluation, eval_windows)
                if config.components and config.trainer.save_adapter:
                    model.save(folder / ADAPTER)
        assert weights_checksum(base) == untouched, "a component left the shared base weights changed"
        log_run(tracker, {**result, "status": COMPLETE})
    result["environment"]["overhead_seconds"] = round(clock.overhead(), 3)


def trained(
    model: AdaptedModel, config: Config, session: Session, accelerator: Accelerator, **options: Any
) -> dict[str, Any]:
    """Trains what there is to train. `options` are those of `train`. Returns the record's `training` section."""
    if not config.components:
        return UNTRAINED
    windows, padding = session.windows(config.data, config.model, Split.train), config.data.loss_on_padding
    return train(model, windows, config.trainer, accelerator, seed=config.seed, loss_on_padding=padding, **options)


def ask_probe(cell: Cell, record: RunRecord, session: Session, accelerator: Accelerator) -> None:
    """Asks the cell's probe of a complete run, with the adapter from its record, and adds the answers to the record.

    Raises:
        RecordError: the record's adapter is missing or damaged.
    """
    config, label = cell.config, f"{cell.name} (seed {cell.config.seed}), probe"
    checked(record)
    assert config.probe_config is not None, "a cell without a probe lacks none"
    base = session.base(config.model, accelerator.device)
    probe = session.probe(config.probe_config, config.model)
    untouched = weights_checksum(base)
    with prepared(base, config, device=accelerator.device) as model:
        if config.components:
            model.load(record.folder / ADAPTER)
            load_start(model, record.folder / ADAPTER, untrained=False)
        cached = "cached_decoding" not in record.result["audit"]["failed"]
        answers = probe.ask(model, accelerator, cached=cached, label=label)
    assert weights_checksum(base) == untouched, "a component left the shared base weights changed"
    known = {"name": name_of("probe", type(config.probe_config)), "fingerprint": probe_fingerprint(config.probe_config)}
    section = answers.section | known | {"config": to_container(config.probe_config)}
    for line in answers.said:
        print(f"{label}: {line}", flush=True)
    with tracked(cell, "probe") as tracker:
        log_run(tracker, {"probe": section})
    add_probe(record.folder, answers.table, section)


def announce(label: str, model: AdaptedModel, findings: list[Finding], memory: MemoryEstimate) -> None:
    """Prints what is known before the first step: audit findings, unsupported kernels, estimated memory."""
    if is_main_process():
        print_findings(f"{label}: audit", findings)
        if model.declined:
            print(f"{label}: the loss is computed from full logits, which takes more memory: {model.declined}")
        if current() is not None and model.method:
            print(f"{label}: kernels: {', '.join(f'{part} {way}' for part, way in model.kernels.items())}")
        print(f"{label}: memory: {memory}", flush=True)


def kernels_of(model: AdaptedModel) -> dict[str, Any]:
    """How layers, loss and products were computed, for the record."""
    choices = current()
    return {**model.kernels, "products": {} if choices is None else dict(sorted(choices.used.items()))}


def write_tables(folder: Path, audit: Audit, evaluation: Evaluation, windows: Windows) -> None:
    """Writes the files next to result.json: audit.json, eval.parquet, thirds.parquet, windows.parquet."""
    write_json(folder / AUDIT, audit.record())
    evaluation.bins.to_parquet(folder / EVAL, index=False)
    evaluation.thirds.to_parquet(folder / THIRDS, index=False)
    windows.table().to_parquet(folder / WINDOWS, index=False)


@contextmanager
def tracked(cell: Cell, job_type: str = "cell") -> Iterator[Tracker]:
    """The tracker of a cell's run, finished when the block ends; only the first process tracks."""
    config = cell.config
    if not is_main_process():
        yield NullTracker()
        return
    run = TrackedRun(
        folder=Path(config.outputs),
        group=cell.group,
        name=f"{cell.name}-seed{config.seed}",
        resolved=to_container(config),
        job_type=job_type,
        tags=(config.model.name, config.data.name),
    )
    tracker = open_tracker(config.tracking, run)
    try:
        yield tracker
    except BaseException:
        tracker.finish(exit_code=1)
        raise
    tracker.finish()
