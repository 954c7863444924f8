"""The content of experiments/<name>/study.yaml: question, protocol, cells, contrasts, claims under test. Typed.

Everything a file says is checked before anything runs: unknown keys, wrong types, contrasts of cells that are not
there, claims that nobody made.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hylo.claims import Claim, claim_problems, read_claims
from hylo.errors import ConfigError, problem
from hylo.schema import bound_problems, bounded

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
FILE = "study.yaml"


class Way(Enum):
    """What a contrast says of its component."""

    added = "the component added to a smaller method"
    cumulative = "one step of a series that adds one component after the other"
    leave_one_out = "the whole stack against the stack without the component"
    alone = "the component by itself against the untuned model"


@dataclass(kw_only=True, slots=True)
class ContrastConfig:
    """One cell against another of the same study."""

    cell: str = MISSING
    """The cell whose improvement is asked for."""
    reference: str = MISSING
    """The cell it is compared with, by seed and window."""
    component: str | None = None
    """What the two differ in: the contrast is then part of the attribution, and has a verdict. None: neither."""
    way: Way = Way.added
    """What the contrast says of its component."""


@dataclass(kw_only=True, slots=True)
class FactorialConfig:
    """All combinations of some components, as cells; their Shapley values share out the gain of the whole stack."""

    stack: list[str] = MISSING
    """Overrides of the cell with everything on."""
    without: dict[str, list[str]] = MISSING
    """Overrides that switch a factor off, by its name."""
    nothing: str = MISSING
    """Name of the cell with every factor off. The others are named by what is on, joined by +."""

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
        """The cell of a combination."""
        return "+".join(factor for factor in self.without if factor in on) or self.nothing


@dataclass(kw_only=True, slots=True)
class TuningConfig:
    """A setting chosen for each cell on the validation split, which no reported number touches."""

    key: str = MISSING
    """The key that is chosen, for example trainer.learning_rate."""
    values: list[float] = MISSING
    """What is tried."""
    cells: list[str] = MISSING
    """The cells that get the best value of their own; the others keep what their overrides say."""
    seed: int = bounded(100, ge=0)
    """Seed of the trials; not one of the study's, so that no reported run was chosen by its own luck."""


@dataclass(kw_only=True, slots=True)
class StudyConfig:
    """The content of a study.yaml."""

    question: str
    """What the study asks, in one sentence."""
    protocol: str
    """How it answers, in a few sentences: they stand under its tables."""
    cells: dict[str, list[str]] = field(default_factory=dict)
    """Overrides of each cell, by its name in tables; in the order of the rows."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of all cells."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of each cell that trains, unless the command line names others."""
    contrasts: list[ContrastConfig] = field(default_factory=list)
    """What is compared besides each cell with the untuned model. None: each cell with the one before it."""
    claims: list[str] = field(default_factory=list)
    """Published claims (ids of experiments/claims.csv) that this study tests."""
    factorial: FactorialConfig | None = None
    """Cells made of all combinations of components, after those of `cells`."""
    tuning: TuningConfig | None = None
    """A setting chosen before the study runs."""

    def all_cells(self) -> dict[str, list[str]]:
        """Overrides of each cell, those of the factorial last."""
        return self.cells | (self.factorial.cells() if self.factorial else {})

    def tested(self) -> list[Claim]:
        """The claims under test."""
        return [claim for claim in read_claims(EXPERIMENTS) if claim.id in self.claims]


def study_names() -> list[str]:
    """The studies there are."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob(f"*/{FILE}"))


def read_study_file(name: str) -> StudyConfig:
    """Read and check experiments/<name>/study.yaml.

    Raises:
        ConfigError: there is no such study; its file has unknown keys, wrong types or no cells; a contrast or a claim
            names a cell that is not there. The message says which.
    """
    path = EXPERIMENTS / name / FILE
    if name not in study_names():
        raise ConfigError(problem("study", name, f"one of {', '.join(study_names())}", "correct the name"))
    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), OmegaConf.load(path)))
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
    for place, contrast in enumerate(study.contrasts):
        yield from _unknown(f"contrasts[{place}]", {"cell": contrast.cell, "reference": contrast.reference}, cells)
        if contrast.cell == contrast.reference:
            yield f"contrasts[{place}]: {contrast.cell} is compared with itself"
    yield from claim_problems(study.claims, cells, EXPERIMENTS)
    if tuning := study.tuning:
        yield from _unknown("tuning.cells", {str(place): name for place, name in enumerate(tuning.cells)}, cells)
        if not tuning.values or not tuning.cells:
            yield "tuning: needs at least one value and one cell"
        for name in (name for name in tuning.cells if tuning.key in map(key_of, cells.get(name, []))):
            yield f"tuning: the cell {name} sets {tuning.key} itself; remove it there, or from tuning.cells"


def _unknown(key: str, named: Mapping[str, str], cells: Mapping[str, list[str]]) -> Iterator[str]:
    for part, name in named.items():
        if name not in cells:
            yield problem(f"{key}.{part}", name, f"a cell of the study: {', '.join(cells)}", "correct the name")


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.partition("=")[0].lstrip("+~")
