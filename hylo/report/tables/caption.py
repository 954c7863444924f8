"""Caption of every table and figure of a study: evaluation data, meaning of the intervals, and warnings."""

import pandas as pd

from hylo.analysis.pairs import complete_runs, value_of
from hylo.analysis.rates import rates_in_words
from hylo.analysis.summary import PASSED
from hylo.report.tables.numbers import MISSING, number
from hylo.runs.layout import NOT_RUN
from hylo.runs.record import RunRecord, StudyRecord

RANDOM_WEIGHTS = "RANDOM WEIGHTS: these numbers say nothing about methods"
ONE_SEED = "95 % intervals cover evaluation noise only (one seed: new windows, not new training runs)"
SEVERAL_SEEDS = "95 % intervals cover new seeds and new windows; where seeds is 1, evaluation noise only"
AUDIT_FAILED = "AUDIT FAILED: "
PROTOCOL = "protocol: "
MARK = " [!]"
"""Follows the name of a cell whose audit failed."""


def caption(study: StudyRecord, summary: pd.DataFrame) -> list[str]:
    """The lines under every table: evaluation data, seeds, meaning of the intervals, and warnings."""
    runs = [run for cell in study.cells for run in complete_runs(study, cell)]
    seeds = {len(complete_runs(study, cell)) for cell in study.cells if not study.is_base(cell)} - {0}
    lines = []
    if any(value_of(run, "model", "pretrained") is False for run in runs):
        lines.append(RANDOM_WEIGHTS)
    if runs:
        windows = {len(run.windows) for run in runs}
        tokens = {value_of(run, "metrics", "eval_tokens") for run in runs}
        lines.append(
            f"{_span(windows)} evaluation windows, {_span(tokens)} predicted tokens; seeds per cell: {_span(seeds)}"
        )
        lines += _lines_protocol(runs)
        lines += [said] if (said := rates_in_words(study)) else []
        if cells := list(dict.fromkeys(run.cell for run in runs if run.result["training"].get("steps_from_states"))):
            lines.append(f"training times without passes whose states were stored: {', '.join(cells)}")
        lines.append(ONE_SEED if max(summary["seeds"], default=1) <= 1 else SEVERAL_SEEDS)
    if others := study.manifest.get(NOT_RUN):
        lines.append(f"not run yet: {', '.join(others)}; p-values are corrected over the contrasts so far")
    if study.manifest.get("drawn"):
        lines.append(study.manifest["drawn"])
    lines += _audit_failures(summary)
    if study.manifest.get("overrides"):
        lines.append(f"run with {' '.join(study.manifest['overrides'])}")
    if study.manifest.get("protocol"):
        lines.append(f"{PROTOCOL}{study.manifest['protocol']}")
    return lines


def warns(line: str) -> bool:
    """Whether a caption line is a warning, which is highlighted."""
    return line == RANDOM_WEIGHTS or line.startswith(AUDIT_FAILED)


def by_lines(runs: list[RunRecord]) -> bool:
    """Whether the samples of these runs are lines of text. Records older than this option do not say."""
    return any(run.result["data"].get("protocol") == "lines" for run in runs)


def marked(frame: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """The table with `MARK` after every cell whose audit failed."""
    failed = set(summary.loc[summary["audit"] != PASSED, "cell"])
    names = [name for name in ("cell", "reference") if name in frame]
    return frame.assign(
        **{name: [f"{cell}{MARK}" if cell in failed else cell for cell in frame[name]] for name in names}
    )


def _lines_protocol(runs: list[RunRecord]) -> list[str]:
    """The caption line of runs under the lines protocol; nothing for others."""
    if not by_lines(runs):
        return []
    text = "published protocol: one line per sample, padded; mean window PPL is the published measure, not PPL itself"
    trained = [run.result["data"] for run in runs if run.result["training"]["steps"]]
    for key, what in (("loss_on_padding", "loss on padding"), ("keep_blank_lines", "blank lines trained on")):
        if said := {data[key] for data in trained}:
            text += f"; {what}: {'in some cells' if len(said) > 1 else 'yes' if True in said else 'no'}"
    return [text]


def _audit_failures(summary: pd.DataFrame) -> list[str]:
    """One line per cell whose audit failed."""
    found = {row["cell"]: row["audit"] for row in summary.to_dict("records") if row["audit"] != PASSED}
    return [f"{AUDIT_FAILED}{cell}{MARK}: {checks.replace('_', ' ')}" for cell, checks in found.items()]


def _span(counts: set[int]) -> str:
    if not counts:
        return MISSING
    few, many = number(min(counts), 0), number(max(counts), 0)
    return few if few == many else f"{few} to {many}"
