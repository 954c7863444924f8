"""Content and order of each output format: page, Markdown and LaTeX. Add new sections here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from hylo.report.render.console import escape, markdown_section
from hylo.report.render.html import FigureBlock, Section, Top
from hylo.report.render.latex import booktabs
from hylo.report.tables.answer import answer, has_verdicts
from hylo.report.tables.caption import PROTOCOL, caption, warns
from hylo.report.tables.table import Table
from hylo.runs.record import StudyRecord

TEX_HEAD = r"""% Needs \usepackage{booktabs}. Rebuilt from the records: do not edit.
% A wide table needs a landscape page, or \resizebox{\textwidth}{!}{...} of graphicx around its tabular.
"""


MAIN_FIGURES = {True: ("contrasts", "claims", "improvement"), False: ("improvement", "contrasts")}
"""By whether there are verdicts: the first of these that a study has goes to the top of its page."""


def top(
    study: StudyRecord,
    summary: pd.DataFrame,
    decided: Mapping[str, Table],
    failed: list[str],
    figure: FigureBlock | None,
) -> Top:
    """The top of the page: the question, what was found, the main figure, and the protocol."""
    missing = f"{len(failed)} of the study's runs have no result: see the last section." if failed else ""
    protocol = f"Protocol: {study.manifest['protocol']}" if study.manifest.get("protocol") else ""
    return Top(
        title=study.name,
        question=study.manifest.get("question") or "",
        warnings=[line for line in caption(study, summary) if warns(line)],
        answer=answer(study, summary, decided),
        figure=figure,
        notes=[note for note in (missing, protocol) if note],
    )


def main_figure(decided: Mapping[str, Table], figures: Collection[str]) -> str:
    """Name of the figure that illustrates the page's first sentences; empty if there is none."""
    return next((name for name in MAIN_FIGURES[has_verdicts(decided)] if name in figures), "")


def sections(
    study: StudyRecord,
    tables: Sequence[Table],
    failed: list[str],
    figures: Sequence[FigureBlock],
    missing: list[str],
) -> list[Section]:
    """The page's sections: tables, other figures, what is missing of runs and figures; empty ones are left out."""
    found = [_table_section(study, table) for table in tables]
    if figures:
        found.append(Section(title="Other figures", figures=figures))
    if failed:
        text = "These runs have no result: they failed, were interrupted or were never started."
        found.append(Section(title="Not in the tables", text=[text], notes=failed))
    if missing:
        found.append(Section(title="Missing", text=["These could not be made; the rest stands."], notes=missing))
    return found


def figure_block(figure: Figure, image: Path, drawing: Path) -> FigureBlock:
    """A saved figure for the page, captioned with its file name; its own caption is part of the drawing."""
    title, caption = figure.get_suptitle() or image.stem, f"{image.parent.name}/{image.name}"
    return FigureBlock(title=title, svg=drawing.read_text(encoding="utf-8"), caption=caption)


def summary_markdown(
    study: StudyRecord, tables: Sequence[Table], failed: list[str], figures: list[Path], missing: list[str]
) -> str:
    """summary.md: the question, the tables with every column, runs without a result, and the figures.

    Args:
        study: the recorded study.
        tables: in order.
        failed: one line per run without a result.
        figures: paths relative to summary.md.
        missing: one line per table or figure that could not be made.
    """
    blocks = [f"# {study.name}"]
    if study.manifest.get("question"):
        blocks.append(str(study.manifest["question"]))
    blocks += [markdown_section(table) for table in tables]
    for title, lines in (("Not in the tables", failed), ("Missing", missing)):
        if lines:
            blocks += [f"## {title}", "\n".join(f"- {escape(line)}" for line in lines)]
    blocks += [f"![{path.stem.replace('_', ' ')}]({path.as_posix()})" for path in figures]
    return "\n\n".join(blocks) + "\n"


def summary_tex(study: StudyRecord, tables: Sequence[Table]) -> str:
    """summary.tex: the same tables, each with the columns that fit on paper."""
    blocks = [TEX_HEAD]
    for table in tables:
        title = f"{study.name}: {table.title}"
        said = [title, *([table.about] if table.about else []), *table.notes]
        caption = " ".join(f"{line[:1].upper()}{line[1:].rstrip('.')}." for line in said)
        blocks.append(booktabs(table.frame, table.brief or table.columns, caption, title))
    return "\n".join(blocks)


def _table_section(study: StudyRecord, table: Table) -> Section:
    return Section(
        title=table.title,
        warnings=[line for line in table.notes if warns(line)],
        text=[table.about] if table.about else [],
        table=replace(table, title=f"{study.name}: {table.title}"),
        notes=[line for line in table.notes if not warns(line) and not line.startswith(PROTOCOL)],  # the top has it
    )
