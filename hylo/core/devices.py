"""The machine a run uses: device, precision and processes (through accelerate), memory, versions."""

import ctypes
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast
from torch import Tensor

from hylo.core.errors import ConfigError, problem

LIBRARIES = ("hylo", "torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "numpy", "safetensors")


class Device(Enum):
    """Where to compute."""

    auto = "a GPU where there is one"
    cpu = "the CPU"
    cuda = "an NVIDIA or AMD GPU"
    mps = "an Apple GPU"


class Precision(Enum):
    """Arithmetic of the base model. Adapters and the optimizer stay in float32."""

    float32 = "no"
    bfloat16 = "bf16"


def device_problems(device: Device) -> list[str]:
    """The problem with the chosen device as text; empty if there is one for each process."""
    available = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available()}
    if not available.get(device, True):
        return [problem("trainer.device", device.name, "a device of this machine", "trainer.device=auto")]
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device_kind(device) == "cuda" and here > gpus:
        fix = f"--num_processes {gpus}, or trainer.device=cpu"
        return [problem("processes", here, f"at most {gpus}, one for each GPU of this machine", fix)]
    return []


def device_kind(device: Device) -> str:
    """cuda, mps or cpu: what a setting means on this machine."""
    if device is not Device.auto:
        return device.name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def bfloat16_problems(key: str, device: Device) -> list[str]:
    """The problem with a setting of bfloat16 as text; empty if the device computes in it."""
    kind = device_kind(device)
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        allowed = f"float32, or float16: {torch.cuda.get_device_name()} does not compute in bfloat16"
    elif kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        allowed = "float32, or float16: Apple GPUs compute in bfloat16 from macOS 14 on"
    else:
        return []
    return [problem(key, "bfloat16", allowed, f"{key}=float32, or trainer.device=cpu")]


def has_bfloat16(device: Device) -> bool:
    """Whether the device has instructions for bfloat16; a CPU without them computes in it, slower than in float32."""
    if device_kind(device) == "cpu":
        return any(has is True for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
    return not bfloat16_problems("", device)


def accelerator_for(device: Device, precision: Precision) -> Accelerator:
    """The process's accelerator. Cells of one sweep may differ in precision, so an earlier cell's state is reset.

    Raises:
        ConfigError: the chosen device is not available.
    """
    if problems := device_problems(device):
        raise ConfigError(*problems)
    if AcceleratorState._shared_state:  # accelerate has no public call for this
        AcceleratorState._reset_state(reset_partial_state=PartialState().num_processes == 1)
    return Accelerator(cpu=device is Device.cpu, mixed_precision=precision.value)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype for products of x: autocast's if it is enabled, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def is_main_process() -> bool:
    """Whether this process writes the records, among those started by `accelerate launch` or `torchrun`."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line, from the main process only."""
    if is_main_process():
        print(text, flush=True)


def say_once(*lines: str) -> None:
    """Print lines, from the main process only and not from the processes that run the cells of a sweep."""
    if multiprocessing.parent_process() is None:
        for line in lines:
            say(line)


def process_count() -> int:
    """The number of processes that `accelerate launch` or `torchrun` started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agreed(answer: bool, accelerator: Accelerator) -> bool:
    """The main process's answer, in every process, so that all of them do the same next."""
    if accelerator.num_processes == 1:
        return answer
    said = torch.tensor([int(answer)], device=accelerator.device)
    return bool(broadcast(said).item())  # pyright: ignore[reportAttributeAccessIssue]


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number."""
    return {name: version(name) for name in LIBRARIES}


@cache
def git_revision() -> str | None:
    """Commit of the running source tree, with +dirty if it has uncommitted changes; None outside a checkout."""
    folder = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--", folder], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+dirty" if status.stdout.strip() else "")


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """The record's description of the machine: versions, git revision, device, precision, threads, processes."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "versions": library_versions(),
        "git_revision": git_revision(),
        "device": name,
        "precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bits read as 64-bit integers (modulo 2^64); the trailing bytes count as one more integer.

    Integers of the element's own size would be much slower: torch converts those one by one.
    """
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    if flat.storage_offset() % 8:  # in a memory-mapped file a tensor may start at any element
        flat = flat.clone()
    whole = flat.numel() // 8 * 8
    return int(flat[:whole].view(torch.int64).sum()) + int.from_bytes(bytes(flat[whole:].tolist()), "little")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was missing; on CPUs and Apple GPUs torch has no class of its own for it."""
    said = ("out of memory", "can't allocate memory", "not enough memory")
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in said))


@contextmanager
def trial() -> Iterator[None]:
    """Suppresses whatever a model raises that is only tried; not missing memory, which is no property of the model."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise


def reset_peak_memory() -> None:
    """Reset the peak-memory statistics: those of the GPU, and on Linux the process's high-water mark.

    Memory freed by an earlier cell is first returned to the system, where the C library can do that, so that it does
    not count for this one.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # pyright: ignore[reportOptionalMemberAccess]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists() and os.access(clear, os.W_OK):
        clear.write_text("5")


def resident_bytes() -> int:
    """Memory in use now: of the GPU if it is used, else the process's resident memory; 0 if unknown."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS") or 0


def peak_memory_bytes() -> int:
    """Peak since `reset_peak_memory`: of the GPU if it is used, else of the process's resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if (resident := _status_bytes("VmHWM")) is not None:
        return resident
    try:
        import resource  # not on Windows
    except ImportError:
        return getattr(psutil.Process().memory_info(), "peak_wset", 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(name: str) -> int | None:
    """A field of /proc/self/status in bytes; None on systems other than Linux."""
    status = Path("/proc/self/status")
    match = re.search(rf"{name}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) * 1024 if match else None
