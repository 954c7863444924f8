"""Reports: everything a study shows, rebuilt from its records alone, without a model and without torch.

outputs/<group>/summary.csv       one row a cell and reference (see `summarize`), byte-identical when rebuilt
outputs/<group>/summary.md        the same with captions, figures and the runs that failed
outputs/<group>/summary.tex       the same tables for a paper
outputs/<group>/report.html       everything on one page: sorting, exact values, figures; opens without a network
outputs/<group>/claims.csv, contrasts.csv, ...      what the study decides (hylo/report/decisions.py), where it names it
outputs/<group>/figures/*.png
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from hylo.records import StudyRecord, read_study
from hylo.report.decisions import Decision, decisions
from hylo.report.figures import FIGURES, improvement_figure, loss_figure, position_figure
from hylo.report.html import page
from hylo.report.render import console_table, markdown_section
from hylo.report.sections import figure_block, lead, sections, summary_tex
from hylo.report.summary import COLUMNS, incomplete, summarize
from hylo.report.tables import conclusions, console_tables, markdown, print_tables, split_by_reference

__all__ = [
    "COLUMNS",
    "PAGE",
    "SUMMARY",
    "Report",
    "conclusions",
    "improvement_figure",
    "incomplete",
    "loss_figure",
    "markdown",
    "position_figure",
    "print_report",
    "split_by_reference",
    "summarize",
    "write_report",
]

SUMMARY = "summary.csv"
PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """A study's report, as written."""

    study: StudyRecord
    summary: pd.DataFrame
    """As `summarize` returns it."""
    decisions: list[Decision]
    """Claims, contrasts and what else the study decides."""
    failed: list[str]
    """One line a run that has no result: it failed, or was interrupted."""
    figures: list[Path]


def write_report(folder: Path) -> Report:
    """Rebuild a study's report inside its folder, from its records: every file named above.

    Raises:
        RecordError: the manifest or a record is missing or damaged, or cells were evaluated on different windows.
    """
    study = read_study(folder)
    summary, failed, decided = summarize(study), incomplete(study), decisions(study)
    figures, blocks = [], []
    if len(summary):
        for name, draw in FIGURES.items():
            if figure := draw(study, summary):
                image = io.BytesIO()
                figure.savefig(image, format="png")
                figures.append(_write(folder / "figures" / f"{name}.png", image.getvalue()))
                blocks.append(figure_block(figure, name))
    _write(folder / SUMMARY, summary.to_csv(index=False, lineterminator="\n").encode())
    for decision in decided:
        _write(folder / f"{decision.name}.csv", decision.frame.to_csv(index=False, lineterminator="\n").encode())
    told = [markdown_section(each.title, each.about, each.frame, each.columns) for each in decided]
    _write(folder / "summary.md", markdown(study, summary, failed, figures, told).encode())
    _write(folder / "summary.tex", summary_tex(study, summary, decided).encode())
    _write(folder / PAGE, page(study.name, lead(study), sections(study, summary, decided, failed, blocks)).encode())
    return Report(study, summary, decided, failed, figures)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the tables, the runs without a result, and where the files are."""
    console = console or Console()
    print_tables(console_tables(report.study, report.summary), console)
    for each in report.decisions:
        if each.console:
            print_tables(
                [console_table(f"{report.study.name}: {each.title}", each.frame, each.console, each.about)], console
            )
    for line in report.failed:
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    for name in ("summary.md", PAGE):
        console.print(f"report: {report.study.folder / name}", markup=False, highlight=False, soft_wrap=True)


def _write(path: Path, content: bytes) -> Path:
    """Write so that a reader sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
    return path
