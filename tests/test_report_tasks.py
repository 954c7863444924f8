"""The report of tasks: scores by cell, contrasts paired by seed and item. Records are written by hand: no lm-eval."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from recorded import printed
from scipy import stats as reference

from hylo.analysis.task_scores import task_contrasts, task_scores
from hylo.core.errors import RecordError
from hylo.evaluation.tasks.scores import item_scores
from hylo.report import summarize, summary_tables, write_report
from hylo.report.tables.decisions import decisions
from hylo.runs.record import RunRecord
from hylo.runs.store import add_probe, read_study

ITEMS = 200


def sampled(task: str, scores: Any, metric: str = "acc") -> dict[str, list[dict[str, Any]]]:
    """Samples as lm-eval returns them."""
    return {
        task: [
            {"doc_id": item, "filter": "none", "metrics": [metric, "mcc"], metric: value, "mcc": (1, 0)}
            for item, value in enumerate(scores)
        ]
    }


def write_scores(run: RunRecord, samples: dict[str, Any], fingerprint: str = "t", better: Any = None) -> None:
    found = item_scores(samples, better or {})
    add_probe(run.folder, found.table(), {"name": "tasks", "fingerprint": fingerprint, "tasks": found.section()})


@pytest.fixture
def answered(study: Path) -> Path:
    """The synthetic study: items are hard or easy for all cells alike, and `low` answers 10 % of them better."""
    rng = np.random.default_rng(0)
    easy, easier = rng.random(ITEMS) < 0.5, rng.random(ITEMS) < 0.1
    for cell, runs in read_study(study).cells.items():
        for run in runs:
            better = easier & (rng.random(ITEMS) < 0.95) & (cell == "low")
            write_scores(run, sampled("lines", (easy | better).astype(float)))
    return study


def test_the_table_of_scores(answered: Path) -> None:
    table: Any = task_scores(read_study(answered)).set_index("cell")
    assert table["seeds"].to_dict() == {"untuned": 1, "low": 3, "high": 3, "same": 3}
    assert (table["items"] == ITEMS).all()
    run = read_study(answered).cells["untuned"][0]
    assert table.loc["untuned", "score"] == pytest.approx(run.probe["value"].mean())
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()
    assert table["metric"].unique().tolist() == ["acc"], "mcc has no number per item"
    assert run.result["probe"]["tasks"]["lines"]["left_out"] == ["mcc"]


def test_contrasts_are_paired_by_seed_and_item(answered: Path) -> None:
    """With one seed the interval is that of the paired t-test; unpaired it would be wider."""
    folder = read_study(answered)
    table: Any = task_contrasts(folder)
    rows = {(row["cell"], row["reference"]): row for row in table.to_dict("records")}
    assert set(rows) == {(cell, "untuned") for cell in ("low", "high", "same")} | {("high", "low"), ("same", "high")}
    row = rows["low", "untuned"]
    assert row["seeds"] == 3
    assert row["difference"] == pytest.approx(0.05, abs=0.04)
    assert row["low"] > 0
    assert row["p_holm"] < 0.01
    assert row["paired"] < row["unpaired"] / 1.5
    assert rows["same", "high"]["difference"] == rows["same", "high"]["paired"] == 0
    assert rows["same", "high"]["unpaired"] > 0.09

    cells = {cell: runs[:1] for cell, runs in folder.cells.items()}
    single: Any = task_contrasts(type(folder)(folder.folder, folder.manifest, cells)).iloc[0]
    one, other = (cells[name][0].probe["value"].to_numpy() for name in ("low", "untuned"))
    interval = reference.ttest_rel(one, other).confidence_interval()
    assert (single["low"], single["high"]) == pytest.approx((interval.low, interval.high))
    errors = [values.std(ddof=1) / np.sqrt(ITEMS) for values in (one, other)]
    assert single["unpaired"] == pytest.approx(1.96 * np.hypot(*errors))


def test_scores_stand_beside_perplexity(answered: Path) -> None:
    study = read_study(answered)
    summary = summarize(study)
    table = summary_tables(study, summary)[0]
    headers = [column.header for column in table.columns]
    assert headers[headers.index("PPL [95 %]") + 1] == "lines acc [95 %]"
    assert "lines acc [95 %]" in [column.header for column in table.brief]
    column = next(column for column in table.columns if column.header.startswith("lines"))
    shown = {row["cell"]: column.show(row) for row in table.frame.to_dict("records")}
    scores: Any = task_scores(study).set_index("cell")
    assert {cell: float(text.split()[0]) for cell, text in shown.items()} == pytest.approx(
        scores["score"].to_dict(), abs=6e-3
    )
    assert {each.name for each in decisions(study)} >= {"tasks", "task_contrasts"}
    assert "Tasks: contrasts" in printed(answered, width=160)


def test_a_report_has_files_and_sections_of_tasks(answered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hylo.report.all_figures", dict)
    report = write_report(answered)
    assert report.missing == []
    assert len(pd.read_csv(answered / "tasks.csv")) == 4
    assert len(pd.read_csv(answered / "task_contrasts.csv")) == 5
    assert "Tasks: contrasts" in (answered / "report.html").read_text()


def test_the_first_sentences_name_components_that_change_a_task(answered: Path) -> None:
    from hylo.report.tables.answer import answer

    study = read_study(answered)
    contrast = {"cell": "low", "reference": "same", "component": "it", "comparison": "added"}
    study.manifest["contrasts"] = [contrast]
    said = answer(study, summarize(study), {each.name: each for each in decisions(study)})
    assert any(line.startswith("1 of 1 component contrast changes lines (acc): it, 0.0") for line in said)


def test_more_tasks_than_columns_have_their_own_table_alone(answered: Path) -> None:
    study = read_study(answered)
    for runs in study.cells.values():
        for run in runs:
            tasks = {name: sampled(name, [0.0, 1.0])[name] for name in "abcd"}
            write_scores(run, tasks, fingerprint="four")
    study = read_study(answered)
    columns = summary_tables(study, summarize(study))[0].columns
    assert not any("acc" in column.header for column in columns)
    assert len(set(task_scores(study)["task"])) == 4


def test_a_study_without_tasks_shows_none(recorded: Path) -> None:
    study = read_study(recorded)
    assert task_scores(study).empty
    assert task_contrasts(study).empty
    assert not any("acc" in column.header for column in summary_tables(study, summarize(study))[0].columns)


def test_what_cannot_be_compared_is_named(answered: Path) -> None:
    runs = read_study(answered).cells["low"]
    write_scores(runs[0], sampled("lines", [1.0] * (ITEMS - 1)))
    with pytest.raises(RecordError, match=r"probe\.parquet lacks answers; delete it"):
        task_scores(read_study(answered))
    write_scores(runs[0], sampled("lines", [1.0] * ITEMS), fingerprint="other")
    with pytest.raises(RecordError, match="different probes"):
        task_contrasts(read_study(answered))


def test_perplexities_are_weighted_by_their_words(answered: Path) -> None:
    """exp of the mean in nats per word is the perplexity of the whole."""
    rng = np.random.default_rng(1)
    words, nats = rng.integers(5, 50, 30), rng.uniform(20, 90, 30)
    texts = [(-float(loss), int(count)) for loss, count in zip(nats, words, strict=True)]
    for runs in read_study(answered).cells.values():
        for run in runs:
            write_scores(run, sampled("text", texts, "word_perplexity"), fingerprint="words")
    study = read_study(answered)
    row: Any = task_scores(study).iloc[0]
    assert (row["metric"], row["better"]) == ("word_perplexity_nats", "lower")
    assert row["score"] == pytest.approx(nats.sum() / words.sum())
    contrast: Any = task_contrasts(study).iloc[0]
    assert contrast["difference"] == 0
    assert np.isnan(contrast["unpaired"])


def test_metrics_of_any_kind_are_read() -> None:
    """Filters name their own metrics, the first metric is the main one, and lm-eval says what is better."""
    samples = [
        {"doc_id": item, "filter": name, "metrics": ["exact_match", "brier_score"], "exact_match": item == 1,
         "brier_score": (0, [0.5, 0.5])}
        for name in ("strict-match", "none") for item in (1, 0)
    ]  # fmt: skip
    samples += [{"doc_id": 0, "filter": "none", "metrics": ["ter"], "ter": 0.25}]
    found = item_scores({"gsm": samples}, {"gsm": {"ter": False, "exact_match": True}})
    assert found.main == {"gsm": "exact_match, strict-match"}
    section = found.section()["gsm"]
    assert section["lower_is_better"] == ["ter"]
    assert section["left_out"] == ["brier_score, strict-match", "brier_score"]
    assert section["metrics"]["exact_match"] == {"items": 2, "value": 0.5, "standard_error": 0.5}
    assert found.table()[["item", "value"]].to_numpy().tolist() == [[0, 0.0], [1, 1.0], [0, 0.0], [1, 1.0], [0, 0.25]]
    alone = item_scores({"cola": [samples[0] | {"metrics": ["brier_score"]}]}, {})
    assert alone.section()["cola"]["metrics"] == {}
    assert [line.partition(":")[0] for line in alone.said()] == ["cola"]
    assert "gsm: left out, because an item has no number of its own" in found.said()[-1]
