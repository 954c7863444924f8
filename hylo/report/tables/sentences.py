"""What a study decides, as sentences computed from its tables."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from hylo.analysis.claims import Claim
from hylo.analysis.contrasts import claim_table, contrast_table, improvement_of
from hylo.analysis.verdicts import OWN_RATES
from hylo.evaluation.metrics import main_metric, metric_named
from hylo.report.tables.numbers import MISSING, interval, number
from hylo.runs.record import StudyRecord


def claim_sentences(study: StudyRecord) -> list[str]:
    """One sentence per published claim: verdict, published and measured effect, and what would decide it."""
    return [_claim(row) for row in claim_table(study).to_dict("records")]


def component_sentences(study: StudyRecord) -> list[str]:
    """One sentence per component contrast: verdict and effect."""
    table: Any = contrast_table(study)
    rows = table[(table["measure"] == main_metric().name) & (table["component"] != "")]
    return [_component(row) for row in rows.to_dict("records")]


def claims_overview(claims: Sequence[Claim], found: pd.DataFrame) -> str:
    """A Markdown table of all claims: what was published, what was found, the verdict, and what it rests on.

    Args:
        claims: all published claims.
        found: rows of several studies' claims.csv; if several test the same claim, the one with tuned rates counts.
    """
    rows: dict[str, dict[Any, Any]] = {}
    for row in found.to_dict("records"):
        if row["id"] not in rows or str(row["rests_on"]).startswith(OWN_RATES):
            rows[row["id"]] = row
    lines = [
        "| claim | what was published | found (%) [95 %] | seeds | verdict | rests on |",
        "|---|---|---|---:|---|---|",
    ]
    for claim in claims:
        row = rows.get(claim.id)
        against = f" against `{claim.reference}`" if claim.reference else ""
        unit = " %" if claim.unit == "percent" else f" {claim.unit.upper()}"
        metric = improvement_of(claim.metric)
        name = f"{metric.label} " if metric else ""
        sign = "+" * (claim.value > 0 and claim.unit == "percent")
        said = f"`{claim.cell}`{against}: {name}{sign}{claim.value:g}{unit} ({claim.source})"
        effect, seeds, word, basis = MISSING, MISSING, "not tested yet", MISSING
        if row is not None:
            effect = interval(row["effect_pct"], row["low"], row["high"])
            seeds, word = number(row["seeds"], 0), f"**{spaced(row['verdict'])}**"
            basis = row["rests_on"] if isinstance(row["rests_on"], str) and row["rests_on"] else MISSING
        lines.append(f"| {claim.id} | {said} | {effect} | {seeds} | {word} | {basis} |")
    return "\n".join(lines)


def _claim(row: dict[Any, Any]) -> str:
    named = f"{row['id']}: {row['cell']}" + (f" against {row['reference']}" if row["reference"] else "")
    if pd.isna(row["effect_pct"]):
        return f"{named}: inconclusive, because nothing comparable was measured ({row['note']})."
    found = interval(row["effect_pct"], row["low"], row["high"])
    sentence = (
        f"{named}: {spaced(row['verdict'])}. Published: {number(row['published_pct'], 2)} % in "
        f"{metric_named(row['measure']).description}; found: {found} %, {row['seeds']} seed{'s' * (row['seeds'] != 1)}"
    )
    if row["verdict"] == "inconclusive":
        if row["seeds"] == 1:
            return f"{sentence}: evaluation noise only."
        wanted = row["seeds_to_decide"]
        more = "more windows are needed" if pd.isna(wanted) else f"about {number(wanted, 0)} seeds would decide it"
        return f"{sentence}; {more}."
    return f"{sentence}; {row['rests_on']}."


def spaced(verdict: str) -> str:
    """A verdict as shown to readers."""
    return verdict.replace("_", " ")


def _component(row: dict[Any, Any]) -> str:
    found = interval(row["effect_pct"], row["low"], row["high"])
    return (
        f"{row['component']} ({str(row['comparison']).replace('_', ' ')}; {row['cell']} against {row['reference']}): "
        f"{row['verdict']}. {found} % for {number(row['added_params'], 0)} added parameters; {row['rests_on']}."
    )
