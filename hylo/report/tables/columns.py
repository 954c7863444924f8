"""Columns of a table that is shown to a reader: one description for the console, markdown, HTML and LaTeX."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import pandas as pd

from hylo.analysis.summary import PASSED
from hylo.report.tables.numbers import MISSING, interval, number, written

Row = dict[Any, Any]
"""A row of a frame, by its columns."""
VERDICTS = {
    "reproduced": "good",
    "core": "good",
    PASSED: "good",
    "contradicted": "bad",
    "contradicted at the published rate only": "open",
    "undertrained": "open",
    "untuned": "open",
    "leaking": "bad",
    "inconclusive": "open",
    "undecided": "open",
    "unstable": "open",
    "optional": "plain",
    "drop": "plain",
}
"""The tone of a badge by its word as shown, which it always is: colour alone says nothing to many readers."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. Made by `text`, `verdict`, `quantity` and `estimate`."""

    header: str
    about: str
    """What it measures and in which unit: what a reader sees by pointing at the header."""
    key: str
    """The frame's column with the raw value, by which rows are sorted."""
    show: Callable[[Row], str]
    """The text of a row's cell."""
    numeric: bool
    unit: str = ""
    ends: tuple[str, str] | None = None
    """The frame's columns with the ends of the interval."""
    tone: Callable[[str], str] | None = None
    """For a column of badges: the tone for a word, one of those of VERDICTS."""

    def sort_key(self, row: Row) -> str:
        """A number as JavaScript reads it, or the text itself; empty where it is missing, which comes last."""
        value = row[self.key]
        if pd.isna(value):
            return ""
        if not self.numeric:
            return str(value)
        return str(int(value)) if isinstance(value, Integral) else written(value).replace("inf", "Infinity")

    def exact(self, row: Row) -> str:
        """The value as files hold it, with its unit and interval; empty for text."""
        if not self.numeric:
            return ""
        if pd.isna(row[self.key]):
            return "no value"
        said = f"{_full(row[self.key])} {self.unit}".strip()
        ends = [row[end] for end in self.ends or ()]
        if not ends or any(pd.isna(end) for end in ends):
            return said
        return f"{said}, interval from {_full(ends[0])} to {_full(ends[1])}"


def text(header: str, key: str, about: str) -> Column:
    """A column of words, left-aligned."""
    return Column(header=header, about=about, key=key, show=lambda row: _word(row[key]), numeric=False)


def verdict(header: str, key: str, about: str, tone: Callable[[str], str] | None = None) -> Column:
    """A column of words shown as badges; `tone` of a word is that of VERDICTS, and plain for others."""
    return Column(
        header=header,
        about=about,
        key=key,
        show=lambda row: _word(row[key]).replace("_", " "),
        numeric=False,
        tone=tone or (lambda word: VERDICTS.get(word.partition(":")[0], "plain")),
    )


def quantity(header: str, key: str, about: str, *, decimals: int = 1, unit: str = "", scale: float = 1) -> Column:
    """A column of numbers, right-aligned, shown divided by `scale`; unit is that of the raw value."""

    def show(row: Row) -> str:
        value = row[key]
        return number(value if pd.isna(value) else value / scale, decimals)

    return Column(header=header, about=about, key=key, show=show, numeric=True, unit=unit)


def estimate(header: str, key: str, low: str, high: str, about: str, *, unit: str = "") -> Column:
    """A column of numbers with their intervals, for example `30.0 [28.1, 32.1]`."""
    return Column(
        header=header,
        about=about,
        key=key,
        show=lambda row: interval(row[key], row[low], row[high]),
        numeric=True,
        unit=unit,
        ends=(low, high),
    )


def _word(value: Any) -> str:
    return MISSING if pd.isna(value) or not str(value) else str(value)


def _full(value: Any) -> str:
    return f"{int(value):,}" if isinstance(value, Integral) else written(value)
