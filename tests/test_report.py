"""Reports from synthetic records with known effects: independently computed numbers, files, and errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from recorded import CELLS, PARAMS, SIZE, printed, row_of, write_recorded_study

from hylo.analysis.cost import cost_of
from hylo.core.errors import RecordError
from hylo.core.files import write_json
from hylo.report import COLUMNS, loss_figure, summarize, summary_tables, write_report
from hylo.report.__main__ import main
from hylo.report.tables.numbers import DIGITS, written
from hylo.runs.layout import EVAL, RESULT, STUDY, THIRDS, WINDOWS
from hylo.runs.record import StudyRecord
from hylo.runs.store import read_study


def _log_ppl(folder: Path, cell: str, seed: int, *, table: str = EVAL, third: int | None = None) -> float:
    """Log PPL of one run, read with plain pandas."""
    (path,) = folder.glob(f"{cell}-seed{seed}-*")
    sums: Any = pd.read_parquet(path / table)
    sums = sums if third is None else sums[sums["third"] == third]
    return float(sums["nll_sum"].sum() / sums["tokens"].sum())


def _window_ppls(folder: Path, cell: str, seed: int) -> np.ndarray:
    """The perplexity of each window of one run, read with plain pandas."""
    (path,) = folder.glob(f"{cell}-seed{seed}-*")
    sums: Any = pd.read_parquet(path / EVAL).groupby("window")[["nll_sum", "tokens"]].sum()
    return np.exp(sums["nll_sum"] / sums["tokens"]).to_numpy()


def _edit(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def test_rows_and_columns(table: pd.DataFrame):
    assert list(table.columns) == COLUMNS
    assert list(zip(table["cell"], table["reference"], strict=True)) == [
        ("untuned", ""),
        ("low", "untuned"),
        ("high", "untuned"),
        ("same", "untuned"),
        ("high", "low"),
        ("same", "high"),
    ]
    assert table["seeds"].tolist() == [1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(("cell", "reference"), [("low", "untuned"), ("high", "low")])
def test_known_numbers(recorded: Path, table: pd.DataFrame, cell: str, reference: str):
    row = row_of(table, cell, reference)
    ours = [_log_ppl(recorded, cell, seed) for seed in (0, 1, 2)]
    theirs = [_log_ppl(recorded, reference, 0 if reference == "untuned" else seed) for seed in (0, 1, 2)]
    assert row["ppl"] == pytest.approx(np.exp(np.mean(ours)))
    assert row["improvement_pct"] == pytest.approx(100 * (1 - np.exp(np.mean(np.subtract(ours, theirs)))))
    middle = [_log_ppl(recorded, cell, seed, table=THIRDS, third=1) for seed in (0, 1, 2)]
    middle_reference = [
        _log_ppl(recorded, reference, 0 if reference == "untuned" else seed, table=THIRDS, third=1)
        for seed in (0, 1, 2)
    ]
    assert row["lim_ppl"] == pytest.approx(np.exp(np.mean(middle)))
    assert row["lim_improvement_pct"] == pytest.approx(
        100 * (1 - np.exp(np.mean(np.subtract(middle, middle_reference))))
    )
    means = [_window_ppls(recorded, cell, seed).mean() for seed in (0, 1, 2)]
    assert row["mean_window_ppl"] == pytest.approx(np.mean(means))
    assert row["added_params"] == PARAMS[cell] - PARAMS.get(reference, 0)
    assert row["params_per_pct"] == pytest.approx(row["added_params"] / row["improvement_pct"])
    assert (row["train_seconds"], row["tokens_per_second"], row["peak_memory_bytes"]) == (41.0, 513.0, 2**30 + 2)


def test_intervals_find_the_true_effects(table: pd.DataFrame):
    for cell, truth in CELLS.items():
        row = row_of(table, cell, "untuned")
        assert row["improvement_low"] < truth < row["improvement_high"]
        assert row["ppl_low"] < row["ppl"] < row["ppl_high"]
    assert row_of(table, "high", "low")["improvement_low"] > 0
    nothing = row_of(table, "same", "high")
    assert nothing["improvement_low"] < 0 < nothing["improvement_high"]
    assert nothing["added_params"] == 400
    assert pd.isna(nothing["params_per_pct"])


def test_the_row_of_the_base_model_has_no_reference(recorded: Path, table: pd.DataFrame):
    row = row_of(table, "untuned", "")
    assert (
        row[["improvement_pct", "improvement_low", "lim_improvement_pct", "added_params", "params_per_pct"]]
        .isna()
        .all()
    )
    assert pd.isna(row["tokens_per_second"])
    assert row["ppl"] == pytest.approx(np.exp(_log_ppl(recorded, "untuned", 0)))


def test_rows_do_not_depend_on_each_other(tmp_path: Path):
    """One seed, so that the bootstrap is used: dropping a cell must not change the other rows."""
    folder = write_recorded_study(tmp_path / "one", CELLS, [0], np.random.default_rng(1), **SIZE)
    before = summarize(read_study(folder))
    manifest = json.loads((folder / STUDY).read_text())
    _edit(folder / STUDY, cells=[entry for entry in manifest["cells"] if entry["cell"] != "low"])
    after = summarize(read_study(folder))
    for cell, reference in (("untuned", ""), ("same", "untuned"), ("same", "high")):
        pd.testing.assert_series_equal(
            row_of(before, cell, reference), row_of(after, cell, reference), check_names=False
        )


def test_seeds_that_both_sides_have(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "gaps",
        CELLS,
        [0, 1, 2],
        np.random.default_rng(2),
        failed=[("low", 1), ("high", 2), ("same", 0)],
        **SIZE,
    )
    row = row_of(summarize(read_study(folder)), "high", "low")
    assert row["seeds"] == 1
    assert row["ppl"] == pytest.approx(np.exp(_log_ppl(folder, "high", 0)))
    expected = 100 * (1 - np.exp(_log_ppl(folder, "high", 0) - _log_ppl(folder, "low", 0)))
    assert row["improvement_pct"] == pytest.approx(expected)


def test_no_seed_in_common(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "gaps", CELLS, [0, 1], np.random.default_rng(3), failed=[("low", 1), ("high", 0)], **SIZE
    )
    row = row_of(summarize(read_study(folder)), "high", "low")
    assert row["seeds"] == 0
    assert row[["improvement_pct", "params_per_pct"]].isna().all()
    assert row["ppl"] == pytest.approx(np.exp(_log_ppl(folder, "high", 1)))


def test_failed_cells_are_named_and_have_no_row(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "broken",
        CELLS,
        [0, 1],
        np.random.default_rng(4),
        failed=[("high", 0), ("high", 1), ("low", 1)],
        **SIZE,
    )
    report = write_report(folder)
    assert "high" not in set(report.summary["cell"])
    assert [line.rpartition(", ")[0] for line in report.failed] == [
        f"failed: {run}, hylo.core.errors.TrainingDiverged: 9 losses in a row are not finite"
        for run in ("low seed 1", "high seed 0", "high seed 1")
    ]
    shown, markdown = printed(folder), (folder / "summary.md").read_text()
    for line in report.failed:
        assert Path(line.rpartition(", ")[2]).is_dir()
        assert line in shown
        assert line in markdown


def test_nothing_complete_still_reports(tmp_path: Path):
    every = [(cell, 0) for cell in ("untuned", *CELLS)]
    folder = write_recorded_study(tmp_path / "nothing", CELLS, [0], np.random.default_rng(5), failed=every, **SIZE)
    report = write_report(folder)
    assert (len(report.summary), len(report.failed), report.figures) == (0, 4, [])
    assert "high seed 0" in printed(folder)


def test_without_the_base_model(tmp_path: Path):
    rng = np.random.default_rng(6)
    folder = write_recorded_study(tmp_path / "lost", CELLS, [0], rng, failed=[("untuned", 0)], **SIZE)
    write_report(folder)
    table = summarize(read_study(folder))
    assert pd.isna(row_of(table, "low", "untuned")["improvement_pct"])
    assert pd.notna(row_of(table, "high", "low")["improvement_pct"])


def test_rebuilt_byte_for_byte(study: Path):
    report = write_report(study)
    texts = [study / f"summary.{kind}" for kind in ("csv", "md", "tex")]
    paths = [*texts, study / "report.html", *report.figures, *(path.with_suffix(".svg") for path in report.figures)]
    before = [path.read_bytes() for path in paths]
    write_report(study)
    assert [path.read_bytes() for path in paths] == before
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.figures)
    assert {path.stem for path in report.figures} >= {"improvement", "ppl_by_position", "pareto"}
    assert sorted(path.name for path in study.iterdir() if path.name.startswith(".")) == []


def test_csv_holds_the_table(study: Path):
    report = write_report(study)
    read = pd.read_csv(study / "summary.csv", keep_default_na=False, na_values={c: [""] for c in COLUMNS[2:]})
    assert list(read.columns) == COLUMNS
    assert read["reference"].tolist() == report.summary["reference"].tolist()
    np.testing.assert_allclose(read["improvement_low"], report.summary["improvement_low"], rtol=1e-9)
    texts = pd.read_csv(study / "summary.csv", dtype=str)["ppl"].tolist()
    assert texts == [written(value) for value in report.summary["ppl"]]
    assert max(len(text.replace(".", "")) for text in texts) == DIGITS


@pytest.mark.slow
def test_without_torch(study: Path):
    code = (
        "import sys; from pathlib import Path; from hylo.report import write_report, print_report; "
        "print_report(write_report(Path(sys.argv[1]))); "
        "loaded = {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(study)], check=True, capture_output=True, cwd=Path(__file__).parents[1]
    )


def test_loss_curves_are_means_over_seeds(recorded: Path):
    record = read_study(recorded)
    lines = {line.get_label(): line for line in loss_figure(record).axes[0].lines}
    assert set(lines) == set(CELLS)
    expected = np.mean([run.curve["loss"] for run in record.cells["low"]], axis=0)
    np.testing.assert_allclose(np.asarray(lines["low"].get_ydata()), expected)


def test_other_windows_are_refused(study: Path):
    (run,) = study.glob("high-seed1-*")
    windows = pd.read_parquet(run / WINDOWS)
    windows.assign(first_token=windows["first_token"] + 1).to_parquet(run / WINDOWS)
    with pytest.raises(
        RecordError, match=r"'high' \(seed 0\) and 'high' \(seed 1\) were evaluated on different windows"
    ):
        summarize(read_study(study))


def test_other_windows_of_a_whole_cell_are_refused(study: Path):
    for run in study.glob("high-*"):
        windows = pd.read_parquet(run / WINDOWS)
        windows.assign(document="another").to_parquet(run / WINDOWS)
    with pytest.raises(RecordError, match=r"'high' .*'untuned' .*different windows"):
        summarize(read_study(study))


@pytest.mark.parametrize("table", [EVAL, THIRDS])
def test_a_missing_sum_is_not_counted_as_zero(study: Path, table: str):
    (run,) = study.glob("low-seed0-*")
    sums = pd.read_parquet(run / table)
    sums.loc[5, "nll_sum"] = np.nan
    sums.to_parquet(run / table)
    with pytest.raises(RecordError, match=f"{table} has nll_sum = nan in window"):
        summarize(read_study(study))


def test_a_perplexity_too_large_for_a_number_is_missing(study: Path):
    """A mean NLL of 803 nats in one cell: the exponential overflows, but all other cells must still be reported."""
    for run in study.glob("low-seed*"):
        for table in (EVAL, THIRDS):
            sums = pd.read_parquet(run / table)
            sums.assign(nll_sum=sums["nll_sum"] + 800 * sums["tokens"]).to_parquet(run / table)
    report = write_report(study)
    row = row_of(report.summary, "low", "untuned")
    assert row[["ppl", "lim_ppl", "mean_window_ppl", "improvement_pct", "params_per_pct"]].isna().all()
    assert pd.notna(row_of(report.summary, "high", "untuned")["improvement_pct"])
    assert "inf" not in (study / "summary.md").read_text()


def test_damaged_records_are_named(study: Path):
    (run,) = study.glob("low-seed0-*")
    (run / EVAL).write_bytes(b"not a table")
    ((line,),) = read_study(study).unread.values()
    assert line.startswith("damaged: low, ")
    assert f"{run.name}/{EVAL} is damaged" in line
    report = write_report(study)
    assert row_of(report.summary, "low", "untuned")["seeds"] == 2, "the other two"
    assert row_of(report.summary, "high", "untuned")["seeds"] == 3
    assert report.failed == [line]
    assert f"{run.name}/{EVAL} is damaged" in (study / "report.html").read_text()
    assert main([str(study)]) == 1
    sums = pd.read_parquet(next(study.glob("low-seed1-*")) / EVAL)
    sums[sums["window"] != 3].to_parquet(run / EVAL)
    with pytest.raises(RecordError, match="other windows than"):
        summarize(read_study(study))


def test_a_missing_entry_and_a_double_seed_are_named(study: Path):
    (run,) = study.glob("low-seed0-*")
    training = json.loads((run / RESULT).read_text())["training"]
    _edit(run / RESULT, training={key: value for key, value in training.items() if key != "seconds"})
    with pytest.raises(RecordError, match=r"result.json lacks training\.seconds"):
        summarize(read_study(study))
    _edit(run / RESULT, training=training, seed=1)
    with pytest.raises(RecordError, match="both seed 1 of 'low'"):
        summarize(read_study(study))


@pytest.mark.slow
def test_published_records_stay_as_they_are(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    records = study.rename(study.parent / "records")
    before = sorted(records.rglob("*"))
    assert main([str(records)]) == 2
    fix = f"python -m hylo.report {records} --out outputs/{tmp_path.name}-report"
    assert fix in capsys.readouterr().err
    assert main([str(records), "--out", str(records)]) == 2
    one, several = tmp_path / "one", tmp_path / "several"
    assert main([str(records), "--out", str(one)]) == 0
    assert f"report: {one / 'report.html'}" in capsys.readouterr().out
    assert sorted(records.rglob("*")) == before
    assert (one / "figures" / "improvement.svg").exists()
    assert "(figures/improvement.png)" in (one / "summary.md").read_text()

    copy = Path(shutil.copytree(records, tmp_path / "copy"))
    assert main([str(records), str(copy), "--out", str(several)]) == 2
    assert f"{several / 'demo'} has the report of {records}" in capsys.readouterr().err
    _edit(copy / STUDY, study="other study")
    assert main([str(records), str(copy), "--out", str(several)]) == 0
    assert sorted(path.name for path in several.iterdir()) == ["demo", "other-study"]
    assert (several / "demo" / "report.html").read_bytes() == (one / "report.html").read_bytes()


@pytest.mark.slow
def test_command_line(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert main([str(study)]) == 0
    assert "Against the base model" in capsys.readouterr().out
    assert main([str(study / "missing"), str(study)]) == 2
    streams = capsys.readouterr()
    assert "does not exist; run a study" in streams.err
    assert "Against the previous row" in streams.out  # the other study is still reported

    monkeypatch.chdir(study)
    assert main([]) == 2
    assert "holds no recorded study" in capsys.readouterr().err
    study.parent.joinpath("outputs").mkdir()
    study.rename(study.parent / "outputs" / "demo")
    monkeypatch.chdir(study.parent)
    assert main([]) == 0
    assert "outputs/demo/summary.md" in capsys.readouterr().out


def cost_lines(study: Path) -> list[str]:
    found = read_study(study)
    notes = [line for table in summary_tables(found, summarize(found)) for line in table.notes]
    return [line for line in notes if line.startswith("training: ")]


def test_the_cost_of_a_study(study: Path):
    """Three cells of three seeds, of which the base model's run trains nothing; older records do not say how busy."""
    assert not cost_lines(study)
    steps = [run.result["training"]["steps"] for runs in read_study(study).cells.values() for run in runs]
    seconds = sum(2.0 * each + seed for each in set(steps) - {0} for seed in range(3)) * 3
    for number, path in enumerate(sorted(study.glob(f"*/{RESULT}"))):
        training = json.loads(path.read_text())["training"]
        _edit(path, training=training | {"utilization": 0.5 + 0.25 * (number % 2)})
    found = read_study(study)
    cost = cost_of(found)
    assert cost is not None
    assert (cost.runs, cost.seconds, cost.tokens) == (9, seconds, 4_096 * sum(steps))
    assert cost.tokens_per_second == pytest.approx(cost.tokens / seconds, abs=0.05)
    assert cost.peak_memory_bytes == 2**30 + 2
    assert cost.utilization is not None
    assert 0.5 < cost.utilization < 0.75
    assert cost_lines(study) == [str(cost)], "once, not below every table"
    assert "9 runs, " in str(cost)
    assert cost_of(StudyRecord(found.folder, found.manifest, {"untuned": found.cells["untuned"]})) is None
