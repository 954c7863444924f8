"""Vectors tracked over training: the file, its reader, resuming, the recorded loss, the figure."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from launch import composed, train, train_process
from matplotlib.figure import Figure
from recorded import write_recorded_study
from trained import train_once

from hylo.adapters.landmarks.learnable import spread
from hylo.core.errors import RecordError
from hylo.report import summarize, write_report
from hylo.report.figures.trajectories import trajectory_figure
from hylo.runs.record import RunRecord
from hylo.runs.store import read_study
from hylo.tracking.base import Tracker, log_step
from hylo.training.logs import TRAJECTORY, Trajectory

BOUNDARIES = "boundaries (tokens)"
LEARNABLE = ("method=landmark_learnable", "trainer.steps=6", "trainer.learning_rate=0.01")
TERMS = ("method.landmark.spread_weight=0.3", "method.landmark.repulsion_weight=0.1")
COURSE = ("method.landmark.final_temperature=0.05", "method.landmark.boundary_warmup=0.67")


def _trajectory(folder: Path) -> Any:
    return RunRecord(folder, {}).trajectory


def _curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_the_state_before_training_and_after_each_step(tiny: tuple[str, ...], tmp_path: Path) -> None:
    _, tensors = train_once(composed(*tiny, *LEARNABLE), tmp_path)
    table = _trajectory(tmp_path)
    assert list(table.columns) == ["component", "quantity", "step", "index", "value"]
    assert set(table["component"]) == {"landmark"}
    assert set(table["quantity"]) == {BOUNDARIES}
    wide = table.pivot(index="step", columns="index", values="value")
    assert list(wide.index) == list(range(7))
    assert wide.iloc[0].tolist()[:3] == [0.5, 1.5, 2.5], "in tokens"
    assert wide.iloc[-1].tolist() == (tensors["landmark.beta"] * 32).tolist()
    assert not np.array_equal(wide.iloc[-1], wide.iloc[-2])


def test_no_file_where_nothing_is_followed(tiny: tuple[str, ...], tmp_path: Path) -> None:
    train_once(composed(*tiny, "method=hylorada", "trainer.steps=2"), tmp_path)
    assert not (tmp_path / TRAJECTORY).exists()
    assert "regularization" not in _curve(tmp_path)[0]
    table = _trajectory(tmp_path)
    assert table.empty
    assert list(table.columns) == ["component", "quantity", "step", "index", "value"]


@pytest.mark.parametrize("stop", [3, 5])
def test_an_interrupted_run_has_the_trajectory_of_an_undisturbed_one(
    stop: int, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Interrupted during warm-up, when the optimizer has no state for the boundaries yet, and afterwards.

    A temperature incremented at each step would restart from its first value.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    overrides = (*tiny, *LEARNABLE, *TERMS, *COURSE, "method.landmark.boundary_learning_rate_multiplier=3")
    _, expected = train_once(composed(*overrides), whole)

    def interrupt(line: dict[str, Any]) -> None:
        if line["step"] == stop:
            raise KeyboardInterrupt

    always = composed(*overrides, "trainer.checkpoint_seconds=1e-9")
    with pytest.raises(KeyboardInterrupt):
        train_once(always, parts, on_step=interrupt)
    assert len(_trajectory(parts)) == 31 * (stop + 1)
    with (parts / TRAJECTORY).open("a") as file:
        file.write('{"step": 9, "landm')  # killed while it wrote
    with pytest.raises(RecordError, match=r"trajectory\.jsonl is damaged .* run the cell again"):
        _trajectory(parts)
    taken: list[int] = []
    _, tensors = train_once(always, parts, on_step=lambda line: taken.append(line["step"]))
    assert taken == list(range(stop, 7)), "the state after the step before was the last on disk"
    assert (parts / TRAJECTORY).read_bytes() == (whole / TRAJECTORY).read_bytes()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    for key in ("loss", "regularization", "grad_norm"):
        assert [line[key] for line in _curve(parts)] == [line[key] for line in _curve(whole)]


def test_a_run_stopped_before_its_first_checkpoint_starts_its_trajectory_anew(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    config = composed(*tiny, *LEARNABLE)
    with pytest.raises(KeyboardInterrupt):
        train_once(config, tmp_path, on_step=interrupt)
    train_once(config, tmp_path)
    assert _trajectory(tmp_path)["step"].drop_duplicates().tolist() == list(range(7))
    assert len(_trajectory(tmp_path)) == 7 * 31


@pytest.mark.parametrize(("steps", "lines"), [(1, 2), (200, 201), (201, 102), (1_000, 201), (9_999, 201)])
def test_long_trainings_are_thinned(steps: int, lines: int, tmp_path: Path) -> None:
    """First and last state included; resuming anywhere, even between two lines, gives the same file."""

    def state(step: int) -> dict[str, dict[str, torch.Tensor]]:
        return {"slot": {"length (m)": torch.tensor([float(step), float("nan")])}}

    def write(first: int, last: int) -> None:
        trajectory = Trajectory(tmp_path / TRAJECTORY, state(first), steps=steps, done=first, write=True)
        for step in range(first + 1, last + 1):
            trajectory.add(step, state(step))

    write(0, steps)
    whole = (tmp_path / TRAJECTORY).read_bytes()
    table = _trajectory(tmp_path)
    assert table["step"].nunique() == lines
    assert (table["step"].min(), table["step"].max()) == (0, steps)
    values = table.pivot(index="step", columns="index", values="value")
    assert values[0].tolist() == list(values.index)
    assert values[1].isna().all()
    assert b"NaN" not in whole
    for done in {0, 1, steps // 2, steps - 1, steps}:
        write(done, steps)
        assert (tmp_path / TRAJECTORY).read_bytes() == whole


def test_the_recorded_loss_is_that_of_the_language_model_alone(tiny: tuple[str, ...], tmp_path: Path) -> None:
    cell = (*tiny, *LEARNABLE, "method.landmark.start=log")
    _, plain = train_once(composed(*cell), tmp_path / "plain")
    _, added = train_once(composed(*cell, TERMS[0]), tmp_path / "added")
    without, with_term = _curve(tmp_path / "plain"), _curve(tmp_path / "added")
    assert with_term[0]["loss"] == without[0]["loss"], "the same model before the first step"
    assert with_term[-1]["loss"] != without[-1]["loss"]
    assert not torch.equal(plain["landmark.beta"], added["landmark.beta"])
    assert "regularization" not in without[0]
    start = torch.tensor(_trajectory(tmp_path / "added").query("step == 0")["value"].tolist()) / 32
    assert with_term[0]["regularization"] == pytest.approx(0.3 * float(spread(start)), rel=1e-5)
    assert with_term[-1]["regularization"] < with_term[0]["regularization"]
    curve: Any = RunRecord(tmp_path / "added", {}).curve
    assert curve["regularization"].notna().all()


def test_accumulated_passes_add_the_term_once(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Added to every pass without dividing, it would count once per pass."""
    norms = []
    always = (*tiny, *LEARNABLE, "method.landmark.spread_weight=1e6", "method.landmark.start=log")
    for passes in (1, 3):
        train_once(composed(*always, f"trainer.gradient_accumulation_steps={passes}"), tmp_path / str(passes))
        norms.append(_curve(tmp_path / str(passes))[0]["grad_norm"])
    assert norms[0] > 1e5, "the term's gradient outweighs that of the loss"
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


