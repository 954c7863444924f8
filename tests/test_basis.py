"""The basis of contrasts, read from records of studies with known effects."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from recorded import choice, write_recorded_study

from hylo import stats
from hylo.analysis.basis import basis_of
from hylo.analysis.choice_noise import choice_variance
from hylo.analysis.contrasts import claim_table, contrast_table, effect_of
from hylo.analysis.rates import choice_table, lead, rates_in_words
from hylo.core.files import write_json
from hylo.runs.layout import HALF, RESULT, TRIALS
from hylo.runs.record import StudyRecord
from hylo.runs.store import read_study

CELLS = {"small": 20.0, "large": 20.4}
MANIFEST: dict[str, Any] = {
    "contrasts": [{"cell": "large", "reference": "small", "component": "a", "comparison": "added"}],
    "claims": [
        {"id": "C1", "cell": "large", "reference": "small", "metric": "ppl_improvement", "value": 9.0, "source": "",
         "note": ""},
    ],
}  # fmt: skip


def study(folder: Path, **options: Any) -> StudyRecord:
    """Two cells whose contrast is known to a hundredth of a percent."""
    rng = np.random.default_rng(0)
    write_recorded_study(
        folder / "demo", CELLS, [0, 1, 2], rng, windows=12, length=32, seed_sd=1e-5, difference_sd=1e-5,
        manifest=MANIFEST, **options,
    )  # fmt: skip
    return read_study(folder / "demo")


def contributing(folder: Path, cell: str, section: Mapping[str, Any]) -> None:
    """Adds a contribution section to a cell's runs."""
    for path in (folder / "demo").glob(f"{cell}-*/{RESULT}"):
        write_json(path, json.loads(path.read_text()) | {"contribution": dict(section)})


def verdicts(found: StudyRecord) -> tuple[str, str]:
    return claim_table(found)["verdict"].iloc[0], contrast_table(found)["verdict"].iloc[0]


@pytest.mark.parametrize("tuned", [[], ["large"], ["small"]])
def test_a_claim_on_an_arm_that_was_never_tuned_is_not_contradicted(tmp_path: Path, tuned: Sequence[str]) -> None:
    found = study(tmp_path, tuned=tuned)
    assert verdicts(found) == ("contradicted_at_the_published_rate_only", "untuned: drop")
    assert "default rates" in contrast_table(found)["rests_on"].iloc[0]


def test_both_arms_with_their_chance_are_contradicted(tmp_path: Path) -> None:
    found = study(tmp_path, tuned=["small", "large"])
    assert verdicts(found) == ("contradicted", "drop")
    assert contrast_table(found)["rests_on"].iloc[0] == "own rates, 81,920 tokens"
    assert "learning rates: chosen on validation documents for every cell, 6 trials each" in rates_in_words(found)


def test_against_the_base_model_only_the_trained_arm_needs_a_rate(tmp_path: Path) -> None:
    found = study(tmp_path, tuned=["large"])
    basis = basis_of(found, "large", "untuned", direction=1)
    assert basis.tuned
    assert basis.tokens == 81_920


def test_less_than_the_published_budget_is_undertrained(tmp_path: Path) -> None:
    assert verdicts(study(tmp_path, tuned=["small", "large"], steps=10)) == ("undertrained", "undertrained: drop")


def test_a_best_rate_at_an_end_of_its_grid_is_undertrained(tmp_path: Path) -> None:
    study(tmp_path, tuned=["small", "large"])
    path = tmp_path / "demo" / "study.json"
    tuning = [choice("small"), choice("large", at_an_end=True)]
    write_json(path, json.loads(path.read_text()) | {"tuning": tuning})
    found = read_study(tmp_path / "demo")
    assert verdicts(found)[0] == "undertrained"
    assert "large: best trainer.learning_rate at the edge of its grid" in contrast_table(found)["rests_on"].iloc[0]
    assert choice_table(found)["end"].tolist() == ["no", "trainer.learning_rate"]


def test_the_lead_of_a_value_at_an_end_is_that_over_the_next_one() -> None:
    tried = [((0.002, 8), 20.0), ((0.002, 64), 19.9), ((0.002, 1), 25.0), ((0.004, 64), 21.0), ((0.008, 64), None)]
    found: dict[str, Any] = {
        "keys": ["rate", "multiplier"],
        "chosen": [0.002, 64],
        "tried": [{"values": [*values], "ppl": [ppl, ppl]} for values, ppl in tried],
    }
    assert lead(found, "multiplier") == pytest.approx(100 * (20.0 / 19.9 - 1))
    assert lead(found, "rate") == pytest.approx(100 * (21.0 / 19.9 - 1))
    found["tried"] = [each for each in found["tried"] if each["values"][0] != 0.004]
    assert np.isnan(lead(found, "rate")), "the next value failed"
    assert np.isnan(lead({**found, "tried": found["tried"][1:2]}, "rate")), "no other value was tried"


