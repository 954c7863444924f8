"""What the page and the LaTeX tables of a study hold, in order: the place to add a section."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from hylo.records import StudyRecord
from hylo.report.columns import CONTRAST_COLUMNS, SUMMARY_COLUMNS, UNTUNED_COLUMNS, Column
from hylo.report.decisions import Decision
from hylo.report.hover import svg
from hylo.report.html import FigureBlock, HtmlTable, Section
from hylo.report.tables import PROTOCOL, caption, marked_rows, shown_parts, warns
from hylo.report.tex import booktabs

TEX_HEAD = r"""% Needs \usepackage{booktabs}. Rebuilt from the records: do not edit.
% The first table needs a landscape page, or \resizebox{\textwidth}{!}{...} of graphicx around its tabular.
"""


def lead(study: StudyRecord) -> list[str]:
    """The paragraphs under the page's heading: the study's question and how it was run."""
    said = {"question": "", "protocol": "Protocol: "}
    return [f"{before}{study.manifest[key]}" for key, before in said.items() if study.manifest.get(key)]


def sections(
    study: StudyRecord,
    summary: pd.DataFrame,
    decided: Sequence[Decision],
    failed: list[str],
    figures: list[FigureBlock],
) -> list[Section]:
    """The page's sections; one without content is left out."""
    lines = caption(study, summary)
    found = [_decision_section(study, decision) for decision in decided]
    found += [_summary_section(table, lines) for table in _tables(study, summary, SUMMARY_COLUMNS)]
    if figures:
        found.append(Section(title="Figures", figures=figures))
    if failed:
        text = "These runs have no result: they failed, were interrupted or were never started."
        found.append(Section(title="Not in the tables", text=[text], notes=failed))
    return found


def figure_block(figure: Figure, name: str) -> FigureBlock:
    """A figure for the page; its own caption is drawn in it, the page says in which file it is."""
    return FigureBlock(title=figure.get_suptitle() or name, svg=svg(figure), caption=f"figures/{name}.png")


def summary_tex(study: StudyRecord, summary: pd.DataFrame, decided: Sequence[Decision]) -> str:
    """summary.tex: the tables of summary.md; of the second of the summary what the first does not show already."""
    said = " ".join(f"{line[:1].upper()}{line[1:].rstrip('.')}." for line in caption(study, summary))
    blocks = [TEX_HEAD]
    for table in _tables(study, summary, CONTRAST_COLUMNS):
        blocks.append(booktabs(table.frame, table.columns, f"{table.caption}. {said}", table.caption))
    for each in decided:
        title = f"{study.name}: {each.title}"
        blocks.append(booktabs(each.frame, each.console or each.columns, f"{title}. {each.about}", title))
    return "\n".join(blocks)


def _decision_section(study: StudyRecord, decision: Decision) -> Section:
    table = HtmlTable(caption=f"{study.name}: {decision.title}", frame=decision.frame, columns=decision.columns)
    return Section(title=decision.title, text=[decision.about], table=table)


def _tables(study: StudyRecord, summary: pd.DataFrame, contrasts: list[Column]) -> list[HtmlTable]:
    """The tables that have rows, with the cells marked whose audit failed."""
    parts = zip(shown_parts(summary, study).items(), (UNTUNED_COLUMNS, contrasts), strict=False)
    return [
        HtmlTable(caption=f"{study.name}: {title}", frame=pd.DataFrame(marked_rows(part, summary)), columns=columns)
        for (title, part), columns in parts
        if len(part)
    ]


def _summary_section(table: HtmlTable, lines: list[str]) -> Section:
    return Section(
        title=table.caption.rpartition(": ")[2],
        warnings=[line for line in lines if warns(line)],
        table=table,
        notes=[line for line in lines if not warns(line) and not line.startswith(PROTOCOL)],  # the lead has it
    )