class Points(Tracker):
    """Keeps logged values in memory, where a service would store them."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, float]] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.by_step[step] = dict(metrics)

    def summary(self, values: Mapping[str, Any]) -> None: ...
    def table(self, name: str, frame: pd.DataFrame) -> None: ...
    def image(self, name: str, path: Path) -> None: ...
    def finish(self, exit_code: int = 0) -> None: ...


def test_the_term_is_logged_beside_the_loss() -> None:
    points = Points()
    log_step(points, {"step": 1, "loss": 2.5, "regularization": 0.25})
    log_step(points, {"step": 2, "loss": 2.0})
    assert points.by_step == {1: {"train/loss": 2.5, "train/regularization": 0.25}, 2: {"train/loss": 2.0}}


SIZE: dict[str, Any] = {"windows": 12, "length": 64, "steps": 4}
CELLS = {"still": 10.0, "moving": 20.0}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two cells and two seeds; in one cell no entry ever moves."""
    folder = write_recorded_study(tmp_path / "demo", CELLS, [0, 1], np.random.default_rng(0), **SIZE)
    for cell in CELLS:
        for seed, run in enumerate(sorted(folder.glob(f"{cell}-seed*"))):
            values = [[0.5, 7.5, 3.5 + (0.25 * seed + step) * (cell == "moving")] for step in range(5)]
            lines = [{"step": step, "slot": {"width (m)": value}} for step, value in enumerate(values)]
            (run / TRAJECTORY).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _figure(folder: Path) -> Figure:
    record = read_study(folder)
    figure = trajectory_figure(record, summarize(record))
    assert figure is not None
    return figure


