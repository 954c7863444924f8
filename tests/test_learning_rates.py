"""The learning-rate figure and the table of choices: what was tried, what was chosen, what diverged."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from recorded import choice, write_recorded_study

from hylo.analysis.rates import choice_table, choices, rate_of
from hylo.analysis.summary import summarize
from hylo.core.files import write_json
from hylo.report.figures.learning_rates import learning_rate_figure
from hylo.report.render.hover import svg
from hylo.runs.record import StudyRecord
from hylo.runs.store import read_run, read_study

OLD = {
    "cell": "low", "key": "trainer.learning_rate", "chosen": 0.004, "at_an_end_of_the_grid": False,
    "validation_ppl": {"0.002": 21.0, "0.004": 20.0, "0.016": None},
}  # fmt: skip
"""As in manifests that predate the grid search."""


def study(folder: Path, *notes: dict[str, Any]) -> StudyRecord:
    cells = {"low": 20.0, "high": 21.0}
    write_recorded_study(folder / "demo", cells, [0, 1], np.random.default_rng(0), windows=6, length=16)
    path = folder / "demo" / "study.json"
    write_json(path, json.loads(path.read_text()) | ({"tuning": list(notes)} if notes else {}))
    return read_study(folder / "demo")


def test_the_figure_shows_every_trial(tmp_path: Path) -> None:
    two_keys = choice("high")
    two_keys |= {"keys": [*two_keys["keys"], "method.landmark.learning_rate_multiplier"], "chosen": [2e-3, 8.0]}
    two_keys["tried"] = [
        {"values": [1e-3, 1.0], "ppl": [21.0, 21.2]},
        {"values": [2e-3, 1.0], "ppl": [20.5, 20.7]},
        {"values": [4e-3, 1.0], "ppl": [None, 20.4]},
        {"values": [2e-3, 8.0], "ppl": [20.1, 20.3]},
    ]
    two_keys["defaults"] = [5e-4, 1.0]
    found = study(tmp_path, choice("low"), two_keys)
    figure = learning_rate_figure(found, summarize(found))
    assert figure is not None
    first, second = figure.get_axes()
    assert (first.get_title("left"), second.get_title("left")) == ("low", "high")
    assert first.get_xscale() == "log"
    shown = svg(figure)
    assert "low, trainer.learning_rate=0.002: PPL 20.05" in shown
    assert "high, trainer.learning_rate=0.004, method.landmark.learning_rate_multiplier=1: diverged" in shown
    assert "high, trainer.learning_rate=0.002, method.landmark.learning_rate_multiplier=8: PPL 20.20" in shown
    rings = [line for line in second.lines if line.get_markersize() == 8]
    assert [float(np.asarray(line.get_xdata())[0]) for line in rings] == [2e-3]
    again = learning_rate_figure(found, summarize(found))
    assert again is not None
    assert svg(again) == shown


def test_cells_far_from_the_best_have_another_range(tmp_path: Path) -> None:
    """Their optimum would lie beyond the upper edge otherwise; cells that are near each other stay comparable."""
    near, far = choice("near"), choice("far")
    far["tried"] = [{"values": [30 * rate], "ppl": [30.0 + rate, 31.0]} for rate in (1e-3, 2e-3, 4e-3)]
    far["chosen"] = [30 * 1e-3]
    found = study(tmp_path, choice("low"), near, far, {**far, "cell": "also_far"})
    figure = learning_rate_figure(found, summarize(found))
    assert figure is not None
    ranges = [axes.get_ylim() for axes in figure.get_axes()]
    assert ranges[0] == ranges[1] != ranges[2] == ranges[3]
    assert ranges[0][0] < 20.05 < ranges[0][1] < 30.5 < ranges[2][1]
    assert "some panels have another range of perplexity" in figure.get_supxlabel().replace("\n", " ")
    figure.draw_without_rendering()
    for axes in figure.get_axes():
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))


def test_nothing_chosen_is_no_figure(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert learning_rate_figure(found, summarize(found)) is None
    assert choice_table(found).empty


def test_manifests_of_a_grid_still_read(tmp_path: Path) -> None:
    found = study(tmp_path, OLD)
    assert choices(found)["low"]["trials"] == 3
    (row,) = choice_table(found).to_dict("records")
    assert row["chosen"] == "trainer.learning_rate=0.004"
    assert row["tried"] == "0.002: 21.00; 0.004: 20.00; 0.016: failed"
    assert learning_rate_figure(found, summarize(found)) is not None


def test_the_rate_of_a_run_names_multipliers(tmp_path: Path) -> None:
    found = study(tmp_path)
    run = found.cells["low"][0]
    assert rate_of(run) == "", "a record without a configuration"
    (run.folder / "config.yaml").write_text(
        "trainer: {learning_rate: 0.004}\n"
        "method: {low_rank: {learning_rate_multiplier: 1.0}, landmark: {learning_rate_multiplier: 8.0}, gate: null}\n"
    )
    assert rate_of(read_run(run.folder)) == "0.004, landmark x8"
