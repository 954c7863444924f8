"""Part of a study: some of its cells, run and reported before the others."""

import dataclasses
from collections.abc import Collection, Sequence

from hylo.core.errors import ConfigError, problem
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint
from hylo.runs.shared import Session
from hylo.studies.spec import ALL, StudyConfig, TuningConfig, tuned_cells


def part_names(cells: Sequence[Cell], wanted: Collection[str], session: Session) -> list[str]:
    """The wanted cells of a study, in its order, and the cells of the base model that they are compared with.

    Args:
        cells: all cells of the study.
        wanted: names of the cells to run.
        session: gives the cells' fingerprints, by which a cell finds its base model's.

    Raises:
        ConfigError: the study has no cell of that name.
    """
    names = [*dict.fromkeys(cell.name for cell in cells)]
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(problem("cells", unknown, f"cells of the study: {', '.join(names)}", "correct the names"))
    compared = {fingerprint(cell.base_cell().config, session) for cell in cells if cell.name in wanted}
    base = {cell.name for cell in cells if not cell.config.components and fingerprint(cell.config, session) in compared}
    return [name for name in names if name in base.union(wanted)]


def part_of(study: StudyConfig, names: Collection[str]) -> StudyConfig:
    """A study as if it had only these of its cells: with the contrasts and claims between them, and their tuning. A
    factorial divides up the gain of all combinations, so it needs all of them."""
    cells = {name: overrides for name, overrides in study.all_cells().items() if name in names}
    whole = study.factorial is not None and study.factorial.cells().keys() <= cells.keys()
    return dataclasses.replace(
        study,
        cells={name: overrides for name, overrides in cells.items() if name in study.cells or not whole},
        contrasts=[each for each in study.contrasts if {each.cell, each.reference} <= cells.keys()],
        claims=[claim.id for claim in study.tested() if {claim.cell, claim.reference} <= {*cells, ""}],
        factorial=study.factorial if whole else None,
        tuning=study.tuning and _tuning_of(study.tuning, cells),
    )


def _tuning_of(tuning: TuningConfig, cells: Collection[str]) -> TuningConfig | None:
    if not tuned_cells(tuning, cells):
        return None
    return dataclasses.replace(
        tuning,
        cells=ALL if tuning.cells == ALL else tuned_cells(tuning, cells),
        fixed=[name for name in tuning.fixed if name in cells],
        own={name: keys for name, keys in tuning.own.items() if name in cells},
    )
