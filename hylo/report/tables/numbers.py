"""Numbers and intervals, formatted for readers and for files."""

import math
from typing import Any

import pandas as pd

MISSING = "\N{EN DASH}"
DIGITS = 10
"""Significant digits of a number in a file. A double has sixteen, but the last ones depend on the processor: vector
units round exp and the like differently, so the same records would give different files on different machines."""


def written(value: Any) -> str:
    """A number as written to files: rounded to `DIGITS` significant digits, without trailing zeros."""
    return repr(float(f"{float(value):.{DIGITS}g}"))


def number(value: Any, decimals: int = 1) -> str:
    """Format with thousands separators; an en dash if missing."""
    if pd.isna(value):
        return MISSING
    return f"{round(float(value), decimals) + 0.0:,.{decimals}f}"  # + 0.0 turns -0.0 into 0.0


def interval(value: Any, low: Any, high: Any) -> str:
    """For example `30.0 [28.1, 32.1]`, with two digits of a narrow half-width; without bounds, the value alone."""
    if pd.isna(low) or pd.isna(high):
        return number(value)
    half = abs(high - low) / 2  # the ends of a bootstrap of equal numbers may differ in the last digit, either way
    decimals = 1 if half == 0 else min(4, max(0 if half >= 100 else 1, 1 - math.floor(math.log10(half))))
    return f"{number(value, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"
