"""Published records: complete, without weights or machine-specific paths, and sufficient for the same report."""

import csv
import itertools
import math
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from launch import TINY, train, write_text
from omegaconf import OmegaConf
from recorded import SIZE, write_recorded_study

import hylo.report
import hylo.runs.run
from hylo.publish import main, overview
from hylo.report import write_report
from hylo.report.tables.numbers import written
from hylo.runs.layout import ADAPTER, CONFIG, RESULT
from hylo.runs.store import read_study
from hylo.studies.spec import EXPERIMENTS


@pytest.mark.slow
def test_a_run_study_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "where_i_work"
    given = (*TINY, *write_text(Path()), f"outputs={secret}", "workers=1")
    assert train("-m", "method=lora,rslora", *given, figures=True) == 0
    (folder,) = secret.glob("sweep-*")
    to = Path("shared") / folder.name
    assert main([str(folder), str(to)]) == 0
    records = read_study(to / "records")
    assert list(records.cells) == list(read_study(folder).cells)
    files = [path for path in (to / "records").rglob("*") if path.is_file()]
    assert not [path for path in files if ADAPTER in path.parts]
    for path in (path for path in files if path.name in (RESULT, CONFIG, "study.json")):
        assert "where_i_work" not in path.read_text()
    configs = [OmegaConf.load(path) for path in files if path.name == CONFIG]
    assert [config.tracking for config in configs] == [None] * 3, "it names a user of W&B"
    for name in ("summary.csv", "summary.md", "summary.tex"):
        assert (to / "results" / name).read_bytes() == (folder / name).read_bytes()
    assert main([str(to / "records"), "shared/another_name"]) == 0
    assert Path("shared/another_name/results/summary.md").read_text().startswith("# another_name\n")
    rebuilt = write_report(to / "records")
    assert len(rebuilt.summary) == 4
    shutil.rmtree(secret)
    shutil.copytree(to / "records", folder)  # as on another machine
    with mock.patch.object(hylo.runs.run, "execute", side_effect=AssertionError("ran again")):
        assert train("-m", "method=lora,rslora", *given, figures=True) == 0


def test_an_unfinished_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_recorded_study(
        tmp_path / "demo", {"some": 20.0}, [0, 1], np.random.default_rng(0), failed=[("some", 1)], **SIZE
    )
    to = tmp_path / "shared"
    for reason in ("failed: some seed 1", "not run: some"):
        assert main([str(folder), str(to)]) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert "or --so-far for its complete cells" in said
        (folder / "some-seed1-00000001" / RESULT).unlink(missing_ok=True)
    assert main([str(folder), str(to), "--so-far"]) == 2
    assert "no cell is complete together with its base model" in capsys.readouterr().err
    assert not to.exists()


