"""Cells of a plan side by side: one process each, with its share of the cores.

A step of a small model leaves cores idle: between matrix products, threads wait for each other. Two cells with one
thread each do not, and were faster in our measurements than one cell after the other with two threads. The numbers do
not depend on it: on a CPU, runs with one and two threads are bit-identical, which a test checks. On processors whose
matrix products divide a sum over the vocabulary among threads (seen with AMX) they agree only to rounding.

On GPUs each process has one of them to itself, or shares it with `cells_per_gpu` - 1 others. With several processes
started by `accelerate launch`, cells run one after the other.
"""

import io
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from typing import TextIO

import psutil
import torch

from hylo.core.devices import Device, process_count
from hylo.core.errors import ConfigError, problem
from hylo.core.interruption import handle_signals, stop_if_asked
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.launch.jobs import run_in_turn, run_one
from hylo.runs.cell import Cell
from hylo.runs.launcher import LauncherConfig
from hylo.runs.shared import Session

MOST = 4
"""Maximum number of cells at once unless configured: more were never measured."""
CELL_BYTES = 4 * 2**30
"""Free memory required per concurrent cell: the default run peaks at about half of it."""

WORTH = 2e12
"""Operations below which starting worker processes does not pay off."""

_SESSION = Session()
"""The session of a worker process: its cells share weights, tokens and windows. Workers map the same weights file."""


@register("launcher", "local")
@dataclass(kw_only=True, slots=True)
class LocalConfig(LauncherConfig):
    """This machine: one process per core or GPU where that is faster."""

    gpus: int | None = bounded(None, ge=1)
    """GPUs to use; None: all that are visible."""
    cells_per_gpu: int = bounded(1, ge=1, le=16)
    """Cells that share a GPU: more than one may pay off for small models (never measured)."""

    def check(self) -> None:
        there = torch.cuda.device_count()
        if self.gpus is not None and self.gpus > there:
            allowed = f"at most {there}, the GPUs of this machine" if there else "null: this machine has no GPU"
            raise ConfigError(problem("launcher.gpus", self.gpus, allowed, "launcher.gpus=null, which uses all"))

    def at_once(self, cells: Sequence[Cell], session: Session) -> int:
        config = cells[0].config if cells else None
        if config is None or process_count() > 1:
            return 1
        if config.workers is not None:
            return min(config.workers, len(cells))
        if config.trainer.device is not Device.cpu and (torch.cuda.is_available() or torch.backends.mps.is_available()):
            return max(1, min(len(self.places()), len(cells)))
        if sum(operations(cell, session) for cell in cells) < WORTH:
            return 1
        free = psutil.virtual_memory().available // CELL_BYTES
        return max(1, min(torch.get_num_threads(), MOST, free, len(cells)))

    def places(self) -> list[str]:
        """The GPU of each process, as CUDA_VISIBLE_DEVICES names it: every GPU once, then again for further cells."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = torch.cuda.device_count()  # an unknown name in the variable hides itself and all that follow
        names = visible.split(",")[:there] if visible else [str(number) for number in range(there)]
        return names[: self.gpus] * self.cells_per_gpu

    def run(self, cells: Sequence[Cell], session: Session) -> None:
        """Run cells several at once where that is faster. A signal ends this at the next step of the running cells.

        Cells that would leave cores idle at the end run in this process, one after the other with all threads; so do
        all remaining cells if a worker is killed.
        """
        workers = self.at_once(cells, session)
        left = list(cells)
        if workers > 1:
            places = self.places() if cells[0].config.trainer.device is not Device.cpu else []
            odd = [] if places else odd_ones(cells, workers)
            try:
                _in_workers(left, workers, [cell for cell in cells if cell not in odd], places)
            except BrokenProcessPool:
                said = "a process was killed (out of memory?): continuing one cell at a time"
                print(said, file=sys.stderr, flush=True)
        run_in_turn(left, session, total=len(cells))


def operations(cell: Cell, session: Session) -> float:
    """Approximate operations of a cell: per weight and token, 4 in training and 2 in evaluation and probes."""
    config, trainer = cell.config, cell.config.trainer
    windows = trainer.steps * trainer.batch_size * trainer.gradient_accumulation_steps if config.components else 0
    evaluated = config.data.eval_windows or 0
    weights = session.skeleton(config.model).num_parameters()
    probe_tokens = session.probe(config.probe_config, config.model).tokens if config.probe_config else 0
    return weights * (config.data.context_length * (4.0 * windows + 2.0 * evaluated) + 2.0 * probe_tokens)


def odd_ones(cells: Sequence[Cell], workers: int) -> list[Cell]:
    """The last trained cells that would not fill all workers. Cells that only evaluate are short and do not count."""
    trained = [cell for cell in cells if cell.config.components]
    return trained[len(trained) - len(trained) % workers :]


def _in_workers(left: list[Cell], workers: int, chosen: Sequence[Cell], places: Sequence[str]) -> None:
    """Run the chosen cells in worker processes; each is removed from `left` when it is done."""
    threads, total, began = max(1, torch.get_num_threads() // workers), len(chosen), time.monotonic()
    print(f"{total} cells, {workers} at once with {threads} thread{'s' * (threads > 1)} each", flush=True)
    context = multiprocessing.get_context("spawn")  # a forked process would inherit locks of torch's threads
    free: SimpleQueue[str] = context.SimpleQueue()
    for place in islice(cycle(places), workers):
        free.put(place)
    begin = (threads, free if places else None)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=begin) as pool:
        running: dict[Future[None], Cell] = {
            pool.submit(_work, cell, f"[{number}/{len(left)}]"): cell for number, cell in enumerate(chosen, 1)
        }
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                left.remove(running[future])
                elapsed = time.monotonic() - began
                eta = elapsed / done * (total - done)
                print(f"{done} of {total} cells done in {elapsed:.0f} s, ETA {eta:.0f} s", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Lines(io.TextIOBase):
    """Standard output of a worker: not a terminal, because bars of several processes would overwrite each other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False


def _begin(threads: int, places: "SimpleQueue[str] | None") -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    handle_signals()
    torch.set_num_threads(threads)
    sys.stdout = _Lines(sys.stdout)
    if places is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = places.get()  # read when CUDA is first used, which is later


def _end_with_parent() -> None:
    """Exit when the parent is killed: the worker would wait for cells forever. A checkpoint keeps its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(cell: Cell, place: str) -> None:
    stop_if_asked()
    run_one(cell, place, _SESSION)
