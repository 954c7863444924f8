"""What a run and a study recorded: their tables are read from disk on first use."""

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml

from hylo.core.errors import RecordError
from hylo.runs.layout import COMPLETE, CONFIG, EVAL, HALF, PROBE, THIRDS, TRIALS, WINDOWS
from hylo.runs.tables import read_table, sorted_table
from hylo.training.logs import CURVE, TRAJECTORY

T = TypeVar("T")


@dataclass(frozen=True)
class RunRecord:
    """One run as read from disk. Tables are read on first use."""

    folder: Path
    result: dict[str, Any]

    @property
    def complete(self) -> bool:
        return self.result["status"] == COMPLETE

    @property
    def cell(self) -> str:
        return self.result["cell"]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @cached_property
    def eval(self) -> pd.DataFrame:
        """Columns window, bin, nll_sum (nats), tokens, bytes; sorted by window and bin."""
        return read_table(self.folder / EVAL, ["window", "bin", "nll_sum", "tokens", "bytes"])

    @cached_property
    def thirds(self) -> pd.DataFrame:
        """Columns window, third, nll_sum (nats), tokens, bytes; sorted by window and third."""
        return read_table(self.folder / THIRDS, ["window", "third", "nll_sum", "tokens", "bytes"])

    @cached_property
    def half(self) -> pd.DataFrame | None:
        """`eval` after half of the optimizer steps; None for untrained runs and older records."""
        path = self.folder / HALF
        return read_table(path, ["window", "bin", "nll_sum", "tokens", "bytes"]) if path.exists() else None

    @cached_property
    def windows(self) -> pd.DataFrame:
        """Columns window, document, first_token, length (without padding): enough to cut the same windows again."""
        return read_table(self.folder / WINDOWS, ["window", "document", "first_token", "length"])

    @cached_property
    def window_places(self) -> list[list[Any]]:
        """Where each window was cut: window, document, first token, length."""
        return self.windows[["window", "document", "first_token", "length"]].to_numpy().tolist()

    @cached_property
    def window_sums(self) -> dict[str, Any]:
        """Sums by window that were computed from this record, by metric: filled by hylo/analysis/pairs.py."""
        return {}

    @cached_property
    def complete_tables(self) -> set[str]:
        """Tables without a missing sum: filled by hylo/analysis/pairs.py."""
        return set()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty for records without one.

        Raises:
            RecordError: the file is damaged.
        """
        path = self.folder / CONFIG
        try:
            # libyaml: OmegaConf's own loader takes most of the time of a report of many runs.
            return yaml.CSafeLoader(path.read_bytes()).get_single_data() or {}
        except FileNotFoundError:
            return {}
        except yaml.YAMLError as error:
            raise RecordError(f"{path} is damaged ({error}); delete {path.parent} and run the cell again") from error

    @property
    def probe_fingerprint(self) -> str | None:
        """Fingerprint of the probe in this record; None if there is none, or its table is missing."""
        found = "probe" in self.result and (self.folder / PROBE).exists()
        return self.result["probe"]["fingerprint"] if found else None

    @property
    def probe_name(self) -> str | None:
        """Name of the probe in this record; None if there is none."""
        return None if self.probe_fingerprint is None else self.result["probe"]["name"]

    @cached_property
    def probe(self) -> pd.DataFrame:
        """The probe's table: one row per question, with the probe's own columns. Empty without a probe."""
        path = self.folder / PROBE
        return pd.DataFrame() if self.probe_fingerprint is None else read_table(path, [], delete=path)

    def probe_table(self, columns: list[str]) -> pd.DataFrame:
        """The probe's table, which must have these columns, sorted by the first three.

        Raises:
            RecordError: the table is damaged, or lacks a column.
        """
        path = self.folder / PROBE
        return sorted_table(self.probe, path, columns, 3, f"delete {path} and run the cell again")

    @cached_property
    def curve(self) -> pd.DataFrame:
        """One row per optimizer step: step, loss (nats per token), learning_rate, grad_norm, tokens, seconds.

        If components regularize, there is a column regularization (nats per token), which is not part of the loss.
        """
        path = self.folder / CURVE
        return pd.read_json(path, lines=True) if path.exists() and path.stat().st_size else pd.DataFrame()

    @cached_property
    def trajectory(self) -> pd.DataFrame:
        """Columns component, quantity, step, index, value: vectors over training; step 0 is the state before training.

        The quantity's name ends in its unit, such as `boundaries (tokens)`. Empty if no component has any.

        Raises:
            RecordError: a line is damaged.
        """
        path = self.folder / TRAJECTORY
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        except ValueError as error:
            raise RecordError(f"{path} is damaged ({error}); delete {path.parent} and run the cell again") from error
        rows = [
            (component, quantity, line["step"], index, value)
            for line in lines
            for component, vectors in line.items()
            if component != "step"
            for quantity, vector in vectors.items()
            for index, value in enumerate(vector)
        ]
        return pd.DataFrame(rows, columns=pd.Index(["component", "quantity", "step", "index", "value"]))


@dataclass(frozen=True)
class StudyRecord:
    """A study or sweep as read from disk: its cells in order, each with its runs (one per seed)."""

    folder: Path
    manifest: dict[str, Any]
    cells: dict[str, list[RunRecord]]
    unread: dict[str, list[str]] = field(default_factory=dict)
    """Cells with runs whose record is missing or damaged: a line with the reason for each of these runs."""

    def once(self, *key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, computed once for this study and key: several tables and figures need it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[tuple[Hashable, ...], Any]:
        return {}

    @property
    def name(self) -> str:
        return self.manifest["study"]

    @property
    def base(self) -> str:
        """Name of the first cell that evaluates the base model."""
        return self.manifest["base"]

    def base_of(self, cell: str) -> str:
        """The base-model cell with a cell's evaluation windows; older manifests have one for all cells."""
        return self._bases[cell]

    def is_base(self, cell: str) -> bool:
        """Whether a cell evaluates the base model."""
        return cell in self._base_cells

    @cached_property
    def _bases(self) -> dict[str, str]:
        return {entry["cell"]: entry.get("base", self.base) for entry in self.manifest["cells"]}

    @cached_property
    def _base_cells(self) -> set[str]:
        return {*self._bases.values()}

    @cached_property
    def trials(self) -> pd.DataFrame:
        """NLL sums of the trials behind chosen settings: cell, setting (its index among those tried in the manifest),
        seed, window, nll_sum (nats), tokens. Empty if nothing was chosen."""
        columns = ["cell", "setting", "seed", "window", "nll_sum", "tokens"]
        path = self.folder / TRIALS
        if not path.exists():
            return pd.DataFrame(columns=pd.Index(columns))
        return read_table(path, columns, keys=4, delete=path)
