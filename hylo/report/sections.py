"""What the page and the LaTeX tables of a study hold, in order: the place to add a section."""

import pandas as pd
from matplotlib.figure import Figure

from hylo.records import StudyRecord
from hylo.report.columns import SUMMARY_COLUMNS
from hylo.report.hover import svg
from hylo.report.html import FigureBlock, HtmlTable, Section
from hylo.report.tables import caption, marked_rows, split_by_reference, warns
from hylo.report.tex import booktabs


def lead(study: StudyRecord) -> list[str]:
    """The paragraphs under the page's heading: the study's question and how it was run."""
    said = {"question": "", "protocol": "Protocol: "}
    return [f"{before}{study.manifest[key]}" for key, before in said.items() if study.manifest.get(key)]


def sections(study: StudyRecord, summary: pd.DataFrame, failed: list[str], figures: list[FigureBlock]) -> list[Section]:
    """The page's sections; one without content is left out."""
    found = [_summary_section(study, summary, title, frame) for title, frame in _frames(study, summary).items()]
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
    """summary.tex: both tables of summary.md."""
    blocks = ["% Needs \\usepackage{booktabs}. Rebuilt from the records: do not edit.\n"]
    said = ". ".join(caption(study, summary))
    for title, frame in _frames(study, summary).items():
        name = f"{study.name}: {title.lower()}"
        blocks.append(booktabs(frame, SUMMARY_COLUMNS, f"{name}. {said}.", name))
    return "\n".join(blocks)


def _frames(study: StudyRecord, summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables that have rows, by title, with the cells marked whose audit failed."""
    parts = split_by_reference(summary, study.untuned).items()
    return {title: pd.DataFrame(marked_rows(part, summary)) for title, part in parts if len(part)}


def _summary_section(study: StudyRecord, summary: pd.DataFrame, title: str, frame: pd.DataFrame) -> Section:
    lines = caption(study, summary)
    return Section(
        title=title,
        warnings=[line for line in lines if warns(line)],
        table=HtmlTable(caption=f"{study.name}: {title.lower()}", frame=frame, columns=SUMMARY_COLUMNS),
        notes=[line for line in lines if not warns(line)],
    )