@pytest.mark.parametrize(
    ("half", "moving"),
    [
        ({"small": 15.0, "large": 15.1}, True),  # the contrast has grown from 0.1 to 0.5 %
        ({"small": 15.0, "large": 15.9}, False),  # it has shrunk: more steps will not make it reach the claim
        ({"small": 15.0}, False),  # unknown
        ({}, False),
    ],
)
def test_a_contrast_that_still_grows_is_undertrained(tmp_path: Path, half: dict[str, float], moving: bool) -> None:
    found = study(tmp_path, tuned=["small", "large"], half=half)
    assert verdicts(found)[0] == ("undertrained" if moving else "contradicted")
    assert ("still moving" in contrast_table(found)["rests_on"].iloc[0]) == moving


def test_moving_within_its_noise_is_no_movement(tmp_path: Path) -> None:
    """At half of the steps each seed is 2 % off in its own direction, so a mean shift of 0.4 % is just noise."""
    study(tmp_path, tuned=["small", "large"], half={"small": 15.0, "large": 15.1})
    rng = np.random.default_rng(2)
    for path in sorted((tmp_path / "demo").glob(f"large-*/{HALF}")):
        table: Any = pd.read_parquet(path)
        table["nll_sum"] += table["tokens"] * rng.normal(0, 0.02)
        table.to_parquet(path)
    assert basis_of(read_study(tmp_path / "demo"), "large", "small", direction=1).shortfalls == ()


def test_a_component_that_hardly_moved_is_undertrained(tmp_path: Path) -> None:
    study(tmp_path, tuned=["small", "large"])
    slots = {"low_rank": {"change": 0.3}, "landmark": {"change": 0.002}}
    contributing(tmp_path, "large", {"slots": slots, "undertrained": ["landmark"]})
    contributing(tmp_path, "small", {"slots": {"low_rank": {"change": 0.3}}, "undertrained": []})
    found = read_study(tmp_path / "demo")
    assert verdicts(found)[0] == "undertrained"
    assert "landmark changed the hidden state by only 0.2 %" in contrast_table(found)["rests_on"].iloc[0]
    path = tmp_path / "demo" / "study.json"
    searched = choice("large")
    searched["keys"] = [*searched["keys"], "method.landmark.learning_rate_multiplier"]
    searched |= {
        "chosen": [2e-3, 1.0],
        "tried": [{**each, "values": [*each["values"], 1.0]} for each in searched["tried"]],
    }
    before = json.loads(path.read_text())
    write_json(path, before | {"tuning": [choice("small"), searched]})
    assert verdicts(read_study(tmp_path / "demo"))[0] == "contradicted", "larger rates were tried and did not pay"
    write_json(path, before)
    contributing(tmp_path, "small", {"slots": slots, "undertrained": ["landmark"]})
    assert verdicts(read_study(tmp_path / "demo"))[0] == "contradicted", "both have it: it is not what they differ in"


def test_the_interval_covers_the_choice_of_the_rate(tmp_path: Path) -> None:
    """Trials ranked by chance: seeds disagree about the best of three rates."""
    found = study(tmp_path, tuned=["small", "large"])
    plain = effect_of(found, "large", "small")
    rng = np.random.default_rng(1)
    rows = [
        (cell, setting, seed, window, 100 + rng.normal(0, 1) + noise, 31)
        for cell in ("small", "large")
        for setting in range(3)
        for seed, noise in ((100, rng.normal(0, 2)), (101, rng.normal(0, 2)))
        for window in range(12)
    ]
    columns = pd.Index(["cell", "setting", "seed", "window", "nll_sum", "tokens"])
    table = pd.DataFrame(rows, columns=columns)
    table.to_parquet(tmp_path / "demo" / TRIALS)
    again = read_study(tmp_path / "demo")
    wider = effect_of(again, "large", "small")
    assert plain is not None
    assert wider is not None
    sums = table["nll_sum"].to_numpy().reshape(2, 3, 2, 12)
    expected = sum(stats.choice_variance([1e-3, 2e-3, 4e-3], arm, np.full(12, 31.0)) for arm in sums)
    assert choice_variance(again, "large", "small") == pytest.approx(expected)
    assert choice_variance(again, "small") < expected
    assert wider.value == plain.value
    assert wider.high - wider.low > 2 * (plain.high - plain.low)
    row: Any = contrast_table(again).iloc[0]
    assert row["low"] < contrast_table(found).iloc[0]["low"]
