"""Registering figures. A file in this folder with one decorated function becomes part of every report:

    @study_figure("seed_spread", order=35)
    def seed_spread_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None: ...

The function takes a study's records and its summary (`hylo.analysis.summary.summarize`), prepares what it draws, and
returns None if there is nothing to draw. No other file needs editing: every file in the folder is found.
"""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import pandas as pd
from matplotlib.figure import Figure

from hylo.core.registry import register, registered
from hylo.runs.store import StudyRecord

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


def all_figures() -> dict[str, Draw]:
    """All figure functions by name, in report order."""
    return dict(sorted(registered("figure").items(), key=lambda item: (_ORDER[item[0]], item[0])))


def study_figures(study: StudyRecord, summary: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of everything a study has data for."""
    for name, draw in all_figures().items():
        if (drawn := draw(study, summary)) is not None:
            yield name, drawn
