"""What a study's contrasts say about published claims, components, and attribution of the whole stack's gain.

From the manifest and the records alone. Effects are improvements in perplexity in percent, 100 (1 - PPL_X / PPL_R), by
`hylo.stats.effect` over paired seeds and windows. p-values test for no effect (contrasts) or half the published effect
(claims), Holm-corrected over the rows of a table with the same measure.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from hylo import stats
from hylo.analysis.basis import basis_of
from hylo.analysis.choice_noise import choice_variance
from hylo.analysis.pairs import (
    complete_runs,
    mean_nll,
    paired_runs,
    paired_sums,
    percent,
    value_of,
    window_sums,
)
from hylo.analysis.verdicts import RedFlags, claim_threshold, claim_verdict, component_verdict, success
from hylo.evaluation.metrics import Metric, all_metrics, main_metric
from hylo.runs.record import StudyRecord

CONTRASTS = [
    "cell", "reference", "component", "comparison", "measure", "seeds", "effect_pct", "low", "high", "p_holm",
    "detectable_pct", "added_params", "params_per_pct", "verdict", "rests_on",
]  # fmt: skip
CLAIMS = [
    "id", "cell", "reference", "measure", "published_pct", "seeds", "effect_pct", "low", "high", "p_holm", "verdict",
    "rests_on", "seeds_to_decide", "source", "note",
]  # fmt: skip
ATTRIBUTION = ["component", "comparison", "cell", "reference", "seeds", "effect_pct", "low", "high", "added_params"]
SHAPLEY = "Shapley"
ONE_SEED = "undecided: one seed"
"""Regardless of the interval, which covers evaluation noise only: another run may disagree."""


def contrast_table(study: StudyRecord) -> pd.DataFrame:
    """One row per named contrast and metric, in the order of the study; columns CONTRASTS.

    - `detectable_pct`: the smallest true improvement that this many seeds would detect in four of five studies.
    - `verdict`: on the component, where the contrast has one; from the main metric alone.
    """
    rows = []
    for metric in all_metrics():
        found = [row for contrast in contrasts_of(study) if (row := _contrast_row(study, contrast, metric))]
        rows += _corrected(found)
    return pd.DataFrame(rows, columns=pd.Index(CONTRASTS))


def contrasts_of(study: StudyRecord) -> list[dict[str, Any]]:
    """Contrasts named in the manifest; older manifests have none."""
    return study.manifest.get("contrasts", [])


def claim_table(study: StudyRecord) -> pd.DataFrame:
    """One row per published claim; columns CLAIMS.

    - `seeds_to_decide`: seeds needed to distinguish an effect of the measured size from half the published one;
      missing where the spread between seeds is unknown, or no number of seeds is enough for this many windows.
    """
    rows = []
    claims = study.manifest.get("claims", [])
    for metric in (*all_metrics(), None):
        of_metric = [claim for claim in claims if improvement_of(claim["metric"]) == metric]
        rows += _corrected([_claim_row(study, claim, metric) for claim in of_metric])
    for row in rows:
        if pd.notna(row["effect_pct"]):
            decided = row["seeds"] > 1 and row["p_holm"] < 1 - stats.LEVEL
            basis = basis_of(study, row["cell"], row["reference"], direction=math.copysign(1, row["published_pct"]))
            row["verdict"] = claim_verdict(row["published_pct"], row["low"], row["high"], basis, decided=decided).name
            row["rests_on"] = str(basis)
    order = {claim["id"]: place for place, claim in enumerate(claims)}
    return pd.DataFrame(sorted(rows, key=lambda row: order[row["id"]]), columns=pd.Index(CLAIMS))


def attribution_table(study: StudyRecord) -> pd.DataFrame:
    """What each component contributes, under every comparison the study makes; columns ATTRIBUTION."""
    rows = []
    for contrast in contrasts_of(study):
        if contrast["component"] and (row := _contrast_row(study, contrast, main_metric())):
            rows.append({column: row.get(column) for column in ATTRIBUTION})
    return pd.DataFrame([*rows, *_shapley_rows(study)], columns=pd.Index(ATTRIBUTION))


def criteria_table(study: StudyRecord) -> pd.DataFrame:
    """Success criteria and red flags of each component contrast: columns cell, reference, component, then yes or no
    per criterion."""
    rows = []
    for contrast in contrasts_of(study):
        tested = [metric for metric in all_metrics() if metric.success is not None]
        found = {metric: _contrast_row(study, contrast, metric) for metric in tested}
        main = found[main_metric()]
        if contrast["component"] and main:
            lows = {metric: row["low"] if row else math.nan for metric, row in found.items()}
            met = success(lows, main["params_per_pct"], _flags(study, main["cell"]))
            named = {name: main[name] for name in ("cell", "reference", "component")}
            rows.append(named | {name: "yes" if holds else "no" for name, holds in met.items()})
    return pd.DataFrame(rows)


def level(study: StudyRecord) -> float:
    """Coverage of a study's intervals: 0.95 unless a stopping rule requires more."""
    return study.manifest.get("level", stats.LEVEL)


