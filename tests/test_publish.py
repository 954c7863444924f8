"""Published records: complete, without weights or paths of a machine, and enough for the same report."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from launch import TINY, train, write_text
from recorded import SIZE, write_recorded_study

from hylo.publish import main, overview
from hylo.records import ADAPTER, CONFIG, LOCK, RESULT, read_study
from hylo.report import write_report
from hylo.study_file import EXPERIMENTS


def test_a_run_study_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "where_i_work"
    given = (*TINY, *write_text(Path()), f"outputs={secret}", "workers=1")
    assert train("-m", "method=lora,rslora", *given) == 0
    (folder,) = secret.glob("sweep-*")
    to = Path("shared") / folder.name
    assert main([str(folder), str(to)]) == 0
    records = read_study(to / "records")
    assert list(records.cells) == list(read_study(folder).cells)
    files = [path for path in (to / "records").rglob("*") if path.is_file()]
    assert not [path for path in files if ADAPTER in path.parts or path.name == LOCK]
    for path in (path for path in files if path.name in (RESULT, CONFIG, "study.json")):
        assert "where_i_work" not in path.read_text()
    for name in ("summary.csv", "summary.md", "summary.tex"):
        assert (to / "results" / name).read_bytes() == (folder / name).read_bytes()
    assert main([str(to / "records"), "shared/another_name"]) == 0
    assert Path("shared/another_name/results/summary.md").read_text().startswith("# another_name\n")
    rebuilt = write_report(to / "records")
    assert len(rebuilt.summary) == 4


def test_an_unfinished_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_recorded_study(
        tmp_path / "demo", {"some": 20.0}, [0, 1], np.random.default_rng(0), failed=[("some", 1)], **SIZE
    )
    assert main([str(folder), str(tmp_path / "shared")]) == 2
    assert "some-seed1" in capsys.readouterr().err
    assert not (tmp_path / "shared").exists()


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
    """Tables are compared byte for byte; figures and pages follow from them."""
    records = Path(shutil.copytree(EXPERIMENTS / name / "records", tmp_path / name))
    write_report(records)
    for path in (EXPERIMENTS / name / "results").glob("*.csv"):
        assert (records / path.name).read_bytes() == path.read_bytes()
