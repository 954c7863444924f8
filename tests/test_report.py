"""Reports from synthetic records with known effects: numbers by independent computation, files, and errors."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from recorded import write_recorded_study
from rich.console import Console

from hylo.errors import RecordError
from hylo.records import EVAL, RESULT, STUDY, THIRDS, WINDOWS, read_study, write_json
from hylo.report import COLUMNS, Report, conclusions, loss_figure, print_report, summarize, write_report
from hylo.report.__main__ import main
from hylo.report.summary import incomplete
from hylo.report.tables import RANDOM_WEIGHTS, console_tables, interval, number

CELLS = {"low": 20.0, "high": 28.0, "same": 28.0}
PARAMS = {"low": 1_000, "high": 1_500, "same": 1_900}
SIZE: dict[str, Any] = {"windows": 12, "length": 64}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of each cell. Shared: read it, do not change it."""
    rng = np.random.default_rng(0)
    return write_recorded_study(
        tmp_path_factory.mktemp("recorded") / "demo", CELLS, [0, 1, 2], rng, params=PARAMS, **SIZE
    )


@pytest.fixture(scope="module")
def table(recorded: Path) -> pd.DataFrame:
    return summarize(read_study(recorded))


@pytest.fixture
def study(recorded: Path, tmp_path: Path) -> Path:
    """A copy to write to, or to damage."""
    return Path(shutil.copytree(recorded, tmp_path / "demo"))


def _row(table: pd.DataFrame, cell: str, reference: str) -> Any:
    rows = table[(table["cell"] == cell) & (table["reference"] == reference)]
    assert len(rows) == 1
    return rows.iloc[0]


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


def _printed(folder: Path, **options: Any) -> str:
    """What `print_report` prints, without the time to draw the figures."""
    console, study = Console(record=True, **{"width": 80, "file": io.StringIO(), **options}), read_study(folder)
    print_report(Report(study, summarize(study), incomplete(study), []), console)
    return console.export_text()


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
    row = _row(table, cell, reference)
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
        row = _row(table, cell, "untuned")
        assert row["improvement_low"] < truth < row["improvement_high"]
        assert row["ppl_low"] < row["ppl"] < row["ppl_high"]
    assert _row(table, "high", "low")["improvement_low"] > 0
    nothing = _row(table, "same", "high")
    assert nothing["improvement_low"] < 0 < nothing["improvement_high"]
    assert nothing["added_params"] == 400
    assert pd.isna(nothing["params_per_pct"])


def test_the_untuned_row_has_no_reference(recorded: Path, table: pd.DataFrame):
    row = _row(table, "untuned", "")
    assert (
        row[["improvement_pct", "improvement_low", "lim_improvement_pct", "added_params", "params_per_pct"]]
        .isna()
        .all()
    )
    assert pd.isna(row["tokens_per_second"])
    assert row["ppl"] == pytest.approx(np.exp(_log_ppl(recorded, "untuned", 0)))


def test_rows_do_not_depend_on_each_other(tmp_path: Path):
    """One seed, so that the bootstrap draws: dropping a cell must leave the other rows as they are."""
    folder = write_recorded_study(tmp_path / "one", CELLS, [0], np.random.default_rng(1), **SIZE)
    before = summarize(read_study(folder))
    manifest = json.loads((folder / STUDY).read_text())
    _edit(folder / STUDY, cells=[entry for entry in manifest["cells"] if entry["cell"] != "low"])
    after = summarize(read_study(folder))
    for cell, reference in (("untuned", ""), ("same", "untuned"), ("same", "high")):
        pd.testing.assert_series_equal(_row(before, cell, reference), _row(after, cell, reference), check_names=False)


def test_seeds_that_both_sides_have(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "gaps",
        CELLS,
        [0, 1, 2],
        np.random.default_rng(2),
        failed=[("low", 1), ("high", 2), ("same", 0)],
        **SIZE,
    )
    row = _row(summarize(read_study(folder)), "high", "low")
    assert row["seeds"] == 1
    assert row["ppl"] == pytest.approx(np.exp(_log_ppl(folder, "high", 0)))
    expected = 100 * (1 - np.exp(_log_ppl(folder, "high", 0) - _log_ppl(folder, "low", 0)))
    assert row["improvement_pct"] == pytest.approx(expected)


