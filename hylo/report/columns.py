"""Columns of a table that is shown to a reader: one description for HTML and LaTeX, and those of the summary."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import pandas as pd

from hylo.report.summary import PASSED
from hylo.report.tables import MISSING, Row, interval, number

VERDICTS = {
    "reproduced": "good",
    "core": "good",
    PASSED: "good",
    "contradicted": "bad",
    "leaking": "bad",
    "inconclusive": "open",
    "undecided": "open",
    "unstable": "open",
    "optional": "plain",
    "drop": "plain",
}
"""The tone of a badge by its word. The word is always shown: colour alone says nothing to many readers."""


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
        return repr(float(value)).replace("inf", "Infinity") if not isinstance(value, Integral) else str(int(value))

    def exact(self, row: Row) -> str:
        """The value in full precision with its unit and interval; empty for text."""
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
    if isinstance(value, Integral):
        return f"{int(value):,}"
    return f"{float(value)!r}" if math.isfinite(value) else str(value)


SUMMARY_COLUMNS = [
    text("Cell", "cell", "What was trained. [!] behind a name: its audit failed. Column cell of summary.csv."),
    text("Reference", "reference", "The cell that this row is compared with. Column reference."),
    quantity("Seeds", "seeds", "Seeds that the cell and its reference both have. Column seeds.", decimals=0),
    estimate(
        "PPL [95 %]",
        "ppl",
        "ppl_low",
        "ppl_high",
        "Perplexity: exp of the mean negative log-likelihood (nats) of a token; of seeds, the geometric mean. "
        "Lower is better. Column ppl.",
    ),
    quantity("LIM-PPL", "lim_ppl", "Perplexity over the middle third of positions. Lower is better. Column lim_ppl."),
    quantity(
        "Mean window PPL",
        "mean_window_ppl",
        "Arithmetic mean of each window's own perplexity, as some papers publish it; no estimate of PPL. "
        "Column mean_window_ppl.",
    ),
    estimate(
        "Improvement (%) [95 %]",
        "improvement_pct",
        "improvement_low",
        "improvement_high",
        "100 (1 - PPL / PPL of the reference), paired by seed and window. Higher is better. Column improvement_pct.",
        unit="%",
    ),
    estimate(
        "LIM improvement (%) [95 %]",
        "lim_improvement_pct",
        "lim_improvement_low",
        "lim_improvement_high",
        "The same improvement over the middle third of positions. Higher is better. Column lim_improvement_pct.",
        unit="%",
    ),
    quantity(
        "Trainable parameters",
        "trainable_params",
        "Parameters that training changes. Column trainable_params.",
        decimals=0,
        unit="parameters",
    ),
    quantity(
        "Added parameters",
        "added_params",
        "Trainable parameters beyond the reference's. Column added_params.",
        decimals=0,
        unit="parameters",
    ),
    quantity(
        "Parameters per 1 %",
        "params_per_pct",
        "Added parameters divided by the improvement in percent, both against the same reference; no number where the "
        "interval of the improvement reaches 0. Column params_per_pct.",
        decimals=0,
        unit="parameters",
    ),
    quantity("Training (s)", "train_seconds", "Seconds of training, mean over seeds. Column train_seconds.", unit="s"),
    quantity(
        "Tokens/s",
        "tokens_per_second",
        "Tokens trained on in a second, mean over seeds. Column tokens_per_second.",
        decimals=0,
        unit="tokens/s",
    ),
    quantity(
        "Peak memory (MiB)",
        "peak_memory_bytes",
        "The most memory in use during training, the largest over seeds. Column peak_memory_bytes.",
        decimals=0,
        unit="bytes",
        scale=2**20,
    ),
    verdict(
        "Audit",
        "audit",
        "Checks before the first step: passed, or those that failed in any run of the cell. Column audit.",
        tone=lambda words: "good" if words == PASSED else "bad",
    ),
]
"""What summary.md shows, in the same order."""

UNTUNED_COLUMNS = [column for column in SUMMARY_COLUMNS if column.key not in ("reference", "added_params")]
"""Against the untuned model, which trains nothing: every reference is the same, and added parameters are trainable."""

_CONTRAST = ("cell", "reference", "seeds", "improvement_pct", "lim_improvement_pct", "added_params", "params_per_pct")
CONTRAST_COLUMNS = [column for column in SUMMARY_COLUMNS if column.key in (*_CONTRAST, "audit")]
"""What a contrast says beyond the table against the untuned model: all that has room on paper."""
