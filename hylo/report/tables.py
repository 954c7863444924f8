"""The summary as text: two tables on the console, and the same as GitHub markdown."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hylo.records import RunRecord, StudyRecord
from hylo.report.pairs import complete_runs, value_of
from hylo.report.summary import PASSED, named_contrasts

MISSING = "\N{EN DASH}"
RANDOM_WEIGHTS = "RANDOM WEIGHTS: these numbers say nothing about methods"
ONE_SEED = "95 % intervals cover evaluation noise only (one seed: new windows, not new training runs)"
AUDIT_FAILED = "AUDIT FAILED: "
PROTOCOL = "protocol: "
MARK = " [!]"
"""Behind the name of a cell whose audit failed."""
SEVERAL_SEEDS = "95 % intervals cover new seeds and new windows; where seeds is 1, evaluation noise only"

_CONSOLE_WIDTH = 120
NAME_WIDTH = 12  # a name is folded no further, whatever the console
_MEAN_WINDOW = "mean_\nwindow\n_ppl"
_LIM = "lim_improvement_pct\n[low, high]"
_UNTUNED, _PREVIOUS, _NAMED = "Against the untuned model", "Against the previous row", "Contrasts"

# What one column of a table shows, by its header. A header's line breaks are for the console.
Row = dict[Any, Any]
Column = Callable[[Row], str]


def split_by_reference(summary: pd.DataFrame, study: StudyRecord) -> dict[str, pd.DataFrame]:
    """The rows against the untuned model (and its own), and those against other cells, by the table's title."""
    against_untuned = summary["reference"].map(lambda cell: not cell or study.is_untuned(cell)).astype(bool)
    title = _NAMED if named_contrasts(study) else _PREVIOUS
    return {_UNTUNED: summary.loc[against_untuned], title: summary.loc[~against_untuned]}


def shown_parts(summary: pd.DataFrame, study: StudyRecord) -> dict[str, pd.DataFrame]:
    """The parts that are shown as they are: contrasts that a study names have a table of their own (`decisions`)."""
    return {title: part for title, part in split_by_reference(summary, study).items() if title != _NAMED}


def number(value: Any, decimals: int = 1) -> str:
    """With thousands separators; an en dash where there is no number."""
    if pd.isna(value):
        return MISSING
    return f"{round(float(value), decimals) + 0.0:,.{decimals}f}"  # + 0.0 turns -0.0 into 0.0


def interval(value: Any, low: Any, high: Any) -> str:
    """For example `30.0 [28.1, 32.1]`, with more decimals where it is narrow; without ends, the value alone."""
    if pd.isna(low) or pd.isna(high):
        return number(value)
    half = (high - low) / 2
    decimals = 1 if half == 0 else min(4, max(0 if half >= 100 else 1, math.ceil(-math.log10(half))))
    return f"{number(value, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def caption(study: StudyRecord, summary: pd.DataFrame) -> list[str]:
    """The lines under every table: what was measured on, seeds, what the intervals mean, and warnings."""
    runs = [run for cell in study.cells for run in complete_runs(study, cell)]
    seeds = {len(complete_runs(study, cell)) for cell in study.cells if not study.is_untuned(cell)} - {0}
    lines = []
    if any(value_of(run, "model", "pretrained") is False for run in runs):
        lines.append(RANDOM_WEIGHTS)
    if runs:
        tokens = number(value_of(runs[0], "metrics", "eval_tokens"), 0)
        lines.append(
            f"{len(runs[0].windows):,} evaluation windows, {tokens} predicted tokens; seeds a cell: {_span(seeds)}"
        )
        lines += _lines_protocol(runs)
        lines.append(ONE_SEED if max(summary["seeds"], default=1) <= 1 else SEVERAL_SEEDS)
    lines += audit_failures(summary)
    if study.manifest.get("protocol"):
        lines.append(f"{PROTOCOL}{study.manifest['protocol']}")
    return lines


