"""Reports: everything a study shows, rebuilt from its records alone, without a model or torch.

outputs/<group>/summary.csv       one row per cell and reference (see `summarize`)
outputs/<group>/summary.md        the same with captions, figures and failed runs
outputs/<group>/summary.tex       the same tables for a paper
outputs/<group>/report.html       everything on one page: sortable tables, exact values, figures; works offline
outputs/<group>/claims.csv, contrasts.csv, ...      what the study decides, if it names claims and contrasts
outputs/<group>/figures/          each as PNG and as SVG with tooltips

`python -m hylo.report FOLDER --out OTHER` writes them elsewhere.

Rebuilt on the same machine, every file is byte-identical. Another processor may round the tenth and last digit of a
number (hylo/report/tables/numbers.py) differently.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from hylo.analysis.summary import COLUMNS, incomplete, summarize
from hylo.report.figures import all_figures, study_figures
from hylo.report.figures.base import drawable
from hylo.report.figures.loss import loss_figure
from hylo.report.render.console import markdown_section, print_tables
from hylo.report.render.files import csv, remove, save, write
from hylo.report.render.html import FigureBlock, page
from hylo.report.render.sections import figure_block, main_figure, sections, summary_markdown, summary_tex, top
from hylo.report.tables.decisions import MAKERS, Decision, decisions, for_readers
from hylo.report.tables.sentences import claim_sentences, claims_overview, component_sentences
from hylo.report.tables.summary_tables import summary_tables
from hylo.report.tables.table import Table
from hylo.runs.record import StudyRecord
from hylo.runs.store import read_study

__all__ = [
    "COLUMNS",
    "PAGE",
    "SUMMARY",
    "Report",
    "claim_sentences",
    "claims_overview",
    "component_sentences",
    "decisions",
    "incomplete",
    "loss_figure",
    "markdown_section",
    "print_report",
    "study_figures",
    "summarize",
    "summary_tables",
    "write_report",
]

SUMMARY = "summary.csv"
PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """A study's report, as written."""

    study: StudyRecord
    summary: pd.DataFrame
    """As returned by `summarize`."""
    decisions: list[Decision]
    """Claims, contrasts and everything else the study decides."""
    failed: list[str]
    """One line per run without a result: it failed or was interrupted."""
    figures: list[Path]
    """The PNGs; each has an SVG of the same name next to it."""
    missing: list[str]
    """One line per table or figure that could not be made."""
    folder: Path
    """Where it was written."""


def write_report(folder: Path, to: Path | None = None) -> Report:
    """Rebuild a study's report from its records: every file named above.

    Args:
        folder: the study's folder.
        to: where the report goes; the study's folder by default.

    Raises:
        RecordError: the manifest or a record is missing or damaged, or cells were evaluated on different windows.
    """
    study, to = read_study(folder), to or folder
    summary, failed, missing = summarize(study), incomplete(study), []
    decided = decisions(study, missing)
    figures, blocks = _drawn(study, summary, to, missing)
    write(to / SUMMARY, csv(summary))
    for decision in decided:
        write(to / f"{decision.name}.csv", csv(decision.frame))
    if (to / PAGE).exists():  # an earlier report, which may have had other tables
        for name in MAKERS.keys() - {decision.name for decision in decided}:
            (to / f"{name}.csv").unlink(missing_ok=True)
    tables = [
        table for table in (*for_readers(decided, summary), *summary_tables(study, summary)) if _shown(table, missing)
    ]
    links = [path.relative_to(to) for path in figures]
    write(to / "summary.md", summary_markdown(study, tables, failed, links, missing).encode())
    write(to / "summary.tex", summary_tex(study, tables).encode())
    by_name = {each.name: each for each in decided}
    picture = blocks.pop(main_figure(by_name, blocks), None)
    first = top(study, summary, by_name, failed, picture)
    write(to / PAGE, page(first, sections(study, tables, failed, list(blocks.values()), missing)).encode())
    return Report(study, summary, decided, failed, figures, missing, to)


def _shown(table: Table, missing: list[str]) -> bool:
    """Whether every value of a table can be shown. One that fails costs no other table: `missing` takes a line."""
    try:
        for row in table.frame.to_dict("records"):
            for column in (*table.columns, *table.brief):
                column.show(row)
    except Exception as error:  # noqa: BLE001  whatever a value does, the rest of the report stands
        missing.append(f"table {table.title!r} cannot be shown: {type(error).__name__}: {error}")
        return False
    return True


def _drawn(
    study: StudyRecord, summary: pd.DataFrame, to: Path, missing: list[str]
) -> tuple[list[Path], dict[str, FigureBlock]]:
    """Save every figure that has data, and delete those of an earlier report that has none now. One that fails costs no
    other: `missing` takes a line for it.

    Returns:
        The PNGs, and the page's blocks by name.
    """
    images: list[Path] = []
    blocks: dict[str, FigureBlock] = {}
    figures = all_figures()
    study, summary = drawable(study, summary)
    for name, draw in figures.items() if len(summary) else ():
        try:
            if (figure := draw(study, summary)) is None:
                continue
            image, drawing = save(figure, to / "figures", name)
        except Exception as error:  # noqa: BLE001  whatever a figure raises, the rest of the report stands
            missing.append(f"figure {name} cannot be drawn: {type(error).__name__}: {error}")
            continue
        images.append(image)
        blocks[name] = figure_block(figure, image, drawing)
    for name in figures.keys() - blocks.keys():
        remove(to / "figures", name)
    return images, blocks


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the tables, the runs without a result, and where the files are."""
    console = console or Console()
    decided = [each for each in for_readers(report.decisions, report.summary) if each.printed]
    print_tables(report.study.name, [*summary_tables(report.study, report.summary), *decided], console)
    for line in [*report.failed, *report.missing]:
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    for name in ("summary.md", PAGE):
        console.print(f"report: {report.folder / name}", markup=False, highlight=False, soft_wrap=True)
