"""A tuned cell: its search, the trials of it, and what each trial found."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hylo.core.names import file_name
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint
from hylo.runs.layout import COMPLETE, FAILED, RESULT
from hylo.runs.record import RunRecord
from hylo.runs.shared import Session
from hylo.runs.status import status_of
from hylo.runs.store import read_run
from hylo.studies.choices import Choice, no_sums, score
from hylo.studies.grid_search import Setting, best_setting, next_setting, start_settings
from hylo.studies.starts import moved_grids


@dataclass(eq=False)
class Arm:
    """A tuned cell and its search."""

    cell: str
    grids: dict[str, list[float]]
    """The grid of each key that its search begins with."""
    ranges: list[tuple[float, float]]
    """The lowest and highest allowed value of each key."""
    defaults: list[float]
    """The value of each key in the cell's files and overrides."""
    start: "Arm | None" = None
    """The arm at whose chosen values the search starts; None: at the initial grids."""
    shared: list[str] = field(default_factory=list)
    """The keys whose initial grid both have."""
    published: dict[Setting, list[float | None]] = field(default_factory=dict)
    """Published validation perplexities by seed that are valid here too: these trials are not run again."""
    published_sums: pd.DataFrame = field(default_factory=no_sums)
    """NLL sums of these trials."""
    trials: dict[Setting, list[Cell]] = field(default_factory=dict)
    """The settings tried, in order; without cells if they were published."""

    def overrides(self, setting: Setting) -> list[str]:
        """A setting as overrides."""
        return [f"{key}={value!r}" for key, value in zip(self.grids, setting, strict=True)]

    def tried(self, session: Session) -> dict[Setting, list[float | None]]:
        """Validation perplexity of each setting by seed."""
        return {
            setting: [_perplexity(cell, session) for cell in cells] if cells else self.published[setting]
            for setting, cells in self.trials.items()
        }

    def scores(self, session: Session) -> dict[Setting, float]:
        """The score of each setting, lower is better."""
        return {setting: score(found) for setting, found in self.tried(session).items()}

    def start_at(self, other: "Arm") -> None:
        """Start the search at the values chosen for another arm, for the keys whose initial grid both have."""
        self.start = other
        self.shared = [key for key, grid in self.grids.items() if other.grids.get(key) == grid]

    def begin(self, session: Session) -> None:
        """Move the grids to the values chosen for the arm that the search starts at."""
        if self.start is not None:
            chosen = dict(zip(self.start.grids, best_setting(self.start.scores(session)), strict=True))
            self.grids = moved_grids(self.grids, {key: chosen[key] for key in self.shared}, self.ranges)

    def begun_elsewhere(self) -> str:
        """That published trials serve nothing, since they began at other values; empty if they serve or are none."""
        if self.start is None or not self.published or {*start_settings([*self.grids.values()])} & {*self.published}:
            return ""
        return (
            f"{self.cell} is searched again: the {len(self.published)} settings published for it are around other "
            f"values than those chosen for {self.start.cell}"
        )

    def wanted(self, trials: int, session: Session) -> list[Setting]:
        """The settings to run next, once all published ones are reused; none if the arm has used up its trials."""
        settings = start_settings([*self.grids.values()]) if not self.trials else self._next(trials, session)
        while settings:
            self.trials |= {setting: [] for setting in settings if setting in self.published}
            if open_ := [setting for setting in settings if setting not in self.published]:
                return open_
            settings = self._next(trials, session)
        return []

    def _next(self, trials: int, session: Session) -> list[Setting]:
        if len(self.trials) >= trials:
            return []
        following = next_setting(self.scores(session), [*self.grids.values()], self.ranges)
        return [] if following is None else [following]

    def trial(self, cell: Cell, setting: Setting) -> Cell:
        """A cell of this setting, with its name."""
        values = ",".join(f"{key}={value:g}" for key, value in zip(self.grids, setting, strict=True))
        return dataclasses.replace(cell, name=file_name(f"{cell.name},{values}"))

    def choice(self, seeds: list[int], condition: str, session: Session) -> Choice:
        """What was tried so far, and the best of it."""
        recorded = sum(not cells for cells in self.trials.values())
        start = self.start.cell if self.start else ""
        return Choice(self.cell, [*self.grids], self.tried(session), seeds, self.defaults, condition, recorded, start)

    def sums(self, session: Session) -> pd.DataFrame:
        """NLL sums of the trials: cell, setting (its index among those tried), seed, window, nll_sum, tokens."""
        return pd.concat([no_sums(), *self._tables(session)])

    def _tables(self, session: Session) -> Iterator[pd.DataFrame]:
        published: Any = self.published_sums
        places = {setting: place for place, setting in enumerate(self.published)}
        for place, (setting, cells) in enumerate(self.trials.items()):
            if not cells:
                yield published[published["setting"] == places[setting]].assign(cell=self.cell, setting=place)
            for cell in cells:
                record = _record(cell, session)
                if record is not None and record.complete:
                    table: Any = record.eval.groupby("window", as_index=False)[["nll_sum", "tokens"]].sum()
                    yield table.assign(cell=self.cell, setting=place, seed=cell.config.seed)


def lost(cell: Cell, session: Session) -> str:
    """Why a trial is neither complete nor diverged; empty if it is one of the two."""
    status = status_of(cell.folder(fingerprint(cell.config, session)))
    if status.state == COMPLETE or diverged(cell, session):
        return ""
    return f"{cell.name} (seed {cell.config.seed}): {status.state}{f', {status.note}' * bool(status.note)}"


def diverged(cell: Cell, session: Session) -> bool:
    """Whether a trial ran and diverged: it counts as tried, and would only diverge again."""
    record = _record(cell, session)
    return record is not None and record.result["status"] == FAILED and "TrainingDiverged" in record.result["error"]


def _record(cell: Cell, session: Session) -> RunRecord | None:
    """The record of a trial, complete or failed; None if it has not run."""
    folder = cell.folder(fingerprint(cell.config, session))
    return read_run(folder) if (folder / RESULT).exists() else None


def _perplexity(cell: Cell, session: Session) -> float | None:
    record = _record(cell, session)
    return record.result["metrics"]["ppl"] if record is not None and record.complete else None