def _lines_protocol(runs: list[RunRecord]) -> list[str]:
    """What runs say of themselves that were made line by line; nothing of others."""
    if not _by_lines(runs):
        return []
    text = "published protocol: one line a sample, padded; mean_window_ppl is the published measure, no estimate of ppl"
    trained = [run.result["data"] for run in runs if run.result["training"]["steps"]]
    for key, what in (("loss_on_padding", "loss on padding"), ("keep_blank_lines", "blank lines trained on")):
        if said := {data[key] for data in trained}:
            text += f"; {what}: {'in some cells' if len(said) > 1 else 'yes' if True in said else 'no'}"
    return [text]


def _by_lines(runs: list[RunRecord]) -> bool:
    """Whether a sample of these runs is a line of text. Records from before there was a choice do not say."""
    return any(run.result["data"].get("protocol") == "lines" for run in runs)


def audit_failures(summary: pd.DataFrame) -> list[str]:
    """One line a cell whose audit failed."""
    found = {row["cell"]: row["audit"] for row in summary.to_dict("records") if row["audit"] != PASSED}
    return [f"{AUDIT_FAILED}{cell}{MARK}: {checks.replace('_', ' ')}" for cell, checks in found.items()]


def marked_rows(part: pd.DataFrame, summary: pd.DataFrame) -> list[Row]:
    """The rows of a table, with the cells marked whose audit failed."""
    failed = set(summary.loc[summary["audit"] != PASSED, "cell"])
    return [
        row | {key: f"{row[key]}{MARK}" for key in ("cell", "reference") if row.get(key) in failed}
        for row in part.to_dict("records")
    ]


def console_tables(study: StudyRecord, summary: pd.DataFrame) -> list[Table]:
    """Both tables for a console of 120 columns; a table without rows is left out."""
    lines = caption(study, summary)
    columns = {_UNTUNED: _CONSOLE_UNTUNED, _PREVIOUS: _CONSOLE_CONTRASTS}
    if not _by_lines([run for cell in study.cells for run in complete_runs(study, cell)]):
        columns[_UNTUNED] = {header: show for header, show in _CONSOLE_UNTUNED.items() if header != _MEAN_WINDOW}
    parts = shown_parts(summary, study).items()
    return [
        _console_table(f"{study.name}: {title}", marked_rows(part, summary), columns[title], lines)
        for title, part in parts
        if len(part)
    ]


def print_tables(tables: list[Table], console: Console | None = None) -> None:
    """Print at the terminal's width, at least 120 columns. What is not a terminal is never folded or cut."""
    console = console or Console()
    own_width = console.width
    try:
        for table in tables:
            size = Measurement.get(console, console.options.update(max_width=10_000), table)
            natural = own_width if console.is_terminal else size.maximum
            console.width = max(natural, size.maximum - _foldable(table), _CONSOLE_WIDTH)
            console.print(table, Text())
    finally:
        console.width = own_width


def markdown(
    study: StudyRecord, summary: pd.DataFrame, failed: list[str], figures: list[Path], decided: Sequence[str] = ()
) -> str:
    """summary.md: the question, what is decided (as blocks of markdown), the tables of the summary with every column,
    the runs that are missing, and the figures."""
    blocks = [f"# {study.name}"]
    if study.manifest.get("question"):
        blocks.append(str(study.manifest["question"]))
    blocks += decided
    notes = [f"**{escape(line)}**" if warns(line) else line for line in caption(study, summary)]
    for title, part in shown_parts(summary, study).items():
        if len(part):
            blocks += [
                f"## {title}",
                _markdown_table(marked_rows(part, summary)),
                "\n".join(f"- {note}" for note in notes),
            ]
    if failed:
        blocks += ["## Not in the tables", "\n".join(f"- {escape(line)}" for line in failed)]
    blocks += [f"![{path.stem.replace('_', ' ')}]({path.relative_to(study.folder).as_posix()})" for path in figures]
    return "\n\n".join(blocks) + "\n"


