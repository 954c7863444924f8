"""The content of experiments/<name>/study.yaml: question, protocol, cells, contrasts, claims under test. Typed.

Everything in a file is checked before anything runs: unknown keys, wrong types, contrasts of missing cells, unknown
claims.
"""

import difflib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hylo.analysis.claims import Claim, claim_problems, read_claims
from hylo.core.errors import ConfigError, problem
from hylo.core.interpolations import resolver_problems
from hylo.core.names import name_problems
from hylo.core.schema import bound_problems, bounded

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILE = "study.yaml"
ALL = "all"
"""A value of `tuning.cells`."""


class Comparison(Enum):
    """What a contrast says about its component."""

    added = "the component added to a smaller method"
    cumulative = "one step of a series that adds one component after the other"
    leave_one_out = "the whole stack against the stack without the component"
    alone = "the component by itself against the base model"


@dataclass(kw_only=True, slots=True)
class ContrastConfig:
    """One cell against another of the same study."""

    cell: str = MISSING
    """The cell whose improvement is measured."""
    reference: str = MISSING
    """The cell it is compared with, by seed and window."""
    component: str | None = None
    """What the two differ in: the contrast is then part of the attribution and has a verdict. None: neither."""
    comparison: Comparison = Comparison.added
    """What the contrast says about its component."""


@dataclass(kw_only=True, slots=True)
class FactorialConfig:
    """All combinations of some components, as cells; their Shapley values divide up the gain of the whole stack."""

    stack: list[str] = MISSING
    """Overrides of the cell with everything on."""
    without: dict[str, list[str]] = MISSING
    """Overrides that switch a factor off, by factor name."""
    nothing: str = MISSING
    """Name of the cell with every factor off. The others are named by the factors that are on, joined by +."""

    def cells(self) -> dict[str, list[str]]:
        """Overrides of every combination by name, from nothing to the whole stack."""
        return {self.name(on): [*self.stack, *self._switched_off(on)] for on in self.combinations()}

    def combinations(self) -> Iterator[frozenset[str]]:
        """The factors that are on, for every combination."""
        for count in range(len(self.without) + 1):
            yield from map(frozenset, itertools.combinations(self.without, count))

    def _switched_off(self, on: frozenset[str]) -> Iterator[str]:
        return itertools.chain(*(overrides for factor, overrides in self.without.items() if factor not in on))

    def name(self, on: frozenset[str]) -> str:
        """The cell name of a combination."""
        return "+".join(factor for factor in self.without if factor in on) or self.nothing


class Start(Enum):
    """Where the search of a cell starts."""

    grid = "at the initial grid"
    compared = "at the values chosen for the cell it is compared with"


@dataclass(kw_only=True, slots=True)
class TuningConfig:
    """Settings chosen for each cell on the validation split, which no reported number uses."""

    cells: Any = ALL
    """The cells that get settings of their own: `all` that train, or a list of names."""
    fixed: list[str] = field(default_factory=list)
    """Cells, of `all`, that keep the settings of their overrides and files: the published rate, for example."""
    keys: dict[str, list[Any]] = field(default_factory=dict)
    """Keys that are tuned for every tuned cell, each with its initial grid: two or more values, evenly spaced in the
    logarithm. The first key is searched first."""
    own: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Further keys of single cells, by cell: the learning-rate multiplier of a component, for example."""
    trials: int = bounded(6, ge=2)
    """Number of settings tried for each cell, each with every seed; the same for all."""
    start: Start = Start.grid
    """Where the search of a cell starts. `compared`: a cell that differs from an earlier one by a component, in a
    contrast, is searched after it, and the grids that both have begin at the values chosen for that one."""
    seeds: list[int] = field(default_factory=lambda: [100, 101])
    """Seeds of the trials; none of the study's, so that no reported run was selected for its own luck."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of the trials alone: no probe, for example."""
    bfloat16: bool = False
    """Whether the trials compute in bfloat16 where the device is faster in it (`has_bfloat16`)."""

    def grids(self, cell: str) -> dict[str, list[float]]:
        """The initial grid of each key of a cell."""
        return {key: [*map(float, values)] for key, values in (self.keys | self.own.get(cell, {})).items()}


@dataclass(kw_only=True, slots=True)
class StudyConfig:
    """The content of a study.yaml."""

    question: str
    """What the study asks, in one sentence."""
    protocol: str
    """How it answers, in a few sentences, which are printed under its tables."""
    cells: dict[str, list[str]] = field(default_factory=dict)
    """Overrides of each cell, by its name in tables, in row order."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of all cells."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of each cell that trains, unless the command line names others."""
    contrasts: list[ContrastConfig] = field(default_factory=list)
    """Comparisons besides each cell against the base model. None: each cell against the one before it."""
    claims: list[str] = field(default_factory=list)
    """Published claims (ids of experiments/claims.csv) that this study tests."""
    factorial: FactorialConfig | None = None
    """Cells for all combinations of components, after those of `cells`."""
    tuning: TuningConfig | None = None
    """Settings tuned before the study runs."""

    def all_cells(self) -> dict[str, list[str]]:
        """Overrides of each cell, those of the factorial last."""
        return self.cells | (self.factorial.cells() if self.factorial else {})

    def tested(self) -> list[Claim]:
        """The claims under test."""
        return [claim for claim in read_claims(EXPERIMENTS) if claim.id in self.claims]


