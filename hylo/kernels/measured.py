"""Which of several ways to compute the same thing is fastest here: measured once per machine, then read from the cache.

The ways agree up to rounding. The first one named is kept unless another is faster by more than a margin, so noise
hardly ever decides, and all processes of a machine follow the first measurement: same machine, same bits. Deleting the
cache folder measures anew. Own design; torch.backends.cudnn.benchmark does the same for convolutions.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hylo.core.cache import cache_folder, text_hash
from hylo.core.devices import say
from hylo.core.errors import first_line
from hylo.core.files import exclusive, finite_or_none, write_json

ROUNDS = 5
"""Measurements of each way; the fastest counts."""
ENOUGH_SECONDS = 20.0
"""Once a measurement took this long, it ends with the round; there is always one that counts."""
HOPELESS = 4.0
"""A way that takes so many times as long as another is not measured again."""
MARGIN = 0.95
"""A way replaces the first one if it takes less than this share of its time."""
_DISPATCH = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that restrict the instructions of torch, oneDNN and MKL."""
_OF_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping")
"""What Linux says of a processor that tells one kind from another."""


class Choices:
    """The fastest way of each piece of work, on one kind of device.

    Args:
        folder: where choices are kept.
        device: the device that is measured.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.file = folder / "choices.json"
        self._device = device
        self._kept: dict[str, dict[str, Any]] = {}
        self._measuring = False
        self.used: dict[str, str] = {}
        """The way chosen for each piece of work that was asked about since `measuring` began."""

    def fastest(
        self,
        work: str,
        ways: Mapping[str, Callable[[], object]],
        *,
        before: Callable[[str], None] | None = None,
        rounds: int = ROUNDS,
    ) -> str:
        """The name of the fastest way, from the cache or measured now.

        Args:
            work: names what is computed, with its sizes.
            ways: by name; what to use in doubt comes first. They are called several times.
            before: called with the name of a way before each call, outside the time that counts.
            rounds: measurements of each way.
        """
        if not self._known(work, ways):
            with self._alone():
                self._kept = self._read()
                if not self._known(work, ways):
                    seconds = measured(ways, self._device, before=before, rounds=rounds)
                    milliseconds = {name: finite_or_none(round(1e3 * each, 4)) for name, each in seconds.items()}
                    self._kept[work] = {"chosen": chosen(seconds), "milliseconds": milliseconds}
                    write_json(self.file, self._kept)
        self.used[work] = self._kept[work]["chosen"]
        return self.used[work]

    def _known(self, work: str, ways: Mapping[str, object]) -> bool:
        """Whether all of these ways were measured, and one of them chosen: an extra may have been installed since."""
        entry = self._kept.get(work, {})
        return entry.get("chosen") in ways and ways.keys() <= entry.get("milliseconds", {}).keys()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process measures or writes meanwhile. A layer that is measured may ask about its products."""
        if self._measuring:
            yield
            return
        with exclusive(self.file.parent):
            self._measuring = True
            try:
                yield
            finally:
                self._measuring = False

    def _read(self) -> dict[str, dict[str, Any]]:
        """What the file holds; nothing if it is missing or damaged, because it can be measured again."""
        found = None
        with suppress(FileNotFoundError, ValueError):
            found = json.loads(self.file.read_text())
        entries = found.items() if isinstance(found, dict) else ()
        return {work: entry for work, entry in entries if isinstance(entry, dict) and "chosen" in entry}


def measured(
    ways: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    before: Callable[[str], None] | None = None,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Seconds of the fastest call of each way, measured in alternation after a round that is not counted.

    On a CPU these are seconds of processor time on one thread: wall-clock time would also measure whatever else runs.
    A way that is many times slower than another is not measured again. One that fails (out of memory, no compiler)
    takes forever, unless it is the first one.
    """
    fastest, began = dict.fromkeys(ways, float("inf")), time.perf_counter()
    first, left = next(iter(ways)), dict.fromkeys(ways)
    with _one_thread(device):
        for number in range(rounds + 1):
            if number > 1 and time.perf_counter() - began > ENOUGH_SECONDS:
                break
            for name in list(left):
                try:
                    took = _seconds(name, ways[name], device, before)
                except Exception as error:  # whatever another way raises, the first one computes
                    if name == first:
                        raise
                    del left[name]
                    fastest[name] = float("inf")
                    say(f"kernels: {name} cannot be used here: {type(error).__name__}: {first_line(error)}")
                    continue
                if number:
                    fastest[name] = min(fastest[name], took)
            if number:
                limit = HOPELESS * min(fastest.values())
                left = {name: None for name in left if fastest[name] <= limit}
    return fastest


def _seconds(name: str, way: Callable[[], object], device: torch.device, before: Callable[[str], None] | None) -> float:
    """Seconds of one call of a way."""
    if before is not None:
        before(name)
    start = _clock(device)
    way()
    return _clock(device) - start


def chosen(seconds: Mapping[str, float]) -> str:
    """The first way, or the fastest one if that is faster by more than the margin."""
    first, best = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < MARGIN * seconds[first] else first


@contextmanager
def measuring(device: torch.device) -> Iterator[Choices]:
    """For the duration of the block, kernels follow measurements instead of their fixed rules."""
    choices = choices_of(device.type)
    choices.used.clear()
    _FOLLOWED.append(choices)
    try:
        yield choices
    finally:
        _FOLLOWED.pop()


_FOLLOWED: list[Choices] = []
"""The choices of the blocks that are open, for all threads: a GPU's backward pass runs in threads of its own."""


def current() -> Choices | None:
    """The choices to follow; None: fixed rules."""
    return _FOLLOWED[-1] if _FOLLOWED else None


@cache
def choices_of(kind: str) -> Choices:
    """The choices of this machine's devices of a kind (cpu, cuda, mps), one object per process."""
    return Choices(cache_folder() / "kernels" / machine(kind)[:16], torch.device(kind))


@cache
def machine(kind: str) -> str:
    """A hash of what decides which way is fastest: the processor, its instructions, and torch's version."""
    parts = [kind, torch.__version__, torch.backends.cpu.get_cpu_capability()]
    parts += [f"{name}={os.environ.get(name)}" for name in _DISPATCH]
    described = Path("/proc/cpuinfo")
    lines = described.read_text().partition("\n\n")[0].splitlines() if described.exists() else []
    parts += [line for line in lines if line.partition(":")[0].strip() in _OF_PROCESSOR]
    if kind == "cuda":
        parts.append(torch.cuda.get_device_name())
    return text_hash(*parts)


def _clock(device: torch.device) -> float:
    """Seconds, from any start: processor time of this thread on a CPU, the time at which all work is done on a GPU."""
    if device.type == "cpu":
        return time.thread_time()
    (torch.cuda if device.type == "cuda" else torch.mps).synchronize()
    return time.perf_counter()


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