def _console_table(title: str, rows: list[Row], columns: dict[str, Column], lines: list[str]) -> Table:
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    table.caption = Text("\n").join(Text(line, style="bold red" if warns(line) else "dim") for line in lines)
    for header in columns:
        if header in ("cell", "reference"):
            table.add_column(header, overflow="fold", min_width=NAME_WIDTH, vertical="bottom")
        else:
            table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*(Text(show(row)) for show in columns.values()))
    return table


def _foldable(table: Table) -> int:
    """Columns of the console that folding names can save; in a narrower table rich would cut numbers."""
    names = [column for column in table.columns if column.overflow == "fold"]
    return sum(max(0, max(len(str(cell)) for cell in column.cells) - NAME_WIDTH) for column in names)


def _markdown_table(rows: list[Row]) -> str:
    headers = [header.replace("\n", "") if "[" not in header else header.replace("\n", " ") for header in _ALL_COLUMNS]
    lines = [headers, ["---" if header in ("cell", "reference", "audit") else "---:" for header in headers]]
    lines += [[escape(show(row)) for show in _ALL_COLUMNS.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def warns(line: str) -> bool:
    """Whether a line of the caption is a warning, and so is set apart from the others."""
    return line == RANDOM_WEIGHTS or line.startswith(AUDIT_FAILED)


def escape(text: str) -> str:
    """Text as markdown that shows it."""
    return re.sub(r"([\\|*<`])", r"\\\1", text)


def _span(counts: set[int]) -> str:
    if not counts:
        return MISSING
    return str(*counts) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _show(column: str, decimals: int = 1) -> Column:
    return lambda row: number(row[column], decimals)


def _text(column: str) -> Column:
    return lambda row: str(row[column]) or MISSING


def _with_interval(value: str, low: str, high: str) -> Column:
    return lambda row: interval(row[value], row[low], row[high])


def _memory(row: Row) -> str:
    size = row["peak_memory_bytes"]
    if pd.isna(size):
        return MISSING
    return f"{number(size / 2**30)} GiB" if size >= 2**30 else f"{number(size / 2**20, 0)} MiB"


_ALL_COLUMNS: dict[str, Column] = {
    "cell": _text("cell"),
    "reference": _text("reference"),
    "seeds": _show("seeds", 0),
    "ppl [low, high]": _with_interval("ppl", "ppl_low", "ppl_high"),
    "lim\n_ppl": _show("lim_ppl"),
    _MEAN_WINDOW: _show("mean_window_ppl"),
    "improvement_pct\n[low, high]": _with_interval("improvement_pct", "improvement_low", "improvement_high"),
    _LIM: _with_interval("lim_improvement_pct", "lim_improvement_low", "lim_improvement_high"),
    "trainable\n_params": _show("trainable_params", 0),
    "added_params": _show("added_params", 0),
    "params\n_per_pct": _show("params_per_pct", 0),
    "train_\nseconds": _show("train_seconds"),
    "tokens\n_per\n_second": _show("tokens_per_second", 0),
    "peak_memory_bytes": _show("peak_memory_bytes", 0),
    "audit": _text("audit"),
}
# The untuned model trains nothing, so against it added_params is trainable_params and every reference is the same.
_NARROW: dict[str, tuple[str, Column]] = {
    _LIM: ("lim_\nimprovement\n_pct", _show("lim_improvement_pct")),
    "peak_memory_bytes": ("peak\n_memory", _memory),
}
_CONSOLE_UNTUNED = dict(
    _NARROW.get(header, (header, show))
    for header, show in _ALL_COLUMNS.items()
    if header not in ("reference", "added_params", "audit")
)
_CONSOLE_CONTRASTS = {
    "cell": _text("cell"),
    "reference": _text("reference"),
    "seeds": _show("seeds", 0),
    "improvement_pct\n[low, high]": _ALL_COLUMNS["improvement_pct\n[low, high]"],
    _LIM: _ALL_COLUMNS[_LIM],
    "added_params": _show("added_params", 0),
    "params_per_pct": _show("params_per_pct", 0),
}