def test_the_figure_shows_every_entry_with_its_unit(study: Path) -> None:
    figure = _figure(study)
    panels = figure.get_axes()
    assert [axes.get_ylabel() for axes in panels] == ["width (m)", "width (m),\nchange since the start"] * 2
    assert {axes.get_xlabel() for axes in panels} == {"optimizer step"}
    assert [len(axes.lines) for axes in panels] == [6] * 4, "three entries, two seeds"
    legend = panels[3].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["seed 0", "seed 1"]
    assert np.allclose(np.asarray(panels[2].lines[2].get_ydata()), [3.5, 4.5, 5.5, 6.5, 7.5])
    assert np.allclose(np.asarray(panels[3].lines[5].get_ydata()), [0, 1, 2, 3, 4])
    names = [part.get_suptitle() for part in figure.subfigs]
    assert names == ["still: slot", "moving: slot"]


def test_vectors_that_never_move_are_called_that(study: Path) -> None:
    """On the scale of their values, small changes would look the same as none."""
    still, moving = (_figure(study).get_axes()[place].get_title(loc="left") for place in (1, 3))
    assert still == "0 of 6 moved"
    assert moving == "2 of 6 moved, the furthest by 4"


def test_the_report_draws_it_only_where_there_is_something(study: Path) -> None:
    report = write_report(study)
    (path,) = (path for path in report.figures if path.name == "trajectories.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "trajectories.png" in (study / "summary.md").read_text()
    for path in study.glob(f"*-seed*/{TRAJECTORY}"):
        path.unlink()
    shutil.rmtree(study / "figures")
    assert "trajectories.png" not in {path.name for path in write_report(study).figures}
    assert not (study / "figures" / "trajectories.png").exists()


def test_a_run_records_and_draws_it(tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*tiny, *LEARNABLE, "cell=a", figures=True) == 0
    (run,) = read_study(tmp_path / "outputs" / "runs").cells["a"]
    assert sorted(set(run.trajectory["step"])) == list(range(7))
    assert (tmp_path / "outputs/runs/figures/trajectories.png").exists()


@pytest.mark.slow
def test_two_processes_write_what_one_does(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A regularization term of parameters only, and a gradient dropped after averaging, both with synced gradients.

    The alternative, leaving parameters out of the forward pass, makes averaging over processes fail.
    """
    cell = [*tiny, *LEARNABLE, *TERMS, *COURSE, "trainer.device=cpu", "cell=both"]
    done = train_process(*cell, "outputs=two", cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert train(*cell, f"outputs={tmp_path / 'one'}") == 0
    one, two = (read_study(tmp_path / name / "runs").cells["both"][0] for name in ("one", "two"))
    assert two.result["environment"]["processes"] == 2
    assert two.curve["regularization"].to_numpy() == pytest.approx(one.curve["regularization"].to_numpy(), rel=1e-4)
    assert two.trajectory["step"].tolist() == one.trajectory["step"].tolist()
    places = two.trajectory.pivot(index="step", columns="index", values="value").to_numpy()
    assert (places[:5] == places[0]).all()
    assert (places[-1] != places[0]).any()
