"""A table with what it means, as every form of a report shows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hylo.report.tables.columns import Column


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a frame, shown by columns."""

    title: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    """The first names the row."""
    brief: Sequence[Column] = ()
    """Those that have room on a console or on paper; none: all."""
    about: str = ""
    """A sentence or two that stand above the table."""
    notes: Sequence[str] = ()
    """Lines below the table, warnings among them (`hylo.report.tables.caption.warns`)."""
