"""Table columns: one description for the console, Markdown, HTML and LaTeX."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import pandas as pd

from hylo.analysis.summary import PASSED
from hylo.report.tables.numbers import MISSING, interval, number, written

Row = dict[Any, Any]
"""A row of a frame, keyed by column."""
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
"""Tone of a badge by its word. The word is always shown, since colour alone is not accessible."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. Create with `text`, `verdict`, `quantity` or `estimate`."""

    header: str
    about: str
    """What it measures and in which unit; the tooltip of the header."""
    key: str
    """The frame's column with the raw value; rows are sorted by it."""
    show: Callable[[Row], str]
    """Text of a row's cell."""
    numeric: bool
    unit: str = ""
    ends: tuple[str, str] | None = None
    """The frame's columns with the bounds of the interval."""
    tone: Callable[[str], str] | None = None
    """For a column of badges: the tone of a word, as in VERDICTS."""
    optional: bool = False
    """Whether tables of frames without it leave it out."""

    def sort_key(self, row: Row) -> str:
        """A number as JavaScript parses it, or the text itself; empty if missing, which sorts last."""
        value = row[self.key]
        if pd.isna(value):
            return ""
        if not self.numeric:
            return str(value)
        return str(int(value)) if isinstance(value, Integral) else written(value).replace("inf", "Infinity")

    def exact(self, row: Row) -> str:
        """The value as written to files, with its unit and interval; empty for text."""
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
    """A text column, left-aligned."""
    return Column(header=header, about=about, key=key, show=lambda row: _word(row[key]), numeric=False)


def passage(header: str, key: str, about: str) -> Column:
    """A column of several lines of text, shown in one, with ` / ` where a line ends."""

    def show(row: Row) -> str:
        return _word(" / ".join(line.strip() for line in str(row[key]).splitlines() if line.strip()))

    return Column(header=header, about=about, key=key, show=show, numeric=False)


def verdict(header: str, key: str, about: str, tone: Callable[[str], str] | None = None) -> Column:
    """A column of words shown as badges; by default `tone` follows VERDICTS, plain for other words."""
    return Column(
        header=header,
        about=about,
        key=key,
        show=lambda row: _word(row[key]).replace("_", " "),
        numeric=False,
        tone=tone or (lambda word: VERDICTS.get(word.partition(":")[0], "plain")),
    )


def quantity(
    header: str,
    key: str,
    about: str,
    *,
    decimals: int = 1,
    unit: str = "",
    scale: float = 1,
    optional: bool = False,
) -> Column:
    """A numeric column, right-aligned, shown divided by `scale`; `unit` is that of the raw value."""

    def show(row: Row) -> str:
        value = row[key]
        return number(value if pd.isna(value) else value / scale, decimals)

    return Column(header=header, about=about, key=key, show=show, numeric=True, unit=unit, optional=optional)


def estimate(
    header: str, key: str, low: str, high: str, about: str, *, unit: str = "", optional: bool = False
) -> Column:
    """A numeric column with intervals, for example `30.0 [28.1, 32.1]`."""
    return Column(
        header=header,
        about=about,
        key=key,
        show=lambda row: interval(row[key], row[low], row[high]),
        numeric=True,
        unit=unit,
        ends=(low, high),
        optional=optional,
    )


def _word(value: Any) -> str:
    return MISSING if pd.isna(value) or not str(value) else str(value)


def _full(value: Any) -> str:
    return f"{int(value):,}" if isinstance(value, Integral) else written(value)
