"""What the page and the LaTeX tables of a study hold, in order: the place to add a section."""

import pandas as pd
from matplotlib.figure import Figure

from hylo.records import StudyRecord
from hylo.report.columns import CONTRAST_COLUMNS, SUMMARY_COLUMNS, UNTUNED_COLUMNS, Column
from hylo.report.hover import svg
from hylo.report.html import FigureBlock, HtmlTable, Section
from hylo.report.tables import PROTOCOL, caption, marked_rows, split_by_reference, warns
from hylo.report.tex import booktabs

TEX_HEAD = r"""% Needs \usepackage{booktabs}. Rebuilt from the records: do not edit.
% The first table needs a landscape page, or \resizebox{\textwidth}{!}{...} of graphicx around its tabular.
"""


def lead(study: StudyRecord) -> list[str]:
    """The paragraphs under the page's heading: the study's question and how it was run."""
    said = {"question": "", "protocol": "Protocol: "}
    return [f"{before}{study.manifest[key]}" for key, before in said.items() if study.manifest.get(key)]


def sections(study: StudyRecord, summary: pd.DataFrame, failed: list[str], figures: list[FigureBlock]) -> list[Section]:
    """The page's sections; one without content is left out."""
    lines = caption(study, summary)
    found = [_summary_section(table, lines) for table in _tables(study, summary, SUMMARY_COLUMNS)]
    if figures:
        found.append(Section(title="Figures", figures=figures))
    if failed:
        text = "These runs have no result: they failed, were interrupted or were never started."
        found.append(Section(title="Not in the tables", text=[text], notes=failed))
    return found


def figure_block(figure: Figure, name: str) -> FigureBlock:
    """A figure for the page; its own caption is drawn in it, the page says in which file it is."""
    return FigureBlock(title=figure.get_suptitle() or name, svg=svg(figure), caption=f"figures/{name}.png")


def summary_tex(study: StudyRecord, summary: pd.DataFrame) -> str:
    """summary.tex: both tables of summary.md, of the second what the first does not show already."""
    said = " ".join(f"{line[:1].upper()}{line[1:].rstrip('.')}." for line in caption(study, summary))
    blocks = [TEX_HEAD]
    for table in _tables(study, summary, CONTRAST_COLUMNS):
        blocks.append(booktabs(table.frame, table.columns, f"{table.caption}. {said}", table.caption))
    return "\n".join(blocks)


def _tables(study: StudyRecord, summary: pd.DataFrame, contrasts: list[Column]) -> list[HtmlTable]:
    """The tables that have rows, with the cells marked whose audit failed."""
    against_untuned, against_previous = split_by_reference(summary, study).items()
    return [
        HtmlTable(caption=f"{study.name}: {title}", frame=pd.DataFrame(marked_rows(part, summary)), columns=columns)
        for (title, part), columns in ((against_untuned, UNTUNED_COLUMNS), (against_previous, contrasts))
        if len(part)
    ]


def _summary_section(table: HtmlTable, lines: list[str]) -> Section:
    return Section(
        title=table.caption.rpartition(": ")[2],
        warnings=[line for line in lines if warns(line)],
        table=table,
        notes=[line for line in lines if not warns(line) and not line.startswith(PROTOCOL)],  # the lead has it
    )
