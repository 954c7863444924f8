"""Contrasts, claims and attribution from synthetic records with known effects."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from recorded import SIZE, UNTUNED, write_recorded_study

from hylo.analysis.contrasts import SHAPLEY, attribution_table, claim_table, contrast_table, criteria_table
from hylo.analysis.retrieval_contrasts import retrieval_cells, retrieval_contrasts
from hylo.core.files import write_json
from hylo.evaluation.metrics import all_metrics
from hylo.evaluation.probes.score import GRIDS
from hylo.report import summarize, write_report
from hylo.runs.layout import PROBE, RESULT, STUDY
from hylo.runs.record import StudyRecord
from hylo.runs.store import read_study
from hylo.studies.runner import undecided

CELLS = {"small": 20.0, "large": 28.0, "same": 28.0}
PARAMS = {"small": 1_000, "large": 1_500, "same": 1_900}


def contrast(cell: str, reference: str, component: str | None = None, comparison: str = "added") -> dict[str, Any]:
    return {"cell": cell, "reference": reference, "component": component, "comparison": comparison}


def claim(name: str, cell: str, reference: str, value: float, metric: str = "ppl_improvement") -> dict[str, Any]:
    named = {"id": name, "study": "demo", "source": "a page", "cell": cell, "reference": reference, "metric": metric}
    return named | {"value": value, "unit": "percent", "note": ""}


MANIFEST = {
    "contrasts": [contrast("large", "small", "size"), contrast("same", "large", "nothing"), contrast("small", UNTUNED)],
    "claims": [
        claim("up", "large", "small", 12.0),
        claim("none", "same", "large", 9.0),
        claim("down", "large", "small", -6.0, "lim_ppl_improvement"),
        claim("number", "small", "", 69.0, "ppl"),
    ],
}


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    """Three seeds of cells whose differences far exceed the noise."""
    folder = tmp_path_factory.mktemp("decided") / "demo"
    rng = np.random.default_rng(3)
    quiet = {"seed_sd": 0.002, "difference_sd": 0.01}
    return read_study(
        write_recorded_study(
            folder, CELLS, [0, 1, 2], rng, params=PARAMS, manifest=MANIFEST, tuned=list(CELLS), **quiet, **SIZE
        )
    )


def test_contrasts(decided: StudyRecord) -> None:
    table: Any = contrast_table(decided)
    assert list(zip(table["cell"], table["measure"], strict=True)) == [
        *((cell, metric.name) for metric in all_metrics() for cell in ("large", "same", "small")),
    ]
    summary: Any = summarize(decided)
    row: Any = table.iloc[0]
    (other,) = summary[(summary["cell"] == "large") & (summary["reference"] == "small")].to_dict("records")
    for column, same in (("effect_pct", "improvement_pct"), ("low", "improvement_low"), ("high", "improvement_high")):
        assert row[column] == pytest.approx(other[same])
    assert row["params_per_pct"] == pytest.approx(500 / row["effect_pct"])
    assert table["verdict"].tolist() == ["core", "drop", *[""] * (len(table) - 2)]
    assert 0 < row["detectable_pct"] < 10
    assert table["p_holm"].iloc[1] == pytest.approx(contrast_p(decided, "same", "large")), "the largest stays as it is"


def contrast_p(study: StudyRecord, cell: str, reference: str) -> float:
    """The p-value of a pair by scipy's t distribution, computed independently from the interval's width."""
    from hylo.analysis.contrasts import effect_of

    effect = effect_of(study, cell, reference)
    assert effect is not None
    return effect.p_value()


def test_claims(decided: StudyRecord) -> None:
    table: Any = claim_table(decided).set_index("id")
    assert table["verdict"].to_dict() == {
        "up": "reproduced",
        "none": "contradicted",
        "down": "contradicted",
        "number": "inconclusive",
    }
    assert table.index.tolist() == ["up", "none", "down", "number"]
    assert math.isnan(table["effect_pct"]["number"])
    assert table["seeds_to_decide"]["up"] in (2, 3)


def test_a_missing_cell_leaves_its_contrasts_out(tmp_path: Path) -> None:
    """A number in its place would look like a result, and so would dropping the claim."""
    manifest = {"contrasts": [contrast("gone", "small", "a")], "claims": [claim("gone", "gone", "small", 5.0)]}
    folder = write_recorded_study(
        tmp_path / "demo", {"small": 20.0, "gone": 25.0}, [0, 1], np.random.default_rng(0),
        failed=[("gone", 0), ("gone", 1)], manifest=manifest, **SIZE,
    )  # fmt: skip
    study = read_study(folder)
    assert contrast_table(study).empty
    assert claim_table(study)["verdict"].tolist() == ["inconclusive"]
    assert attribution_table(study).empty
    assert list(undecided(study)) == ["gone against small", "claim gone"]


@pytest.mark.slow
def test_flags_of_any_seed_reach_the_verdict(tmp_path: Path) -> None:
    folder = write_recorded_study(
        tmp_path / "demo", CELLS, [0, 1, 2], np.random.default_rng(3),
        audit={"large": ["causality"]}, manifest=MANIFEST, seed_sd=0.002, difference_sd=0.01, **SIZE,
    )  # fmt: skip
    (path,) = folder.glob("same-seed1-*")
    result = json.loads((path / RESULT).read_text())
    result["training"]["nonfinite_steps"] = 1
    write_json(path / RESULT, result)
    table: Any = contrast_table(read_study(folder))
    assert table["verdict"].tolist()[:2] == ["leaking", "unstable"]
    criteria: Any = criteria_table(read_study(folder))
    assert criteria["no non-finite loss"].tolist() == ["yes", "no"]
    assert criteria["PPL > 2 %"].tolist() == ["yes", "no"]
    write_report(folder)
    shown = [line for line in (folder / "summary.md").read_text().splitlines() if line.startswith("| ")]
    assert not [line for line in shown if re.search(r"\| large \|", line)], "its audit failed, and every table says so"
    assert "[!]" not in (folder / "contrasts.csv").read_text()


def test_shapley_values_share_out_the_gain(tmp_path: Path) -> None:
    """Against the definition: the mean contribution of a factor over all orders."""
    gains = {"": 5.0, "a": 10.0, "b": 12.0, "a+b": 20.0}
    names = {"": "nothing", **{name: name for name in gains if name}}
    factorial = [{"on": name.split("+") if name else [], "cell": names[name]} for name in gains]
    folder = write_recorded_study(
        tmp_path / "demo", {names[name]: gain for name, gain in gains.items()}, [0, 1, 2], np.random.default_rng(1),
        params={"nothing": 100, "a": 110, "b": 130, "a+b": 140}, manifest={"factorial": factorial}, **SIZE,
    )  # fmt: skip
    study = read_study(folder)
    table: Any = attribution_table(study)
    assert (table["comparison"] == SHAPLEY).all()
    assert dict(zip(table["component"], table["added_params"], strict=True)) == {"a": 10, "b": 30}
    summary = summarize(study)
    log_ppl = {row["cell"]: math.log(row["ppl"]) for row in summary.to_dict("records")}
    for factor in ("a", "b"):
        steps = []
        for order in itertools.permutations("ab"):
            before = "".join(order[: order.index(factor)])
            after = "+".join(sorted({*before, factor}))
            steps.append(log_ppl[after] - log_ppl[before or "nothing"])
        value = table.loc[table["component"] == factor, "effect_pct"].item()
        assert value == pytest.approx(-100 * math.expm1(np.mean(steps)))
    total = table["effect_pct"].map(lambda value: math.log1p(-value / 100)).sum()
    assert total == pytest.approx(log_ppl["a+b"] - log_ppl["nothing"])


def test_a_study_says_what_is_undecided(decided: StudyRecord, tmp_path: Path) -> None:
    assert not list(undecided(decided))
    noisy = write_recorded_study(
        tmp_path / "demo", CELLS, [0, 1, 2], np.random.default_rng(3), manifest=MANIFEST, seed_sd=0.3, **SIZE
    )
    assert "large against small" in list(undecided(read_study(noisy)))


def test_older_manifests_still_read(decided: StudyRecord) -> None:
    """Records that predate contrasts have neither contrasts nor a base cell per row."""
    old = {key: value for key, value in decided.manifest.items() if key not in MANIFEST}
    old["cells"] = [{"cell": entry["cell"], "runs": entry["runs"]} for entry in old["cells"]]
    study = StudyRecord(decided.folder, old, decided.cells)
    assert contrast_table(study).empty
    assert claim_table(study).empty
    pairs = list(zip(summarize(study)["cell"], summarize(study)["reference"], strict=True))
    assert ("large", "small") in pairs
    assert isinstance(contrast_table(study), pd.DataFrame)
    assert (decided.folder / STUDY).exists()


def write_probe(folder: Path, lists: int = 12, depths: int = 5) -> None:
    """Answers for every run: correct at both ends, and in the middle only for `large`."""
    for path in folder.glob("*/" + RESULT):
        result = json.loads(path.read_text())
        rows = []
        for one, depth in itertools.product(range(lists), range(depths)):
            lucky = (one + result["seed"] + depth) % 4 == 0
            exact = result["cell"] == "large" or depth in (0, depths - 1) or lucky
            rows.append((5, one, depth, depth, int(exact), -1.0, 3))
        pd.DataFrame(rows, columns=pd.Index(GRIDS["kv"].columns)).to_parquet(path.parent / PROBE)
        write_json(path, result | {"probe": {"fingerprint": "0" * 12}})


def test_flattening_of_the_u(tmp_path: Path) -> None:
    folder = write_recorded_study(
        tmp_path / "demo", CELLS, [0, 1, 2], np.random.default_rng(3), manifest=MANIFEST, **SIZE
    )
    write_probe(folder)
    study = read_study(folder)
    table: Any = retrieval_contrasts(study).set_index("cell")
    assert table.index.tolist() == ["large", "same", "small"]
    assert table["flattening"]["large"] == pytest.approx(75, abs=5), "three quarters of the middle were wrong"
    assert table["accuracy"]["large"] == pytest.approx(45, abs=5), "of five depths, three"
    assert table["flattening"]["same"] == pytest.approx(-table["flattening"]["large"])
    assert table["low"]["large"] > 0 > table["high"]["same"]
    assert abs(table["flattening"]["small"]) < 5
    assert table["agrees"].tolist() == ["yes", "open", "open"]
    cells: Any = retrieval_cells(study).set_index("cell")
    assert cells["ends_minus_middle"]["large"] == 0
    assert cells["accuracy"]["large"] == 100


def test_without_a_probe_there_is_no_retrieval(decided: StudyRecord) -> None:
    assert retrieval_contrasts(decided).empty
    assert retrieval_cells(decided).empty


def test_looks_share_one_p_value(decided: StudyRecord) -> None:
    """The last look's p-value alone would ignore earlier looks: with three looks planned it is too small."""
    looked = StudyRecord(decided.folder, dict(decided.manifest) | {"looks": [2, 3, 5], "level": 0.98}, decided.cells)
    one: Any = contrast_table(decided)
    other: Any = contrast_table(looked)
    assert (other["p_holm"] >= one["p_holm"]).all()
    assert (other["high"] - other["low"] > one["high"] - one["low"]).all(), "98 % intervals are wider"


def test_a_contrast_asked_for_in_two_ways_is_one_hypothesis(decided: StudyRecord) -> None:
    """Counting it once per comparison would make the correction too strong."""
    once = dict(decided.manifest) | {
        "contrasts": [contrast("large", "small", "size"), contrast("same", "large", "none")]
    }
    twice = once | {"contrasts": [*once["contrasts"], contrast("large", "small", "size", "leave_one_out")]}
    tables = [contrast_table(StudyRecord(decided.folder, each, decided.cells)) for each in (once, twice)]
    one, other = (table.loc[table["measure"] == "ppl", "p_holm"].tolist() for table in tables)
    assert one == other[:2]
    assert other[2] == other[0]


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    """Its interval may exclude zero, and another training run may still disagree."""
    quiet = {"seed_sd": 0.002, "difference_sd": 0.01}
    folder = write_recorded_study(
        tmp_path / "demo", CELLS, [0], np.random.default_rng(3), params=PARAMS, manifest=MANIFEST, **quiet, **SIZE
    )
    study = read_study(folder)
    assert set(claim_table(study)["verdict"]) == {"inconclusive"}
    assert contrast_table(study)["verdict"].tolist()[:2] == ["undecided: one seed"] * 2