def test_the_complete_cells_of_an_unfinished_study_are_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the contrasts between them, and with every trial; its report is rebuilt like any other."""
    contrasts = [
        {"cell": cell, "reference": reference, "component": f"{cell}'s", "comparison": "added"}
        for cell, reference in (("more", "some"), ("late", "some"), ("late", "more"))
    ]
    folder = write_recorded_study(
        tmp_path / "demo", {"some": 20.0, "more": 22.0, "late": 25.0}, [0, 1, 2], np.random.default_rng(0),
        failed=[("late", 2)], tuned=["some", "more", "late"], manifest={"contrasts": contrasts, "claims": []}, **SIZE
    )  # fmt: skip
    to = tmp_path / "shared"
    assert main([str(folder), str(to)]) == 2
    assert "late seed 2" in capsys.readouterr().err
    assert main([str(folder), str(to), "--so-far"]) == 0
    study = read_study(to / "records")
    assert list(study.cells) == ["untuned", "some", "more"]
    assert [(each["cell"], each["reference"]) for each in study.manifest["contrasts"]] == [("more", "some")]
    assert [note["cell"] for note in study.manifest["tuning"]] == ["some", "more", "late"]
    assert study.base == "untuned"
    assert sorted(path.name.partition("-")[0] for path in (to / "records").iterdir() if path.is_dir()) == [
        "more", "more", "more", "some", "some", "some", "untuned",
    ]  # fmt: skip
    said = (to / "results" / "summary.md").read_text()
    assert "not run yet: late; p-values are corrected over the contrasts so far" in said
    assert not write_report(to / "records").failed


def test_a_folder_of_this_machine_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = write_text(Path())[:-1]
    secret = tmp_path / "where_i_work.txt"
    Path("test.txt").rename(secret)
    assert train(*TINY, *given, f"data.test_files=[{secret}]", "method=none") == 0
    assert main(["outputs/runs", "shared/runs"]) == 2
    message = capsys.readouterr().err
    assert f"data.test_files = {secret}" in message
    assert "data.train_files" not in message
    assert not Path("shared").exists()


def test_the_table_of_claims_is_that_of_the_results() -> None:
    assert overview(EXPERIMENTS) in (EXPERIMENTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.parent.parent.name for path in EXPERIMENTS.glob("*/records/study.json")))
def test_shipped_results_are_those_of_the_records(name: str, tmp_path: Path) -> None:
    """Compares all tables; figures and pages follow from them."""
    records = Path(shutil.copytree(EXPERIMENTS / name / "records", tmp_path / name))
    with mock.patch.object(hylo.report, "all_figures", return_value={}):
        write_report(records)
    assert differences(EXPERIMENTS / name / "results", records) == []


def test_shipped_tables_hold_ten_digits() -> None:
    paths = list(EXPERIMENTS.glob("*/results/*.csv"))
    numbers = {text for path in paths for row in rows(path) for text in row if NUMBER.fullmatch(text)}
    assert numbers
    assert [text for text in numbers if text != written(text)] == []


NUMBER = re.compile(r"-?\d+(?=[.e])(\.\d+)?(e[+-]\d+)?")
"""A table cell with a measured or computed number; counts are compared as text."""
TABLE = "cell,seeds,ppl,p\nbase,1,29.88313439,\nlora,3,-2.0,1.2e-140\n"
CHANGES = {
    "nothing": (TABLE, []),
    "the tenth digit, which another processor may round to the other side": (TABLE.replace("39,", "38,"), []),
    "the ninth digit": (TABLE.replace("39,", "49,"), [2]),
    "the ninth digit of a small number": (TABLE.replace("1.2e", "1.20000001e"), [3]),
    "a sign": (TABLE.replace("-2.0", "2.0"), [3]),
    "no number": (TABLE.replace("-2.0", ""), [3]),
    "a count": (TABLE.replace(",3,", ",4,"), [3]),
    "a text": (TABLE.replace("lora", "dora"), [3]),
    "a header": (TABLE.replace("ppl", "PPL"), [1]),
    "a row": (TABLE.partition("lora")[0], [3]),
    "a column": ("cell,seeds,ppl\nbase,1,29.88313439\nlora,3,-2.0\n", [1, 2, 3]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_results_is_found(what: str, tmp_path: Path) -> None:
    """Ensures that the comparison of shipped results can fail, and at what."""
    changed, lines = CHANGES[what]
    for folder, text in (("one", TABLE), ("other", changed)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "table.csv").write_text(text)
    for one, other in (("one", "other"), ("other", "one")):
        found = differences(tmp_path / one, tmp_path / other)
        assert [said.partition(":")[0] for said in found] == [f"table.csv, line {line}" for line in lines]
    (tmp_path / "other" / "table.csv").unlink()
    assert differences(tmp_path / "one", tmp_path / "other") == ["table.csv is in one folder only"]


def differences(shipped: Path, rebuilt: Path) -> list[str]:
    """Differences between the tables of two folders: in text or counts, or in a number by more than 1e-9 of its size,
    which exceeds rounding differences between processors."""
    names, others = ({path.name for path in folder.glob("*.csv")} for folder in (shipped, rebuilt))
    found = [f"{name} is in one folder only" for name in sorted(names ^ others)]
    for name in sorted(names & others):
        tables = rows(shipped / name), rows(rebuilt / name)
        for line, (row, other) in enumerate(itertools.zip_longest(*tables, fillvalue=[]), 1):
            if len(row) != len(other) or not all(map(_same, row, other)):
                found.append(f"{name}, line {line}: shipped {row}, rebuilt {other}")
    return found


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def _same(text: str, other: str) -> bool:
    if NUMBER.fullmatch(text) and NUMBER.fullmatch(other):
        return math.isclose(float(text), float(other), rel_tol=1e-9)
    return text == other
