"""A table with its explanations, shared by all output formats of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hylo.report.tables.columns import Column


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a frame and the columns to show."""

    title: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    """The first names the row."""
    brief: Sequence[Column] = ()
    """Columns that fit on a console or on paper; all if empty."""
    about: str = ""
    """A sentence or two above the table."""
    notes: Sequence[str] = ()
    """Lines below the table, warnings among them (`hylo.report.tables.caption.warns`)."""

    def __post_init__(self) -> None:
        """Leave out optional columns that the frame does not have."""
        for name in ("columns", "brief"):
            shown = [each for each in getattr(self, name) if not each.optional or each.key in self.frame]
            object.__setattr__(self, name, shown)
