"""The first sentences of a page: what was found, how certain it is, and what it is based on."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hylo.report.tables.answer import NOTHING, ONE_SEED, answer, has_verdicts
from hylo.report.tables.table import Table
from hylo.runs.record import StudyRecord

STUDY = StudyRecord(Path(), {"study": "demo", "base": "base", "cells": [{"cell": "base", "base": "base"}]}, {})
FILES, OWN = "default rates, 24,576 tokens", "own rates, 61,440 tokens"
SUMMARY = pd.DataFrame(
    {
        "cell": ["base", "some", "more", "more"],
        "reference": ["", "base", "base", "some"],
        "seeds": [1, 3, 3, 3],
        "improvement_pct": [None, 10.0, 12.0, 50.0],
        "improvement_low": [None, 9.0, 11.0, 49.0],
        "improvement_high": [None, 11.0, 13.0, 51.0],
        "trainable_params": [0, 1_000, 2_000, 2_000],
    }
)


def component(name: str, effect: float, verdict: str, rests_on: str = OWN, seeds: int = 3) -> dict[str, Any]:
    row = {
        "component": name,
        "cell": "x",
        "reference": "y",
        "effect_pct": effect,
        "low": effect - 1,
        "high": effect + 1,
    }
    return row | {"comparison": "leave_one_out", "verdict": verdict, "rests_on": rests_on, "seeds": seeds}


def claim(name: str, verdict: str) -> dict[str, Any]:
    return {"id": name, "verdict": verdict, "rests_on": OWN, "seeds": 3, "effect_pct": 1.0}


def said(summary: pd.DataFrame = SUMMARY, **tables: list[dict[str, Any]]) -> list[str]:
    decided = {name: Table(title=name, frame=pd.DataFrame(rows), columns=[]) for name, rows in tables.items()}
    return answer(STUDY, summary, decided)


def test_one_component_of_tuned_arms() -> None:
    basis = "Basis: every arm had its own tuned learning rate (61,440 tokens, 3 seeds)."
    assert said(contrasts=[component("landmarks", 0.5, "drop")]) == [
        "With landmarks, perplexity is 0.5 [-0.5, 1.5] % lower (less than 2 %, drop).",
        basis,
    ]
    (first, _) = said(contrasts=[component("landmarks", -13.0, "drop")])
    assert first == "With landmarks, perplexity is 13.0 [12.0, 14.0] % higher (less than 2 %, drop)."
    (first, _) = said(contrasts=[component("landmarks", 2.0, "undecided: drop or optional")])
    assert first.endswith("% lower (undecided between drop and optional).")


def test_components_by_size() -> None:
    small = [component(f"part {place}", 0.1 * place, "drop") for place in range(4)]
    first, _ = said(contrasts=[*small, component("scaling", 7.0, "core"), component("gate", 1.0, "unstable")])
    assert first == (
        "1 of 6 components lowers perplexity by more than 5 % (core): scaling, 7.0 [6.0, 8.0] %; 4 by less than 2 % "
        "(drop): improvements from 0.00 to 0.30 %; 1 is unstable (the loss jumped or was not finite): gate, "
        "1.0 [0.0, 2.0] %."
    )
    first, _ = said(contrasts=[component("a", 1.0, "drop"), component("b", -9.0, "drop")])
    assert first == (
        "1 of 2 components lowers perplexity by less than 2 % (drop): a, 1.0 [0.0, 2.0] %; 1 raises it (drop): b, "
        "-9.0 [-10.0, -8.0] %."
    )
    first, _ = said(contrasts=[component("a", 7.0, "core"), component("a", 7.0, "core")])
    assert first.startswith(
        "2 of 2 component contrasts lower perplexity by more than 5 % (core): a (leave one out), 7.0"
    )


def test_arms_that_had_no_chance_are_said_first() -> None:
    first, basis = said(contrasts=[component(name, 1.0, "untuned: drop", FILES) for name in "ab"])
    assert first.startswith("At default learning rates, 2 of 2 components lower perplexity by less than 2 %: a")
    assert basis == (
        "Basis: arms kept their default learning rates (24,576 tokens, 3 seeds); for components these are leads, "
        "not verdicts."
    )
    mixed = [component("a", 7.0, "untuned: core", FILES), component("b", 1.0, "undertrained: drop"),
             component("c", 1.0, "drop")]  # fmt: skip
    one, two, three, basis = said(contrasts=mixed)
    assert one.startswith("At default learning rates, 1 of 3 components lowers perplexity by more than 5 %: a")
    assert two.startswith("With undertrained arms, 1 of 3 components lowers perplexity by less than 2 %: b")
    assert three.startswith("1 of 3 components lowers perplexity by less than 2 % (drop): c")
    assert "in 1 of 3 comparisons arms kept their default learning rates (24,576 to 61,440 tokens" in basis
    assert basis.endswith("; 2 of 3 are leads, not verdicts.")


def test_one_seed_decides_nothing() -> None:
    *_, basis = said(contrasts=[component("a", 7.0, "undecided: one seed", seeds=1)])
    assert basis.endswith(f"1 seed). {ONE_SEED}")
    *_, basis = said(SUMMARY.assign(seeds=1))
    assert basis == ONE_SEED


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (["reproduced"], "The published claim is reproduced (C0)."),
        (["contradicted"] * 2, "Both published claims are contradicted (C0, C1)."),
        (["contradicted_at_the_published_rate_only"] * 3,
         "All 3 published claims are contradicted at the published rate only (C0, C1, C2)."),
        (["inconclusive", "contradicted", "reproduced", "reproduced"],
         "Of 4 published claims 2 are reproduced (C2, C3), 1 is contradicted (C1) and 1 is inconclusive (C0)."),
    ],
)  # fmt: skip
def test_claims(verdicts: list[str], sentence: str) -> None:
    first, basis = said(claims=[claim(f"C{place}", verdict) for place, verdict in enumerate(verdicts)])
    assert first == sentence
    assert basis.startswith("Basis: ")


def test_retrieval() -> None:
    row = {
        "component": "",
        "cell": "x",
        "reference": "y",
        "length": 8,
        "unit": "facts",
        "flattening": 9.0,
        "agrees": "yes",
    }
    rows = [row | {"p_holm": 0.01}, row | {"p_holm": 0.2, "agrees": "open"}, row | {"p_holm": 0.01, "flattening": -9.0}]
    assert said(retrieval_contrasts=rows)[0] == (
        "1 of 3 retrieval contrasts flattens the dependence on depth beyond chance: x against y (8 facts); LIM-PPL "
        "agrees in 2, contradicts in 0 and leaves 1 open."
    )


def test_a_sweep_names_its_best_cell() -> None:
    """Not the largest number in the table, which is relative to another cell."""
    assert said() == [
        "Against the base model, more lowers perplexity the most: by 12.0 [11.0, 13.0] %, with 2,000 trained "
        "parameters; second of 2 cells is some, by 10.0 [9.0, 11.0] %.",
        "Basis: 3 seeds.",
    ]
    assert said(SUMMARY.iloc[:2])[0].startswith("Against the base model, some lowers perplexity by 10.0")
    assert said(SUMMARY.iloc[:1]) == [NOTHING]
    assert said(contrasts=[component("", 7.0, "")]) == said(), "contrasts that ask after no component"
    assert not has_verdicts({})
