"""How busy the device is: the share of time in which it works for this process.

On a CPU, processor time of the process over wall-clock time and threads. On a GPU, the share of time in which kernels
run, as its driver says, of all processes that use it; it is unknown without NVIDIA's management library
(`pip install nvidia-ml-py`).
"""

import time
from contextlib import suppress

import torch


class Busy:
    """Adds up device time over the blocks that it is told about.

    Args:
        device: the device that works.
        seconds: what was added up before, for a run that continues; None: it is unknown.
    """

    def __init__(self, device: torch.device, seconds: float | None = 0.0) -> None:
        self._device = device
        self.seconds = seconds
        self._processor = 0.0

    def begin(self) -> None:
        """A block begins."""
        self._processor = time.process_time()

    def end(self, seconds: float) -> None:
        """It ended and took so many seconds of wall-clock time."""
        share = self._share(seconds)
        self.seconds = None if self.seconds is None or share is None else self.seconds + share * seconds

    def _share(self, seconds: float) -> float | None:
        if self._device.type == "cpu":
            used = (time.process_time() - self._processor) / torch.get_num_threads()
            return min(1.0, used / seconds) if seconds else 0.0
        if self._device.type == "cuda":
            with suppress(ModuleNotFoundError, RuntimeError):  # no library, or no driver that answers
                return torch.cuda.utilization(self._device) / 100
        return None