def effect_of(study: StudyRecord, cell: str, reference: str, metric: Metric | None = None) -> stats.Effect | None:
    """Mean NLL of a cell minus that of its reference, in nats per weight of the metric (log PPL by default).

    None without a pair of complete runs, or with fewer than two windows that have a token of the metric.
    """
    found = _difference(study, cell, reference, metric or main_metric())
    if found is None:
        return None
    return stats.effect(*found, level=level(study), choice_variance=choice_variance(study, cell, reference))


def p_value(
    study: StudyRecord, sums: np.ndarray, tokens: np.ndarray, threshold: float = 0.0, chosen: float = 0.0
) -> float:
    """p-value for "the effect in these paired differences equals the threshold".

    If seeds were added until the study was decided, one p-value for all its looks.

    Args:
        study: names the planned looks, if any.
        sums: [seeds, windows], paired differences of NLL in nats.
        tokens: [windows], what the sums are divided by.
        threshold: nats per token.
        chosen: variance added by the choice of settings.
    """
    planned = study.manifest.get("looks", [])
    taken = [look for look in planned if look <= len(sums)]
    found = [stats.effect(sums[:look], tokens, choice_variance=chosen) for look in taken or [len(sums)]]
    values = [each.p_value(threshold) for each in found]
    return stats.sequential_p_value(values, planned) if taken else values[0]


def _difference(study: StudyRecord, cell: str, reference: str, metric: Metric) -> tuple[np.ndarray, np.ndarray] | None:
    pairs = paired_runs(study, cell, reference) if {cell, reference} <= study.cells.keys() else []
    sums, tokens = paired_sums(pairs, metric) if pairs else (np.empty(0), np.empty(0))
    return (sums, tokens) if tokens.size > 1 else None


def improvement_of(name: str) -> Metric | None:
    """The metric whose improvement a claim is about (`ppl_improvement`); None for other claims."""
    return next((metric for metric in all_metrics() if name == f"{metric.name}_improvement"), None)


def threshold_of(study: StudyRecord, claim: dict[str, Any], metric: Metric) -> float:
    """Difference in mean NLL beyond which an effect confirms a claim, in nats per weight of the metric."""
    reference = mean_nll(complete_runs(study, claim["reference"]), metric)
    return metric.difference(claim_threshold(claim["value"]), reference)


def _contrast_row(study: StudyRecord, contrast: dict[str, Any], metric: Metric) -> dict[str, Any] | None:
    """A contrast in a metric, computed once for all tables; None if its cells have no pair of complete runs."""
    key = (contrast[name] for name in ("cell", "reference", "component", "comparison"))
    row = study.once("contrast", *key, metric.name, make=lambda: _computed_row(study, contrast, metric))
    return dict(row) if row else None


