"""Reports: everything a study shows, rebuilt from its records alone, without a model and without torch.

outputs/<group>/summary.csv       one row a cell and reference (see `summarize`), byte-identical when rebuilt
outputs/<group>/summary.md        the same with captions, figures and the runs that failed
outputs/<group>/figures/      each as PNG and as SVG, which shows values on pointing
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from hylo.records import StudyRecord, read_study
from hylo.report.figures import (
    FIGURES,
    TABLE_FIGURES,
    attribution_figure,
    forest_figure,
    improvement_figure,
    loss_figure,
    pareto_figure,
    pareto_front,
    position_figure,
    ppl_by_position_figure,
    retrieval_figure,
    retrieval_heatmap,
)
from hylo.report.files import save, write
from hylo.report.summary import COLUMNS, incomplete, summarize
from hylo.report.tables import conclusions, console_tables, markdown, print_tables, split_by_reference

__all__ = [
    "COLUMNS",
    "SUMMARY",
    "TABLE_FIGURES",
    "Report",
    "attribution_figure",
    "conclusions",
    "forest_figure",
    "improvement_figure",
    "incomplete",
    "loss_figure",
    "markdown",
    "pareto_figure",
    "pareto_front",
    "position_figure",
    "ppl_by_position_figure",
    "print_report",
    "retrieval_figure",
    "retrieval_heatmap",
    "save",
    "split_by_reference",
    "summarize",
    "write_report",
]

SUMMARY = "summary.csv"


@dataclass(frozen=True)
class Report:
    """A study's report, as written."""

    study: StudyRecord
    summary: pd.DataFrame
    """As `summarize` returns it."""
    failed: list[str]
    """One line a run that has no result: it failed, or was interrupted."""
    figures: list[Path]
    """The PNGs; an SVG of the same name is beside each."""


def write_report(folder: Path) -> Report:
    """Rebuild summary.csv, summary.md and the figures inside a study's folder from its records.

    Raises:
        RecordError: the manifest or a record is missing or damaged, or cells were evaluated on different windows.
    """
    study = read_study(folder)
    summary, failed = summarize(study), incomplete(study)
    figures = []
    if len(summary):
        for name, draw in FIGURES.items():
            if figure := draw(study, summary):
                image, _ = save(figure, folder / "figures", name)
                figures.append(image)
    write(folder / SUMMARY, summary.to_csv(index=False, lineterminator="\n").encode())
    write(folder / "summary.md", markdown(study, summary, failed, figures).encode())
    return Report(study, summary, failed, figures)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print both tables, the runs without a result, and where the files are."""
    console = console or Console()
    print_tables(console_tables(report.study, report.summary), console)
    for line in report.failed:
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {report.study.folder / 'summary.md'}", markup=False, highlight=False, soft_wrap=True)
