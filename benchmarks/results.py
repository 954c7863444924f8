"""The rows that the parts measure, and the file that keeps them: results.json, written after every row.

A row is identified by its work and metric: measuring a part again replaces its own rows and leaves the others.
"""

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.settings import Subject
from hylo.core.devices import git_revision, library_versions
from hylo.core.errors import ConfigError
from hylo.core.files import write_json

FILE = "results.json"
FEW = 4
"""Number of rounds below which the spread covers all of them, not only the middle half."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured quantity. None: there is nothing to compare with, or a single measurement has no spread."""

    part: str
    work: str
    """The workload, for example `lora 4x256`."""
    metric: str
    """What is measured, with its unit; see METRICS in benchmarks/metrics.py."""
    hylo: float | None = None
    peft: float | None = None
    floor: float | None = None
    ratio_to_peft: float | None = None
    """hylo / peft: the median of the rounds' ratios."""
    ratio_to_floor: float | None = None
    """hylo / floor: the median of the rounds' ratios."""
    spread: float | None = None
    """`spread` of the rounds' ratios to peft; of hylo's own values where peft has none."""
    spread_to_floor: float | None = None
    """`spread` of the rounds' ratios to the floor."""
    rounds: int = 1


def measured(
    part: str,
    work: str,
    metric: str,
    hylo: Sequence[float],
    peft: Sequence[float] | None = None,
    floor: Sequence[float] | None = None,
) -> Row:
    """The row for values by round. Values of one round belong together: a busy machine slows all of them."""
    to_peft = _ratios(hylo, peft)
    to_floor = _ratios(hylo, floor)
    return Row(
        part=part,
        work=work,
        metric=metric,
        hylo=statistics.median(hylo),
        peft=statistics.median(peft) if peft else None,
        floor=statistics.median(floor) if floor else None,
        ratio_to_peft=statistics.median(to_peft) if to_peft else None,
        ratio_to_floor=statistics.median(to_floor) if to_floor else None,
        spread=spread(to_peft or hylo),
        spread_to_floor=spread(to_floor) if to_floor else None,
        rounds=len(hylo),
    )


def spread(values: Sequence[float]) -> float | None:
    """Half the interquartile range over the median; half the range over the median for fewer than FEW values."""
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    if len(values) >= FEW:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / statistics.median(values)


def _ratios(values: Sequence[float], reference: Sequence[float] | None) -> list[float]:
    return [value / other for value, other in zip(values, reference, strict=True)] if reference else []


@dataclass
class Results:
    """The content of results.json."""

    subject: Subject
    machine: dict[str, Any] = field(default_factory=dict)
    """Processor, cores, threads and library versions."""
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """When each part was last measured, and at which revision."""
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Results | None":
        """The results in a folder; None if there are none yet."""
        path = folder / FILE
        if not path.exists():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        subject = Subject(**kept["subject"])
        return cls(subject, kept["machine"], kept["parts"], [Row(**row) for row in kept["rows"]])

    @classmethod
    def of(cls, subject: Subject, folder: Path) -> "Results":
        """The results of a model and device in a folder, to add to.

        Raises:
            ConfigError: the folder holds those of another model or device.
        """
        kept = cls.read(folder)
        if kept and kept.subject != subject:
            raise ConfigError(f"{folder} holds results of {kept.subject}, not of {subject}\n    fix:     another --out")
        results = kept or cls(subject)
        results.machine = machine(subject)
        return results

    def add(self, row: Row) -> None:
        """Add a row in place of the one with its work and metric, or after the others of its work."""
        key = (row.work, row.metric)
        self.parts[row.part] = {"date": datetime.date.today().isoformat(), "git_revision": git_revision()}
        places = [place for place, other in enumerate(self.rows) if (other.work, other.metric) == key]
        beside = [place for place, other in enumerate(self.rows) if (other.part, other.work) == (row.part, row.work)]
        if places:
            self.rows[places[0]] = row
        else:
            self.rows.insert(beside[-1] + 1 if beside else len(self.rows), row)

    def write(self, folder: Path) -> None:
        """Write results.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, asdict(self))


def machine(subject: Subject) -> dict[str, Any]:
    """What a reader needs to know about the machine, and nothing that identifies it."""
    names = re.findall(r"^model name\s*: (.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    versions = library_versions()
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if subject.device == "cuda" else None,
        "versions": {name: versions[name] for name in ("hylo", "torch", "transformers", "peft")},
    }


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