def _computed_row(study: StudyRecord, contrast: dict[str, Any], metric: Metric) -> dict[str, Any] | None:
    cell, reference = contrast["cell"], contrast["reference"]
    found = _difference(study, cell, reference, metric)
    if found is None:
        return None
    known = mean_nll(complete_runs(study, reference), metric)
    chosen = choice_variance(study, cell, reference)
    effect = stats.effect(*found, level=level(study), choice_variance=chosen)
    row = {
        "cell": cell,
        "reference": reference,
        "component": contrast["component"] or "",
        "comparison": contrast["comparison"],
    }
    row |= {"measure": metric.name, "seeds": effect.seeds, **percent(effect, metric, known)}
    row["p"] = p_value(study, *found, chosen=chosen)
    row["detectable_pct"] = metric.percent(-effect.smallest_detectable(), known)
    row["added_params"] = _trainable(study, cell) - _trainable(study, reference)
    ends = row["effect_pct"], row["low"], row["high"]
    row["params_per_pct"] = stats.params_per_pct(row["added_params"], *ends) if np.isfinite(ends).all() else None
    basis = basis_of(study, cell, reference, direction=math.copysign(1, row["effect_pct"]), metric=metric)
    row["verdict"], row["rests_on"] = "", str(basis)
    if contrast["component"] and metric is main_metric():
        several = effect.seeds > 1
        row["verdict"] = component_verdict(row["low"], row["high"], basis, _flags(study, cell)) if several else ONE_SEED
    return row


def _claim_row(study: StudyRecord, claim: dict[str, Any], metric: Metric | None) -> dict[str, Any]:
    row = {name: claim[name] for name in ("id", "cell", "reference", "source", "note")}
    row |= {"measure": metric.name if metric else claim["metric"]}
    row["published_pct"] = claim["value"] if metric else math.nan
    row |= {"effect_pct": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, "verdict": "inconclusive"}
    row["rests_on"] = ""
    found = _difference(study, claim["cell"], claim["reference"], metric) if metric else None
    if found is None or metric is None:
        return row | {"seeds": 0, "seeds_to_decide": None}
    chosen = choice_variance(study, row["cell"], row["reference"])
    threshold, known = threshold_of(study, claim, metric), mean_nll(complete_runs(study, claim["reference"]), metric)
    effect = stats.effect(*found, level=level(study), choice_variance=chosen)
    row |= {"seeds": effect.seeds, **percent(effect, metric, known), "p": p_value(study, *found, threshold, chosen)}
    return row | {"seeds_to_decide": effect.seeds_to_decide(threshold)}


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with p_holm added. A contrast named in two ways counts as one hypothesis."""
    known = {_hypothesis(row): row["p"] for row in rows if math.isfinite(row["p"])}
    adjusted = dict(zip(known, stats.holm(list(known.values())) if known else [], strict=True))
    return [row | {"p_holm": float(adjusted.get(_hypothesis(row), math.nan))} for row in rows]


def _hypothesis(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["cell"], row["reference"], row.get("id")


def _shapley_rows(study: StudyRecord) -> Iterable[dict[str, Any]]:
    """Shapley values of a factorial's components over the seeds that all its cells share; none without such a seed."""
    cells = {frozenset(entry["on"]): entry["cell"] for entry in study.manifest.get("factorial", [])}
    runs = {on: {run.seed: run for run in complete_runs(study, cell)} for on, cell in cells.items()}
    seeds = sorted(set.intersection(*(set(of_cell) for of_cell in runs.values()))) if runs else []
    if not seeds:
        return
    values, tokens = {}, np.empty(0)
    for on, of_cell in runs.items():
        values[on], tokens = window_sums([of_cell[seed] for seed in seeds])
    whole = max(cells, key=len)
    params = stats.shapley({on: float(_trainable(study, cell)) for on, cell in cells.items()})
    for factor, sums in stats.shapley(values).items():
        effect = stats.effect(sums, tokens, level=level(study))
        yield {
            "component": factor,
            "comparison": SHAPLEY,
            "cell": cells[whole],
            "reference": cells[frozenset()],
            "seeds": effect.seeds,
            **percent(effect),
            "added_params": round(float(params[factor])),
        }


def _trainable(study: StudyRecord, cell: str) -> int:
    return value_of(complete_runs(study, cell)[0], "params", "trainable")


def _flags(study: StudyRecord, cell: str) -> RedFlags:
    runs = complete_runs(study, cell)
    jumps = [jump for run in runs if (jump := value_of(run, "training", "max_loss_jump")) is not None]
    return RedFlags(
        nonfinite_steps=sum(value_of(run, "training", "nonfinite_steps") for run in runs),
        largest_loss_jump=max(jumps, default=None),
        leaks=any("causality" in value_of(run, "audit", "failed") for run in runs),
    )