def test_no_seed_in_common(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "gaps", CELLS, [0, 1], np.random.default_rng(3), failed=[("low", 1), ("high", 0)], **SIZE
    )
    row = _row(summarize(read_study(folder)), "high", "low")
    assert row["seeds"] == 0
    assert row[["improvement_pct", "params_per_pct"]].isna().all()
    assert row["ppl"] == pytest.approx(np.exp(_log_ppl(folder, "high", 1)))
    assert "high against low: no complete pair" in "\n".join(conclusions(summarize(read_study(folder))))


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
        f"failed: {run}, hylo.errors.TrainingDiverged: 9 losses in a row are not finite"
        for run in ("low seed 1", "high seed 0", "high seed 1")
    ]
    printed, markdown = _printed(folder), (folder / "summary.md").read_text()
    for line in report.failed:
        assert Path(line.rpartition(", ")[2]).is_dir()
        assert line in printed
        assert line in markdown


def test_nothing_complete_still_reports(tmp_path: Path):
    every = [(cell, 0) for cell in ("untuned", *CELLS)]
    folder = write_recorded_study(tmp_path / "nothing", CELLS, [0], np.random.default_rng(5), failed=every, **SIZE)
    report = write_report(folder)
    assert (len(report.summary), len(report.failed), report.figures) == (0, 4, [])
    assert "high seed 0" in _printed(folder)


def test_without_the_untuned_model(tmp_path: Path):
    rng = np.random.default_rng(6)
    folder = write_recorded_study(tmp_path / "lost", CELLS, [0], rng, failed=[("untuned", 0)], **SIZE)
    write_report(folder)
    table = summarize(read_study(folder))
    assert pd.isna(_row(table, "low", "untuned")["improvement_pct"])
    assert pd.notna(_row(table, "high", "low")["improvement_pct"])


def test_rebuilt_byte_for_byte(study: Path):
    report = write_report(study)
    paths = [study / "summary.csv", study / "summary.md", *report.figures]
    before = [path.read_bytes() for path in paths]
    write_report(study)
    assert [path.read_bytes() for path in paths] == before
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.figures)
    assert len(report.figures) == 2
    assert sorted(path.name for path in study.iterdir() if path.name.startswith(".")) == []


def test_csv_holds_the_table(study: Path):
    report = write_report(study)
    read = pd.read_csv(study / "summary.csv", keep_default_na=False, na_values={c: [""] for c in COLUMNS[2:]})
    assert list(read.columns) == COLUMNS
    assert read["reference"].tolist() == report.summary["reference"].tolist()
    np.testing.assert_array_equal(read["improvement_low"], report.summary["improvement_low"])


def test_without_torch(study: Path):
    code = (
        "import sys; from pathlib import Path; from hylo.report import write_report, print_report; "
        "print_report(write_report(Path(sys.argv[1]))); "
        "loaded = {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(study)], check=True, capture_output=True, cwd=Path(__file__).parents[1]
    )


def test_console_at_120_columns(recorded: Path, table: pd.DataFrame):
    lines = _printed(recorded).splitlines()
    lines = [line.rstrip() for line in lines if not line.startswith("report:")]
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    row = _row(table, "high", "low")
    assert f"{row['improvement_pct']:.1f} [{row['improvement_low']:.1f}, {row['improvement_high']:.1f}]" in text
    for words in ("Against the untuned model", "Against the previous row", "params_per_pct", "12 evaluation windows"):
        assert words in text
    assert "nan" not in text.lower()
    assert "…" not in text


def test_nothing_is_cut_off(tmp_path: Path):
    name = "a_method_whose_name_is_longer_than_any_column_could_be_expected_to_be"
    folder = write_recorded_study(
        tmp_path / "long", {name: 10.0, "b": 20.0}, [0], np.random.default_rng(7), params={name: 6_738_415_616}, **SIZE
    )
    assert name in _printed(folder)
    folded = _printed(folder, width=100, force_terminal=True)
    assert "6,738,415,616" in folded
    assert "…" not in folded
    assert name.startswith(re.findall(r"^(a_\w+) ", folded, re.MULTILINE)[0])


def test_random_weights_are_marked_in_every_table(tmp_path: Path):
    folder = write_recorded_study(tmp_path / "random", CELLS, [0], np.random.default_rng(8), pretrained=False, **SIZE)
    write_report(folder)
    for table in console_tables(read_study(folder), summarize(read_study(folder))):
        assert RANDOM_WEIGHTS in str(table.caption)
    assert _printed(folder).count(RANDOM_WEIGHTS) == 2
    assert (folder / "summary.md").read_text().count(f"**{RANDOM_WEIGHTS}**") == 2


