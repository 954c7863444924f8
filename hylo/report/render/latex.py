r"""Tables for a paper: LaTeX source for the booktabs package (`\usepackage{booktabs}`)."""

import re
from collections.abc import Sequence

import pandas as pd

from hylo.report.tables.columns import Column, Row
from hylo.report.tables.numbers import MISSING

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    MISSING: "--",
    "\n": " ",
    "\0": "{}",
    **{character: f"\\{character}" for character in "_%&#${}"},
}


def booktabs(frame: pd.DataFrame, columns: Sequence[Column], caption: str, label: str) -> str:
    """A floating table that spans both columns of a page: text left, numbers right, an en dash for missing values.

    Args:
        frame: one table row per row.
        columns: as in the HTML page; an interval is typeset as `30.0\\,[28.1, 32.1]`.
        caption: plain text, escaped here.
        label: target for `\\ref`, without the `tab:` prefix that is added.
    """
    rows: list[Row] = frame.to_dict("records")
    name = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()
    alignment = "".join("r" if column.numeric else "l" for column in columns)
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{name}}}",
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
        _line([_header(column) for column in columns]),
        r"\midrule",
        *(_line([_cell(row, column) for column in columns]) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Escape plain text for LaTeX, on one line."""
    # Two hyphens in a name would become a dash.
    return "".join(_SPECIAL.get(character, character) for character in re.sub("-(?=-)", "-\0", text))


def _line(cells: Sequence[str]) -> str:
    # A bracket or star at the start of a row would be parsed as an option of the preceding row break.
    return "{}" * cells[0].startswith(("[", "*")) + " & ".join(cells) + r" \\"


def _header(column: Column) -> str:
    """One word per line, or columns would be as wide as their names; a unit or number stays with its word."""
    lines = [escape(line) for line in re.split(r" (?![%(\d])", column.header)]
    side = "r" if column.numeric else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{' '.join(_line([line]) for line in lines)}\end{{tabular}}"


def _cell(row: Row, column: Column) -> str:
    text = escape(column.show(row))
    if not column.numeric or text == escape(MISSING):
        return text
    return re.sub(r"-(?=\d)", "$-$", text).replace(" [", r"\,[")
