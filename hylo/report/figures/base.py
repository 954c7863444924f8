"""Registering figures. A file in this folder with one decorated function becomes part of every report:

    @study_figure("seed_spread", order=35)
    def seed_spread_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None: ...

The function takes a study's records and its summary (`hylo.analysis.summary.summarize`), prepares what it draws, and
returns None if there is nothing to draw. No other file needs editing: every file in the folder is found.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pandas as pd
from matplotlib.figure import Figure

from hylo.core.registry import register, registered
from hylo.runs.record import StudyRecord

Draw = Callable[[StudyRecord, pd.DataFrame], Figure | None]
F = TypeVar("F", bound=Draw)


_ORDER: dict[str, int] = {}


def study_figure(name: str, *, order: int) -> Callable[[F], F]:
    """Function decorator: draw this in every report, as `figures/<name>.png` and `.svg`.

    Args:
        name: of the files: lower-case letters, digits and _, starting with a letter.
        order: position in the report, lowest first; ties are broken by name.

    Raises:
        ValueError: the name is taken or malformed.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"figure {name!r}: a name is lower-case letters, digits and _, for example 'learning_rates'")

    def store(draw: F) -> F:
        register("figure", name)(draw)
        _ORDER[name] = order
        return draw

    return store


MOST = 40
"""Cells in a figure: with more, names overlap and drawing takes minutes."""
_SIDES = ("cell", "reference")


def all_figures() -> dict[str, Draw]:
    """All figure functions by name, in report order."""
    return dict(sorted(registered("figure").items(), key=lambda item: (_ORDER[item[0]], item[0])))


def drawable(study: StudyRecord, summary: pd.DataFrame) -> tuple[StudyRecord, pd.DataFrame]:
    """The study and its summary with as many cells as a figure can show; the caption then says which.

    Those that the study names in contrasts and claims and their base models are kept first, then those with the largest
    improvement.
    """
    if len(study.cells) <= MOST:
        return study, summary
    named = [each[side] for kind in ("contrasts", "claims") for each in study.manifest.get(kind, []) for side in _SIDES]
    best = summary.sort_values("improvement_pct", ascending=False, na_position="last")["cell"]
    bases = [cell for cell in study.cells if study.is_base(cell)]
    kept = set([*dict.fromkeys([*bases, *named, *best])][:MOST])
    note = f"{len(kept)} of {len(study.cells)} cells are drawn: compared ones, then the best; the tables have all"
    cells = {cell: runs for cell, runs in study.cells.items() if cell in kept}
    sides = zip(summary["cell"], summary["reference"], strict=True)
    rows = [cell in kept and (not reference or reference in kept) for cell, reference in sides]
    return replace(study, cells=cells, manifest=study.manifest | {"drawn": note}), summary.loc[rows]


def study_figures(study: StudyRecord, summary: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of everything a study has data for."""
    study, summary = drawable(study, summary)
    for name, draw in all_figures().items():
        if (drawn := draw(study, summary)) is not None:
            yield name, drawn