def test_a_failed_audit_marks_its_row_in_every_table(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "leak", CELLS, [0], np.random.default_rng(8), audit={"low": ["causality", "padding"]}, **SIZE
    )
    report = write_report(folder)
    line = "AUDIT FAILED: low [!]: causality, padding"
    assert _printed(folder).count(line) == 2
    text = (folder / "summary.md").read_text()
    assert text.count(f"**{line}**") == 2
    rows = [row for row in text.splitlines() if row.startswith("| ") and "low" in row.split("|")[1] + row.split("|")[2]]
    assert rows
    assert all("low [!]" in row for row in rows)  # as a cell, and as the reference of another one
    assert set(_row(report.summary, "low", "untuned")["audit"].split(", ")) == {"causality", "padding"}
    assert set(report.summary.loc[report.summary["cell"] != "low", "audit"]) == {"passed"}
    told = {sentence.partition(":")[0]: "audit failed" in sentence for sentence in conclusions(report.summary)}
    assert told["low against untuned"]
    assert not told["high against untuned"]


def test_what_intervals_mean_is_said(recorded: Path, tmp_path: Path):
    assert RANDOM_WEIGHTS not in _printed(recorded)
    assert "new seeds and new windows" in _printed(recorded)
    one = write_recorded_study(tmp_path / "one", CELLS, [0], np.random.default_rng(9), **SIZE)
    assert _printed(one).count("evaluation noise only") == 2
    assert "new seeds and" not in _printed(one)


def test_markdown_has_every_column_and_no_nan(study: Path):
    report = write_report(study)
    text = (study / "summary.md").read_text()
    headers = [line for line in text.splitlines() if line.startswith("| cell")]
    assert len(headers) == 2
    shown = set(re.findall(r"\w+", headers[0]))
    assert shown - {"low", "high"} == set(COLUMNS) - {"ppl_low", "ppl_high", "improvement_low", "improvement_high"}
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert "nan" not in text.lower()
    assert "<NA>" not in text
    for path in report.figures:
        assert f"({path.relative_to(study).as_posix()})" in text


def test_conclusions_follow_the_data(table: pd.DataFrame):
    sentences = {line.partition(":")[0]: line for line in conclusions(table)}
    assert "perplexity is lower" in sentences["high against low"]
    assert "the interval holds 0" in sentences["same against high"]
    assert len(sentences) == 5


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
    """A mean NLL of 803 nats in one cell: the exponential overflows, and the report of all others must still appear."""
    for run in study.glob("low-seed*"):
        for table in (EVAL, THIRDS):
            sums = pd.read_parquet(run / table)
            sums.assign(nll_sum=sums["nll_sum"] + 800 * sums["tokens"]).to_parquet(run / table)
    report = write_report(study)
    row = _row(report.summary, "low", "untuned")
    assert row[["ppl", "lim_ppl", "mean_window_ppl", "improvement_pct", "params_per_pct"]].isna().all()
    assert pd.notna(_row(report.summary, "high", "untuned")["improvement_pct"])
    assert "inf" not in (study / "summary.md").read_text()


def test_damaged_records_are_named(study: Path):
    (run,) = study.glob("low-seed0-*")
    (run / EVAL).write_bytes(b"not a table")
    with pytest.raises(RecordError, match=rf"{run.name}/{EVAL} is damaged"):
        summarize(read_study(study))
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


def test_command_line(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert main([str(study)]) == 0
    assert "Against the untuned model" in capsys.readouterr().out
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((30.04, 28.06, 32.12), "30.0 [28.1, 32.1]"),
        ((0.004, -0.03, 0.04), "0.00 [-0.03, 0.04]"),
        ((np.nan, np.nan, np.nan), "–"),
        ((-0.01, -2, 2), "0.0 [-2.0, 2.0]"),
        ((49_152.4, 48_000.0, 50_300.0), "49,152 [48,000, 50,300]"),
    ],
)
def test_interval_text(values: tuple[float, float, float], expected: str):
    assert interval(*values) == expected


def test_number_text():
    assert (number(pd.NA), number(2_442_240, 0), number(-0.0)) == ("–", "2,442,240", "0.0")
