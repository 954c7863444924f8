"""Tables made of columns (hylo/report/columns.py) as markdown and for the console."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from hylo.report.columns import Column
from hylo.report.tables import NAME_WIDTH, Row, escape


def markdown_table(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """A GitHub table: words left, numbers right."""
    rows: list[Row] = frame.to_dict("records")
    lines = [[column.header for column in columns], ["---:" if column.numeric else "---" for column in columns]]
    lines += [[escape(column.show(row)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def console_table(title: str, frame: pd.DataFrame, columns: Sequence[Column], about: str) -> Table:
    """A table for the console with its explanation below it. Words are folded, numbers never."""
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    table.caption = Text(about, style="dim")
    for column in columns:
        header = column.header.replace(" ", "\n") if column.numeric else column.header
        if column.numeric:
            table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
        else:
            table.add_column(header, overflow="fold", min_width=NAME_WIDTH, vertical="bottom")
    for row in frame.to_dict("records"):
        table.add_row(*(Text(column.show(row)) for column in columns))
    return table


def markdown_section(title: str, about: str, frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """A heading, a paragraph and a table."""
    return f"## {title}\n\n{escape(about)}\n\n{markdown_table(frame, columns)}"