def study_names() -> list[str]:
    """Names of the available studies."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob(f"*/{FILE}"))


def read_study_file(name: str) -> StudyConfig:
    """Read and check experiments/<name>/study.yaml.

    Raises:
        ConfigError: there is no such study; its file has unknown keys, wrong types or no cells; or a contrast or claim
            names a missing cell. The message says which.
    """
    path = EXPERIMENTS / name / FILE
    if name not in study_names():
        close = difflib.get_close_matches(name, study_names(), 1)
        fix = f"study={close[0]}" if close else "one of these"
        raise ConfigError(problem("study", name, f"one of {', '.join(study_names())}", fix))
    try:
        written = OmegaConf.load(path)
        if OmegaConf.select(written, "tuning.key") is not None:
            raise ConfigError(f"{path}: tuning.key, values and seed are now tuning.keys: {{key: [values]}} and seeds")
        if calls := [*resolver_problems(written)]:
            raise ConfigError(*(f"{path}: {text}" for text in calls))
        if any("way" in contrast for contrast in OmegaConf.select(written, "contrasts") or []):
            raise ConfigError(f"{path}: a contrast's `way` is now its `comparison`")
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), written))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(study, StudyConfig)
    if problems := [*_problems(study)]:
        raise ConfigError(*(f"{path}: {text}" for text in problems))
    return study


def _problems(study: StudyConfig) -> Iterator[str]:
    cells = study.all_cells()
    if not cells or not study.seeds:
        yield "a study needs at least one cell and one seed"
    if study.factorial and (both := study.cells.keys() & study.factorial.cells().keys()):
        yield f"the cells {', '.join(sorted(both))} are in `cells` and in `factorial`; name them once"
    yield from bound_problems(study)
    for name in cells:
        yield from name_problems("cells", name)
    for place, contrast in enumerate(study.contrasts):
        yield from _unknown(f"contrasts[{place}]", {"cell": contrast.cell, "reference": contrast.reference}, cells)
        if contrast.cell == contrast.reference:
            yield f"contrasts[{place}]: {contrast.cell} is compared with itself"
    yield from claim_problems(study.claims, cells, EXPERIMENTS)
    if study.tuning:
        yield from _tuning_problems(study.tuning, cells)


def _tuning_problems(tuning: TuningConfig, cells: Mapping[str, list[str]]) -> Iterator[str]:
    """Problems with a study's tuning that its file alone shows; the keys are checked when cells are composed."""
    named = [] if tuning.cells == ALL else tuning.cells
    if not isinstance(named, list) or (tuning.cells != ALL and not named):
        yield problem("tuning.cells", tuning.cells, f"{ALL}, or a list of cells", f"tuning.cells={ALL}")
        return
    for part, names in (("cells", named), ("fixed", tuning.fixed), ("own", tuning.own)):
        yield from _unknown(f"tuning.{part}", {str(place): name for place, name in enumerate(names)}, cells)
    if not tuning.keys:
        yield problem("tuning.keys", {}, "at least one key with its grid", "keys: {trainer.learning_rate: [...]}")
    if len(set(tuning.seeds)) < 2:
        yield problem("tuning.seeds", tuning.seeds, "two seeds or more", "tuning.seeds: [100, 101]")
    for name, grids in {"": tuning.keys, **tuning.own}.items():
        where = f"tuning.own.{name}" if name else "tuning.keys"
        for key, values in grids.items():
            if len(set(values)) < 2 or not all(map(_positive, values)):
                allowed = "two different numbers or more, all above 0: the start of a logarithmic grid"
                yield problem(f"{where}.{key}", values, allowed, "two values or more, a factor of two or so apart")
    start = len(next(iter(tuning.keys.values()), []))
    if tuning.trials < start:
        allowed = f"at least {start}, the start of the first grid"
        yield problem("tuning.trials", tuning.trials, allowed, f"trials: {start + 2}, or a shorter grid")
    for name in tuned_cells(tuning, cells):
        for key in tuning.grids(name).keys() & set(map(key_of, cells.get(name, []))):
            yield f"tuning: the cell {name} sets {key} itself; remove it there, or name the cell in tuning.fixed"


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def tuned_cells(tuning: TuningConfig, cells: Collection[str]) -> list[str]:
    """The cells that get settings of their own, in the order of the study."""
    named = cells if tuning.cells == ALL else tuning.cells
    return [name for name in cells if name in named and name not in tuning.fixed]


def _unknown(key: str, named: Mapping[str, str], cells: Mapping[str, list[str]]) -> Iterator[str]:
    for part, name in named.items():
        if name not in cells:
            yield problem(f"{key}.{part}", name, f"a cell of the study: {', '.join(cells)}", "correct the name")


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.partition("=")[0].lstrip("+~")
