"""A study or sweep runs what was planned when it began, and says what differs from another plan."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT, composed, train

import hylo.core.cache
import hylo.launch.jobs
import hylo.studies.spec
import hylo.training.loop
from hylo.core.errors import ConfigError
from hylo.runs.cell import Cell
from hylo.runs.layout import RESULT
from hylo.runs.run import run_cell
from hylo.runs.shared import Session
from hylo.runs.store import read_run

SESSION = Session()


def test_a_sweep_runs_what_was_planned_whatever_is_edited_meanwhile(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """conf/ is edited after the first job: the second one keeps the value with which the sweep began."""
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    (tmp_path / "train.py").write_text((ROOT / "train.py").read_text())
    method = conf / "method" / "rslora.yaml"
    own = hylo.launch.jobs.run_or_report

    def edits(cell: Cell, session: Session) -> Any:
        text = method.read_text()
        if "rank: 3" not in text:
            method.write_text(text.replace("low_rank:\n", "low_rank:\n  rank: 3\n"))
        return own(cell, session)

    monkeypatch.setattr(hylo.launch.jobs, "run_or_report", edits)
    arguments = ["-m", *tiny, "method=lora,rslora", "workers=1", f"outputs={tmp_path / 'o'}"]
    monkeypatch.setattr("launch.ROOT", tmp_path)
    assert train(*arguments) == 0
    assert "rank: 3" in method.read_text()
    ranks = [
        read_run(path.parent).result["config"]["method"]["low_rank"]["rank"] for path in records(tmp_path, "*lora*")
    ]
    assert ranks == [8, 8]
    (plan,) = (tmp_path / "o").glob("*/plan.json")
    assert [
        each["config"]["method"]["low_rank"]["rank"] for each in planned(plan).values() if each["config"]["method"]
    ] == [8, 8]


def records(folder: Path, pattern: str) -> list[Path]:
    return sorted((folder / "o").glob(f"*/{pattern}/{RESULT}"))


def planned(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["cells"]


def test_another_plan_is_told(tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["method=none", f"outputs={tmp_path}"]
    assert train(*tiny, *arguments) == 0
    capsys.readouterr()
    for others in ((), ("trainer.checkpoint_seconds=7",), ("workers=1",)):  # nothing that changes a number
        assert train(*tiny, *others, *arguments) == 0
        assert "had another plan" not in capsys.readouterr().out
    assert train(*tiny, "data.eval_windows=5", *arguments) == 0
    assert "plan.json had another plan: other settings: none (seed 0) (1 in all)" in capsys.readouterr().out
    (before,) = tmp_path.glob("*/before-plan.json")
    assert planned(before)["none (seed 0)"]["config"]["data"]["eval_windows"] == 6


def test_a_process_that_would_run_other_code_refuses(tiny: tuple[str, ...], tmp_path: Path):
    cell = Cell("runs", "none", composed(*tiny, "method=none", f"outputs={tmp_path}"), planned="0" * 12)
    with pytest.raises(ConfigError, match=r"none: source or input files were edited(.|\n)*start again"):
        run_cell(cell, SESSION)
    assert not list(tmp_path.iterdir())
