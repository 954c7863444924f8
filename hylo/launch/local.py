"""Cells of a plan side by side: one process each, with its share of the cores.

A step of a small model leaves cores idle: between matrix products, threads wait for each other. Two cells with one
thread each do not, and were faster in our measurements than one cell after the other with two threads. The numbers do
not depend on it: on a CPU, runs with one and two threads are bit-identical, which a test checks. On processors whose
matrix products divide a sum over the vocabulary among threads (seen with AMX) they agree only to rounding.

On a GPU, or with several processes started by `accelerate launch`, cells run one after the other.
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
from multiprocessing.connection import wait
from typing import TextIO

import psutil
import torch

from hylo.core.devices import Device, is_main_process, process_count
from hylo.core.interruption import handle_signals, stop_if_asked
from hylo.runs.cell import Cell
from hylo.runs.run import run_or_report
from hylo.runs.shared import Session

MOST = 4
"""Maximum number of cells at once unless configured: more were never measured."""
CELL_BYTES = 4 * 2**30
"""Free memory required per concurrent cell: the default run peaks at about half of it."""

WORTH = 2e12
"""Operations below which starting worker processes does not pay off."""

_SESSION = Session()
"""The session of a worker process: its cells share weights, tokens and windows. Workers map the same weights file."""


def cells_at_once(cells: Sequence[Cell], session: Session) -> int:
    """How many of these cells run at the same time."""
    config = cells[0].config if cells else None
    if config is None or process_count() > 1:
        return 1
    if config.workers is not None:
        return min(config.workers, len(cells))
    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if (on_gpu and config.trainer.device is not Device.cpu) or sum(operations(cell, session) for cell in cells) < WORTH:
        return 1
    free = psutil.virtual_memory().available // CELL_BYTES
    return max(1, min(torch.get_num_threads(), MOST, free, len(cells)))


def operations(cell: Cell, session: Session) -> float:
    """Approximate operations of a cell: per weight and token, 4 in training and 2 in evaluation and probes."""
    config, trainer = cell.config, cell.config.trainer
    windows = trainer.steps * trainer.batch_size * trainer.gradient_accumulation_steps if config.components else 0
    evaluated = config.data.eval_windows or 0
    weights = session.skeleton(config.model).num_parameters()
    probe_tokens = session.probe(config.probe_config, config.model).tokens if config.probe_config else 0
    return weights * (config.data.context_length * (4.0 * windows + 2.0 * evaluated) + 2.0 * probe_tokens)


def run_cells(cells: Sequence[Cell], session: Session) -> None:
    """Run cells that are not complete, several at once where that is faster. A failed cell does not stop the others.

    A signal that asks to stop ends this at the next step of the running cells.

    Cells that would leave cores idle at the end run in this process, one after the other with all threads; so do all
    remaining cells if a worker is killed.
    """
    workers = cells_at_once(cells, session)
    left = list(cells)
    if workers > 1:
        odd = odd_ones(cells, workers)
        try:
            _in_workers(left, workers, [cell for cell in cells if cell not in odd])
        except BrokenProcessPool:
            print("a process was killed (out of memory?): continuing one cell at a time", file=sys.stderr, flush=True)
    done = len(cells) - len(left)
    for number, cell in enumerate(left, done + 1):
        stop_if_asked()
        _run(cell, f"[{number}/{len(cells)}]", session)


def odd_ones(cells: Sequence[Cell], workers: int) -> list[Cell]:
    """The last trained cells that would not fill all workers. Cells that only evaluate are short and do not count."""
    trained = [cell for cell in cells if cell.config.components]
    return trained[len(trained) - len(trained) % workers :]


def _in_workers(left: list[Cell], workers: int, chosen: Sequence[Cell]) -> None:
    """Run the chosen cells in worker processes; each is removed from `left` when it is done."""
    threads, total, began = max(1, torch.get_num_threads() // workers), len(chosen), time.monotonic()
    print(f"{total} cells, {workers} at once with {threads} thread{'s' * (threads > 1)} each", flush=True)
    context = multiprocessing.get_context("spawn")  # a forked process would inherit locks of torch's threads
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,)) as pool:
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


def _begin(threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    handle_signals()
    torch.set_num_threads(threads)
    sys.stdout = _Lines(sys.stdout)


def _end_with_parent() -> None:
    """Exit when the parent is killed: the worker would wait for cells forever. A checkpoint keeps its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(cell: Cell, place: str) -> None:
    stop_if_asked()
    _run(cell, place, _SESSION)


def _run(cell: Cell, place: str, session: Session) -> None:
    if is_main_process():
        print(f"{place} {cell.group}: {cell.name}, seed {cell.config.seed}", flush=True)
    run_or_report(cell, session)
