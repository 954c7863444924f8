"""Properties of every study figure, discovered as in reports: new figures are tested here automatically."""

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from recorded import CELLS, PARAMS, SIZE, UNTUNED, write_recorded_study
from test_contrasts import claim, contrast
from test_report_retrieval import write_answers

import hylo.report
from hylo.analysis.summary import summarize
from hylo.report import write_report
from hylo.report.__main__ import main
from hylo.report.figures import all_figures, study_figures
from hylo.report.figures.base import MOST, drawable, study_figure
from hylo.report.figures.style import WIDTH
from hylo.report.render.files import save
from hylo.report.render.hover import svg
from hylo.report.tables.caption import caption
from hylo.runs.layout import STUDY
from hylo.runs.record import StudyRecord
from hylo.runs.store import read_study
from hylo.training.logs import TRAJECTORY

SHIPPED = [
    "claims", "contrasts", "improvement", "attribution", "learning_rates", "ppl_by_position", "pareto", "retrieval",
    "retrieval_heatmap", "trajectories",
]  # fmt: skip
FIGURES = all_figures()
MANIFEST = {
    "contrasts": [contrast("high", "low", "size"), contrast("low", UNTUNED)],
    "claims": [claim("up", "high", "low", 12.0)],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    """A study with data for every shipped figure."""
    folder, rng = tmp_path_factory.mktemp("whole") / "demo", np.random.default_rng(3)
    options = {"params": PARAMS, "manifest": MANIFEST, "tuned": list(CELLS)}
    write_recorded_study(folder, CELLS, [0, 1, 2], rng, **options, **SIZE)
    for runs in read_study(folder).cells.values():
        for run in runs:
            write_answers(run, rng, 0.9, 0.4)
    for run in folder.glob("high-seed*"):
        lines = [{"step": step, "slot": {"width (m)": [0.5 + step, 7.5]}} for step in range(3)]
        (run / TRAJECTORY).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_study(folder)


@pytest.fixture(scope="module")
def summary(whole: StudyRecord) -> pd.DataFrame:
    return summarize(whole)


def _drawn(name: str, study: StudyRecord, summary: pd.DataFrame) -> Figure:
    figure = FIGURES[name](study, summary)
    if figure is None:
        pytest.skip("the study of this test has nothing for it")
    return figure


def test_the_order_of_what_is_shipped(whole: StudyRecord, summary: pd.DataFrame) -> None:
    names = [name for name, _ in study_figures(whole, summary)]
    assert [name for name in names if name in SHIPPED] == SHIPPED


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_the_same_bytes_twice(name: str, whole: StudyRecord, summary: pd.DataFrame, tmp_path: Path) -> None:
    one, other = (save(_drawn(name, whole, summary), tmp_path / part, name) for part in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


@pytest.mark.parametrize("name", FIGURES)
def test_what_a_reader_needs(name: str, whole: StudyRecord, summary: pd.DataFrame) -> None:
    """A title that names the study, a caption that names the evaluation data, tooltips, nothing cut off."""
    figure = _drawn(name, whole, summary)
    assert figure.get_suptitle().startswith("demo: ")
    caption = figure.get_supxlabel().replace("\n", " ")
    assert "seeds per cell" in caption or "trials per cell" in caption
    assert svg(figure).count("<title>") >= 2
    assert figure.get_figwidth() == WIDTH
    figure.draw_without_rendering()
    for axes in figure.get_axes():
        box = axes.get_tightbbox()
        assert box is None or (box.x0 >= -1 and box.x1 <= figure.bbox.width + 1), axes


@pytest.mark.parametrize("name", FIGURES)
def test_little_to_draw_is_no_error(name: str, tmp_path: Path) -> None:
    """The base model and one cell without a complete run."""
    rng = np.random.default_rng(0)
    folder = write_recorded_study(tmp_path / "demo", {"low": 20.0}, [0], rng, failed=[("low", 0)], **SIZE)
    study = read_study(folder)
    FIGURES[name](study, summarize(study))


def test_a_name_is_given_once() -> None:
    def nothing(study: StudyRecord, summary: pd.DataFrame) -> None: ...

    with pytest.raises(ValueError, match=r"figure 'pareto' is registered twice, by hylo\.report\.figures\.pareto\."):
        study_figure("pareto", order=1)(nothing)
    with pytest.raises(ValueError, match="a name is lower-case letters"):
        study_figure("../pareto", order=1)
    assert list(all_figures()) == list(FIGURES)


def test_a_table_that_fails_costs_no_other(whole: StudyRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with mock.patch("hylo.report.tables.decisions.attribution_table", side_effect=KeyError("share")):
        assert main([str(whole.folder), "--out", str(tmp_path)]) == 1
        with pytest.raises(KeyError):
            hylo.report.decisions(whole)
    said = "table attribution cannot be made: KeyError: 'share'"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "summary.md").read_text().replace("\\", "")
    assert {path.name for path in tmp_path.glob("*.csv")} >= {"summary.csv", "contrasts.csv", "claims.csv"}
    assert not (tmp_path / "attribution.csv").exists()


def test_a_table_that_a_study_no_longer_has_is_deleted(
    whole: StudyRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only from the folder of a report: elsewhere, a file of that name is somebody else's."""
    monkeypatch.setattr(hylo.report, "all_figures", dict)
    folder = shutil.copytree(whole.folder, tmp_path / "study")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "claims.csv").write_text("mine")
    write_report(folder)
    assert (folder / "claims.csv").exists()
    manifest = json.loads((folder / STUDY).read_text())
    (folder / STUDY).write_text(json.dumps(manifest | {"claims": []}))
    write_report(folder)
    assert not (folder / "claims.csv").exists()
    assert (folder / "contrasts.csv").exists()
    write_report(folder, tmp_path / "own")
    assert (tmp_path / "own" / "claims.csv").read_text() == "mine"


def test_a_figure_that_fails_costs_no_other(whole: StudyRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def broken(study: StudyRecord, summary: pd.DataFrame) -> Figure | None:
        raise ValueError("no such <symbol>")

    (tmp_path / "figures").mkdir()
    for suffix in ("png", "svg"):
        (tmp_path / "figures" / f"claims.{suffix}").write_text("of an earlier report")
    with mock.patch.object(hylo.report, "all_figures", return_value=FIGURES | {"claims": broken}):
        assert main([str(whole.folder), "--out", str(tmp_path)]) == 1
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(SHIPPED) - {"claims"}
    said = "figure claims cannot be drawn: ValueError: no such"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "summary.md").read_text().replace("\\", "")
    assert "no such &lt;symbol&gt;" in (tmp_path / "report.html").read_text()


def test_a_figure_draws_as_many_cells_as_can_be_read(tmp_path: Path) -> None:
    """Named ones first, then the best; the caption says which, and the tables have all."""
    cells = {f"cell{index}": 10.0 + index for index in range(MOST + 5)}
    named = {"cell": "cell0", "reference": "cell1", "component": None, "comparison": "added"}
    folder = write_recorded_study(
        tmp_path / "many", cells, [0], np.random.default_rng(0), **SIZE, manifest={"contrasts": [named]}
    )
    study = read_study(folder)
    summary = summarize(study)
    shown, rows = drawable(study, summary)
    assert len(shown.cells) == MOST
    assert {"untuned", "cell0", "cell1", f"cell{MOST + 4}"} <= shown.cells.keys()
    assert "cell2" not in shown.cells
    assert set(rows["cell"]) <= shown.cells.keys()
    assert f"{MOST} of {MOST + 6} cells are drawn" in " ".join(caption(shown, rows))
    report = write_report(folder)
    assert len(report.summary) >= MOST + 6
    assert report.missing == []
