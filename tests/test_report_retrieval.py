"""The report of retrieval probes: accuracy by depth, and contrasts paired by seed and list."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hylo.analysis.retrieval import ends_minus_middle as difference_table
from hylo.analysis.retrieval import interval, retrieval_contrast, retrieval_table
from hylo.core.errors import RecordError
from hylo.evaluation.probes.kv import depth_places
from hylo.evaluation.probes.score import GRIDS, ends_minus_middle
from hylo.report.figures.heatmap import retrieval_heatmap
from hylo.report.figures.retrieval import retrieval_figure
from hylo.report.render.hover import svg
from hylo.runs.layout import PROBE
from hylo.runs.record import RunRecord
from hylo.runs.store import add_probe, read_run, read_study


def write_answers(run: RunRecord, rng: np.random.Generator, ends: float, middle: float, fingerprint: str = "m") -> None:
    """Writes answers on 200 lists, correct with these probabilities."""
    shares = [ends, middle, middle, middle, ends]
    rows = [
        (60, number, depth, place, int(rng.random() < shares[depth]), -1.0 - depth, 4)
        for number in range(200)
        for depth, place in enumerate(depth_places(60, 5))
    ]
    add_probe(
        run.folder, pd.DataFrame(rows, columns=pd.Index(GRIDS["kv"].columns)), {"fingerprint": fingerprint, "facts": {}}
    )


@pytest.fixture
def answered(study: Path) -> Path:
    """The synthetic study with answers: the base model and one cell are lost in the middle, one cell is not."""
    rng = np.random.default_rng(0)
    for cell, runs in read_study(study).cells.items():
        for run in runs:
            if cell != "same":
                write_answers(run, rng, 0.9, 0.9 if cell == "high" else 0.1)
    return study


def test_the_table_of_retrieval(answered: Path) -> None:
    table: Any = retrieval_table(read_study(answered))
    assert table["cell"].unique().tolist() == ["untuned", "low", "high"]
    assert len(table) == 3 * 5
    high: Any = table[table["cell"] == "high"]
    assert high["place"].tolist() == [0, 15, 30, 44, 59]
    assert high["seeds"].tolist() == [3] * 5
    assert high["accuracy"].to_numpy() == pytest.approx(0.9, abs=0.05)
    assert ((high["accuracy_low"] < high["accuracy"]) & (high["accuracy"] < high["accuracy_high"])).all()
    assert (table["accuracy_high"] <= 1).all()
    assert high["logprob"].tolist() == [-1, -2, -3, -4, -5]
    pd.testing.assert_frame_equal(table, retrieval_table(read_study(answered)))


def test_figures_of_the_table_go_from_the_first_fact_to_the_last(answered: Path) -> None:
    table = retrieval_table(read_study(answered))
    panel: Any = retrieval_figure("Title", [], table).get_axes()[0]
    curves = [line for line in panel.lines if len(line.get_xdata()) == 5]
    assert len(curves) == 3
    for line in curves:
        assert line.get_xdata() == pytest.approx([0, 100 * 15 / 59, 100 * 30 / 59, 100 * 44 / 59, 100])
    texts = re.findall(r"<title>([^<]*)</title>", svg(retrieval_heatmap("Title", [], table)))
    assert len(texts) == len(table)
    assert texts[-1].startswith("high, fact 60 of 60: ")


def test_ends_minus_middle_of_cells(answered: Path) -> None:
    table: Any = difference_table(read_study(answered)).set_index("cell")
    assert table["seeds"].to_dict() == {"untuned": 1, "low": 3, "high": 3}
    assert table["value"].to_dict() == pytest.approx({"untuned": 0.8, "low": 0.8, "high": 0.0}, abs=0.05)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_contrasts_are_paired_by_seed_and_list(answered: Path) -> None:
    study = read_study(answered)
    difference, accuracy = retrieval_contrast(study, "high", "untuned", 60)
    assert difference.shape == accuracy.shape == (3, 200)
    assert interval(difference, "a").value == pytest.approx(-0.8, abs=0.06)
    assert interval(accuracy, "a").value == pytest.approx(0.6 * 0.8, abs=0.06)
    untuned = study.cells["untuned"][0].probe.pivot(index="list", columns="depth", values="exact").to_numpy()
    one = study.cells["high"][2].probe.pivot(index="list", columns="depth", values="exact").to_numpy()
    assert accuracy[2] == pytest.approx((one - untuned).mean(axis=1))
    assert difference[2] == pytest.approx(ends_minus_middle(one) - ends_minus_middle(untuned))
    between, _ = retrieval_contrast(study, "high", "low", 60)
    assert between.shape == (3, 200)
    assert interval(between[:1], "a").low < -0.6
    assert np.all(retrieval_contrast(study, "low", "low", 60)[0] == 0)


def test_what_cannot_be_compared_is_named(answered: Path) -> None:
    study = read_study(answered)
    with pytest.raises(RecordError, match=r"'same' was not asked about length 60; run it with the probe"):
        retrieval_contrast(study, "same", "untuned", 60)
    write_answers(study.cells["same"][0], np.random.default_rng(1), 0.5, 0.5, fingerprint="other")
    with pytest.raises(RecordError, match="different probes"):
        retrieval_table(read_study(answered))
    run = study.cells["same"][0]
    (run.folder / PROBE).write_bytes(b"x")
    with pytest.raises(RecordError, match=f"delete {run.folder / PROBE} and"):
        _ = read_run(run.folder).probe


def test_answers_to_another_probe_are_passed_over(answered: Path) -> None:
    """They have different columns and nothing to compare with."""
    run = read_study(answered).cells["low"][0]
    add_probe(run.folder, pd.DataFrame({"word": ["one"], "logprob": [-1.0]}), {"name": "cloze", "fingerprint": "c"})
    study = read_study(answered)
    assert read_run(run.folder).probe_name == "cloze"
    assert read_run(run.folder).probe.columns.tolist() == ["word", "logprob"]
    assert difference_table(study).set_index("cell")["seeds"].to_dict() == {"untuned": 1, "low": 2, "high": 3}
    for other in (run for runs in study.cells.values() for run in runs):
        add_probe(
            other.folder, pd.DataFrame({"word": ["one"], "logprob": [-1.0]}), {"name": "cloze", "fingerprint": "c"}
        )
    assert retrieval_table(read_study(answered)).empty


def test_a_table_without_a_column_is_named(answered: Path) -> None:
    run = read_study(answered).cells["low"][0]
    add_probe(run.folder, run.probe.drop(columns="exact"), {"fingerprint": "m"})
    with pytest.raises(RecordError, match=r"probe\.parquet lacks the columns exact; delete .*probe\.parquet and run"):
        retrieval_table(read_study(answered))


def test_a_study_without_probes_has_empty_tables(recorded: Path) -> None:
    study = read_study(recorded)
    assert retrieval_table(study).empty
    assert difference_table(study).empty
