"""The machine a run uses: device, precision and processes through accelerate, memory, versions."""

import ctypes
import os
import re
import resource
import subprocess
from enum import Enum
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    """Whether the chosen device is there, as text."""
    available = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available()}
    if available.get(device, True):
        return []
    return [problem("trainer.device", device.name, "a device of this machine", "trainer.device=auto")]


def accelerator_for(device: Device, precision: Precision) -> Accelerator:
    """The process's accelerator. Cells of one sweep may differ in precision, so state of an earlier cell is dropped.

    Raises:
        ConfigError: the chosen device does not exist here.
    """
    if problems := device_problems(device):
        raise ConfigError(*problems)
    if AcceleratorState._shared_state:  # accelerate has no public call for this
        AcceleratorState._reset_state(reset_partial_state=PartialState().num_processes == 1)
    return Accelerator(cpu=device is Device.cpu, mixed_precision=precision.value)


def is_main_process() -> bool:
    """Whether this process keeps records, among those that `accelerate launch` or `torchrun` started."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line, from the first process alone."""
    if is_main_process():
        print(text, flush=True)


def process_count() -> int:
    """How many processes `accelerate launch` or `torchrun` started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agreed(answer: bool, accelerator: Accelerator) -> bool:
    """The first process's answer, in every process: what they do next must be the same."""
    if accelerator.num_processes == 1:
        return answer
    said = torch.tensor([int(answer)], device=accelerator.device)
    return bool(broadcast(said).item())  # pyright: ignore[reportAttributeAccessIssue]


@cache
def library_versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    return {name: version(name) for name in LIBRARIES}


@cache
def git_revision() -> str | None:
    """Commit of the source tree that runs, with +dirty where it was changed since; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--", folder], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+dirty" if status.stdout.strip() else "")


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What the record says of the machine: versions, git revision, device, threads, processes."""
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
    """The sum of a tensor's bits, read as 64-bit integers (modulo 2^64); the bytes left over at its end are one more.

    Not as integers of the element's size: torch converts those one by one, which takes ten times as long.
    """
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    if flat.storage_offset() % 8:  # in a mapped file a tensor may start at any of its elements
        flat = flat.clone()
    whole = flat.numel() // 8 * 8
    return int(flat[:whole].view(torch.int64).sum()) + int.from_bytes(bytes(flat[whole:].tolist()), "little")


def reset_peak_memory() -> None:
    """Start measuring peak memory anew. On Linux this resets the process's high-water mark; elsewhere it stays.

    What an earlier cell has freed goes back to the system where the C library can do that: it is no memory of this one.
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
    """Memory in use now: of the GPU where one computes, else the process's resident memory; 0 where nothing tells."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS") or 0


def peak_memory_bytes() -> int:
    """Peak since `reset_peak_memory`: of the GPU where one computes, else of the process's resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if (resident := _status_bytes("VmHWM")) is not None:
        return resident
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


def _status_bytes(name: str) -> int | None:
    """A number that Linux keeps of this process; None elsewhere."""
    status = Path("/proc/self/status")
    match = re.search(rf"{name}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) * 1024 if match else None
