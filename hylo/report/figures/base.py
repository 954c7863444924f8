"""How a figure becomes part of every report: one file in this folder, with one function that is registered here.

    @study_figure("seed_spread", order=35)
    def seed_spread_figure(study: StudyRecord, summary: pd.DataFrame) -> Figure | None: ...

The function takes a study's records and its summary (`hylo.analysis.summary.summarize`), prepares what it draws, and
returns None where there is nothing to draw. Nothing else is edited: every file of the folder is found.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd
from matplotlib.figure import Figure

from hylo.runs.store import StudyRecord

Draw = Callable[[StudyRecord, pd.DataFrame], Figure | None]
F = TypeVar("F", bound=Draw)


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A figure that every report has, where there is something to draw."""

    name: str
    """Of its files, without .png and .svg."""
    order: int
    """Where it stands among the others: small ones first."""
    draw: Draw


_FIGURES: dict[str, StudyFigure] = {}


def study_figure(name: str, *, order: int) -> Callable[[F], F]:
    """Function decorator: draw this in every report, as `figures/<name>.png` and `.svg`.

    Raises:
        ValueError: another function has the name, or it is no name of a file: lower-case letters, digits and _.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"figure {name!r}: a name is lower-case letters, digits and _, for example 'learning_rates'")

    def store(draw: F) -> F:
        if name in _FIGURES and _place(_FIGURES[name].draw) != _place(draw):
            places = f"{_place(_FIGURES[name].draw)} and by {_place(draw)}"
            raise ValueError(f"figure {name!r} is registered twice, by {places}; rename one")
        _FIGURES[name] = StudyFigure(name=name, order=order, draw=draw)
        return draw

    return store


def registered() -> list[StudyFigure]:
    """All figures in the order of the report; of equal order, by name."""
    return sorted(_FIGURES.values(), key=lambda figure: (figure.order, figure.name))


def study_figures(study: StudyRecord, summary: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Name and figure of all that a study has something for."""
    for figure in registered():
        if (drawn := figure.draw(study, summary)) is not None:
            yield figure.name, drawn


def _place(draw: Draw) -> str:
    return f"{draw.__module__}.{getattr(draw, '__qualname__', repr(draw))}"
