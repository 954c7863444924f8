"""What the runs of a study cost together: time, tokens, speed, memory, and how busy the devices were."""

from dataclasses import dataclass

from hylo.analysis.pairs import complete_runs, value_of
from hylo.runs.record import StudyRecord


@dataclass(frozen=True)
class Cost:
    """Of all complete runs that trained something; each run counts once, whichever study computed it."""

    runs: int
    seconds: float
    """Of training, added up; runs side by side take less."""
    tokens: int
    tokens_per_second: float
    """Of one run while it trains."""
    peak_memory_bytes: int
    """Of the largest run."""
    utilization: float | None
    """Share of the training time in which the devices worked; None: a record does not say."""

    def __str__(self) -> str:
        busy = "" if self.utilization is None else f", devices {100 * self.utilization:.0f} % busy"
        return (
            f"training: {self.runs} run{'s' * (self.runs > 1)}, {self.tokens:,} tokens in {duration(self.seconds)}, "
            f"{self.tokens_per_second:,.0f} tokens/s a run{busy}"
        )


def cost_of(study: StudyRecord) -> Cost | None:
    """The cost of a study; None if nothing was trained.

    Raises:
        RecordError: a record does not say how long it trained.
    """
    runs = [run for cell in study.cells for run in complete_runs(study, cell)]
    runs = [run for run in runs if value_of(run, "training", "seconds")]
    if not runs:
        return None
    times = [value_of(run, "training", "seconds") for run in runs]
    seconds, tokens = sum(times), sum(value_of(run, "training", "tokens") for run in runs)
    shares = [run.result["training"].get("utilization") for run in runs]  # records before this column have none
    busy = [time * share for time, share in zip(times, shares, strict=True) if share is not None]
    return Cost(
        runs=len(runs),
        seconds=round(seconds, 1),
        tokens=tokens,
        tokens_per_second=round(tokens / seconds, 1),
        peak_memory_bytes=max(value_of(run, "training", "peak_memory_bytes") or 0 for run in runs),
        utilization=round(sum(busy) / seconds, 3) if len(busy) == len(runs) else None,
    )


def duration(seconds: float) -> str:
    """Seconds in words: 43 s, 12 min, 2.8 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
