"""Records: one folder per run, written atomically and found by fingerprint.

    outputs/<group>/<cell>-seed<k>-<fingerprint>/      group: a study's name, sweep-<hash>, or runs
        result.json       status, parameters, metrics, training, environment (see `new_result`)
        eval.parquet      window, bin (0-9), nll_sum, tokens, bytes, words  one row per window and position bin; older
                          records count no words
        thirds.parquet    window, third (0-2), nll_sum, tokens, bytes, words       the same by third: 1 is the middle
        half.parquet      as eval.parquet, after half of the optimizer steps; only for trained runs
        probe.parquet     one row per question, with the probe's own columns; only if a probe was asked: result.json
                          then has a section `probe` with its name, fingerprint, settings and numbers
        windows.parquet   window, document, first_token, length             where each window was cut; with sliding
                          windows also context, the first tokens that are read but not predicted
        audit.json        finding of each audit check (see `hylo.audit`); failed checks are also in result.json
        curve.jsonl       one line per optimizer step
        trajectory.jsonl  vectors over steps, by component; only if a component has vectors to track
        config.yaml       the resolved config
        adapter/          safetensors + JSON
        traceback.txt     only for failed runs
    outputs/<group>/study.json                          the cells in order, with their folders
    outputs/<group>/trials.parquet                      cell, setting, seed, window, nll_sum, tokens: the trials
                                                        behind chosen settings, on validation documents; only if the
                                                        study chose any
    outputs/tuning-of-<group>/tuning.json, trials.parquet           choices so far, and the sums behind them

`environment.overhead_seconds` is the wall time of the run without training and evaluation: loading, audit, checksums,
records and tracking.

The names in these files are a contract: reports, notebooks and other tools read them.
"""

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet
import yaml

from hylo.core.errors import RecordError, first_line
from hylo.core.files import write_json, write_table
from hylo.core.sums import SUMS, damaged_files, remove_sums, write_sums
from hylo.runs.earlier import current_manifest, current_result
from hylo.training.logs import CURVE, TRAJECTORY

T = TypeVar("T")

SCHEMA_VERSION = 2
RUNNING, COMPLETE, FAILED, INTERRUPTED = "running", "complete", "failed", "interrupted"
RESULT, EVAL, THIRDS, WINDOWS = "result.json", "eval.parquet", "thirds.parquet", "windows.parquet"
HALF = "half.parquet"
AUDIT = "audit.json"
PROBE = "probe.parquet"
CONFIG, ADAPTER, TRACEBACK, STUDY = "config.yaml", "adapter", "traceback.txt", "study.json"
RECORDS = "records"
"""Folder of a published study's records (`hylo.publish`)."""
TRIALS, CHOICES = "trials.parquet", "tuning.json"
NOT_RUN = "not_run"
"""Key of a manifest: the cells of the study that are not part of it, because it was run (`cells=`) or published
(`--so-far`) without them."""

_SECTIONS = (
    "schema_version", "status", "fingerprint", "study", "cell", "seed", "params", "metrics", "training", "audit",
)  # fmt: skip


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
        return _read_table(self.folder / EVAL, ["window", "bin", "nll_sum", "tokens", "bytes"])

    @cached_property
    def thirds(self) -> pd.DataFrame:
        """Columns window, third, nll_sum (nats), tokens, bytes; sorted by window and third."""
        return _read_table(self.folder / THIRDS, ["window", "third", "nll_sum", "tokens", "bytes"])

    @cached_property
    def half(self) -> pd.DataFrame | None:
        """`eval` after half of the optimizer steps; None for untrained runs and older records."""
        path = self.folder / HALF
        return _read_table(path, ["window", "bin", "nll_sum", "tokens", "bytes"]) if path.exists() else None

    @cached_property
    def windows(self) -> pd.DataFrame:
        """Columns window, document, first_token, length (without padding): enough to cut the same windows again."""
        return _read_table(self.folder / WINDOWS, ["window", "document", "first_token", "length"])

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
        return pd.DataFrame() if self.probe_fingerprint is None else _read_table(path, [], delete=path)

    def probe_table(self, columns: list[str]) -> pd.DataFrame:
        """The probe's table, which must have these columns, sorted by the first three.

        Raises:
            RecordError: the table is damaged, or lacks a column.
        """
        path = self.folder / PROBE
        return _sorted(self.probe, path, columns, 3, f"delete {path} and run the cell again")

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
        return _read_table(path, columns, keys=4, delete=path)


