"""Tables (hylo/report/tables/table.py) as Markdown and on the console."""

import re
import textwrap
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as ConsoleTable
from rich.text import Text

from hylo.report.tables.caption import warns
from hylo.report.tables.table import Table

CONSOLE_WIDTH = 120
NAME_WIDTH = 12
"""Names are never folded narrower than this."""


def markdown_section(table: Table) -> str:
    """A heading, the text above the table, the table (text left, numbers right), and its notes as a list."""
    lines = [[column.header for column in table.columns]]
    lines.append(["---:" if column.numeric else "---" for column in table.columns])
    lines += [[escape(column.show(row)) for column in table.columns] for row in table.frame.to_dict("records")]
    notes = [f"- **{escape(line)}**" if warns(line) else f"- {escape(line)}" for line in table.notes]
    blocks = [f"## {table.title}", escape(table.about), "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(block for block in (*blocks, "\n".join(notes)) if block)


def print_tables(name: str, tables: Sequence[Table], console: Console) -> None:
    """Print a study's tables at the terminal's width, at least 120 columns.

    Text is folded, numbers never. Output to anything but a terminal is neither folded nor cut.
    """
    own_width = console.width
    try:
        for table in tables:
            drawn = _drawn(f"{name}: {table.title}", table)
            size = Measurement.get(console, console.options.update(max_width=10_000), drawn)
            natural = own_width if console.is_terminal else size.maximum
            console.width = max(natural, size.maximum - _foldable(drawn), CONSOLE_WIDTH)
            console.print(drawn, Text())
    finally:
        console.width = own_width


def escape(text: str) -> str:
    """Escape text for Markdown."""
    return re.sub(r"([\\|*<`])", r"\\\1", text)


def _drawn(title: str, table: Table) -> ConsoleTable:
    drawn = ConsoleTable(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    lines = [table.about] * bool(table.about) + list(table.notes)
    drawn.caption = Text("\n").join(Text(line, style="bold red" if warns(line) else "dim") for line in lines)
    columns = table.brief or table.columns
    shown = [[column.show(row) for column in columns] for row in table.frame.to_dict("records")]
    for place, column in enumerate(columns):
        if column.numeric:
            header = _narrow(column.header, max((len(row[place]) for row in shown), default=0))
            drawn.add_column(header, justify="right", no_wrap=True, vertical="bottom")
        else:
            drawn.add_column(column.header, overflow="fold", min_width=NAME_WIDTH, vertical="bottom")
    for row in shown:
        drawn.add_row(*map(Text, row))
    return drawn


def _narrow(header: str, width: int) -> str:
    """Wrap a header that is wider than its column; units and numbers stay whole."""
    kept = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", header)
    words = max(map(len, re.split(r" |(?<=-)", kept)))
    return textwrap.fill(kept, max(width, words)).replace("\N{NO-BREAK SPACE}", " ")


def _foldable(table: ConsoleTable) -> int:
    """Console columns that folding names can save; in a narrower table rich would cut numbers."""
    names = [column for column in table.columns if column.overflow == "fold"]
    return sum(max(0, max(len(str(cell)) for cell in column.cells) - NAME_WIDTH) for column in names)
