"""Progress of a run: a bar on a terminal, a line every few seconds in a log."""

import time
from types import TracebackType
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LOG_SECONDS = 15.0
"""Interval between lines when the output is not a terminal."""


class Progress:
    """Counts steps towards a total, with the latest loss, tokens per second and the time left.

    While a bar is shown on a terminal, nested ones stay hidden: two would overwrite each other.
    """

    _shown: ClassVar[int] = 0

    def __init__(self, label: str, total: int, done: int = 0, visible: bool = True) -> None:
        self.label, self.total, self.visible = label, total, visible
        self._console = Console()
        self._bar: Bar | None = None
        self._first, self._began, self._logged = done, time.monotonic(), time.monotonic()
        if visible and self._console.is_terminal and not Progress._shown:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        if self._bar:
            Progress._shown += 1
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            Progress._shown -= 1

    def update(self, done: int, *, loss: float | None = None, tokens_per_second: float | None = None) -> None:
        """Show that `done` steps of the total are finished."""
        note = "  ".join(
            text
            for text in (
                f"loss {loss:.3f}" if loss is not None else "",
                f"{tokens_per_second:,.0f} tokens/s" if tokens_per_second is not None else "",
            )
            if text
        )
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif (
            self.visible and not self._console.is_terminal and (now - self._logged >= LOG_SECONDS or done == self.total)
        ):
            left = (now - self._began) / max(done - self._first, 1) * (self.total - done)
            print(f"{self.label}: {done}/{self.total}  {note}  {now - self._began:.0f} s, ETA {left:.0f} s", flush=True)
            self._logged = now