def read_run(folder: Path) -> RunRecord:
    """Reads one run's record.

    Raises:
        RecordError: result.json is missing, damaged, not JSON, of another schema version, or lacks a section.
    """
    path = folder / RESULT
    if path.exists() and (damaged := damaged_files(folder, lambda name: name == RESULT)):
        raise RecordError(f"{folder / damaged[0]} is damaged (its checksum differs); delete {folder} and run it again")
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; is this the folder of a run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is damaged ({error}); delete {folder} and run the cell again") from error
    missing = [section for section in _SECTIONS if section not in result] if isinstance(result, dict) else ["an object"]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}; delete {folder} and run the cell again")
    if result["schema_version"] != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {result['schema_version']}, this version of hylo reads {SCHEMA_VERSION}; "
            f"run the cell again or read it with the version that wrote it"
        )
    return RunRecord(folder, current_result(result))


def read_study(folder: Path) -> StudyRecord:
    """Reads the manifest and all runs of a study or sweep.

    Raises:
        RecordError: the manifest is missing or damaged, or names a run that is not in the folder.
    """
    path = folder / STUDY
    try:
        manifest = current_manifest(json.loads(path.read_text()))
        listed = {cell["cell"]: list(cell["runs"]) for cell in manifest["cells"]}
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; run a study or a sweep first, for example `make ablation`") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is damaged ({error!r}); run the study again to rewrite it") from error
    for name in (name for runs in listed.values() for name in runs):
        if Path(name).name != name:
            raise RecordError(f"{path} names the run {name!r}; a run is a folder directly inside {folder}")
    return study_of(folder, manifest)


def study_of(folder: Path, manifest: dict[str, Any]) -> StudyRecord:
    """Reads the runs named by a manifest. Those whose record is missing or damaged are named in `unread`."""
    cells: dict[str, list[RunRecord]] = {}
    unread: dict[str, list[str]] = {}
    for entry in manifest["cells"]:
        cell = entry["cell"]
        runs = cells.setdefault(cell, [])
        for name in entry["runs"]:
            if not (folder / name / RESULT).exists():
                unread.setdefault(cell, []).append(f"not run: {cell}, {folder / name}")
                continue
            try:
                runs.append(checked(read_run(folder / name), adapter=False))
            except RecordError as error:
                unread.setdefault(cell, []).append(f"damaged: {cell}, {first_line(error)}")
    return StudyRecord(folder, manifest, cells, unread)


def checked(record: RunRecord, *, adapter: bool = True) -> RunRecord:
    """The record, if all its files are as they were written; those of its adapter only if `adapter`.

    Raises:
        RecordError: a file of a complete record is damaged, or missing. Adapters may be deleted to save space. Records
            without checksums are read instead.
    """
    folder = record.folder

    def wanted(name: str) -> bool:
        return not name.startswith(f"{ADAPTER}/") or (adapter and (folder / name).exists())

    if record.complete and (damaged := damaged_files(folder, wanted)):
        raise RecordError(f"{folder / damaged[0]} is damaged (its checksum differs); delete {folder} and run it again")
    if record.complete and not (folder / SUMS).exists():
        _ = record.eval, record.thirds, record.windows, record.probe
    return record


def add_probe(folder: Path, table: pd.DataFrame, section: dict[str, Any]) -> RunRecord:
    """Adds a probe's result to a complete record, replacing that of any other probe.

    If interrupted, the record is still complete, with either this probe's result or none.
    """
    result = read_run(folder).result
    remove_sums(folder)
    write_json(folder / RESULT, {name: value for name, value in result.items() if name != "probe"})
    write_table(folder / PROBE, table)
    write_json(folder / RESULT, result | {"probe": section})
    write_sums(folder)
    return read_run(folder)


def _read_table(path: Path, columns: list[str], *, keys: int = 2, delete: Path | None = None) -> pd.DataFrame:
    """Reads a table sorted by its first columns; `delete` is what to delete if it is damaged, by default the run."""
    fix = f"delete {delete or path.parent} and run the cell again"
    try:
        # Without pandas' reader and pyarrow's threads, which cost more than the reading of so small a file.
        table = pyarrow.parquet.ParquetFile(path).read(use_threads=False).to_pandas(use_threads=False)
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; {fix}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}); {fix}") from error
    return _sorted(table, path, columns, keys, fix)


def _sorted(table: pd.DataFrame, path: Path, columns: list[str], keys: int, fix: str) -> pd.DataFrame:
    if missing := sorted(set(columns) - set(table.columns)):
        raise RecordError(f"{path} lacks the columns {', '.join(missing)}; {fix}")
    by = columns[:keys]
    if not by or _in_order(table, by):
        return table
    return table.sort_values(by).reset_index(drop=True)


def _in_order(table: pd.DataFrame, by: list[str]) -> bool:
    """Whether the rows are sorted by these columns, as they are written; False also if the columns are not numbers."""
    values = [table[name].to_numpy() for name in reversed(by)]
    numbers = all(np.issubdtype(each.dtype, np.number) for each in values)
    return numbers and bool((np.diff(np.lexsort(values)) == 1).all()) and isinstance(table.index, pd.RangeIndex)
