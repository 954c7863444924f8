"""Where the search of a tuned cell starts, and in which order cells are searched."""

import math
from pathlib import Path
from random import Random
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hylo.runs.shared import Session
from hylo.studies.arm import Arm
from hylo.studies.grid_search import best_setting, next_setting, start_settings, step
from hylo.studies.plan import Plan
from hylo.studies.spec import EXPERIMENTS, ContrastConfig, Start, read_study_file, study_names, tuned_cells
from hylo.studies.starts import moved_grids, starts_of, waves
from hylo.studies.tuning import search

RATE, TIMES = "trainer.learning_rate", "method.landmark.learning_rate_multiplier"
BOUNDS = [(0.0, 1.0), (0.0, math.inf)]


def contrast(cell: str, reference: str, component: str | None = "part") -> ContrastConfig:
    return ContrastConfig(cell=cell, reference=reference, component=component)


def test_a_cell_starts_at_the_earlier_cell_of_its_first_contrast() -> None:
    contrasts = [contrast("b", "a"), contrast("c", "b"), contrast("c", "a"), contrast("c", "less")]
    assert starts_of(["a", "b", "c", "less"], contrasts) == {"b": "a", "c": "b", "less": "c"}
    assert starts_of(["b", "a"], contrasts) == {"a": "b"}, "the other way round where the reference comes later"


def test_peers_and_the_base_model_are_nothing_to_start_at() -> None:
    assert starts_of(["a", "b"], [contrast("b", "a", None), contrast("a", "base"), contrast("b", "base")]) == {}


@given(st.integers(1, 4), st.integers(1, 12), st.randoms(use_true_random=False))
def test_every_cell_is_searched_once_and_after_the_one_it_starts_at(at_once: int, count: int, random: Random) -> None:
    cells = [f"c{place}" for place in range(count)]
    starts = {cells[place]: random.choice(cells[:place]) for place in range(1, count) if random.random() < 0.7}
    done: list[str] = []
    for names in waves(cells, starts, at_once):
        assert 1 <= len(names) <= at_once
        assert all(starts[name] in done for name in names if name in starts)
        done += names
    assert sorted(done) == sorted(cells)


def test_cells_without_a_start_are_searched_in_their_order_and_side_by_side() -> None:
    assert [*waves(["a", "b", "c"], {}, 2)] == [["a", "b"], ["c"]]


def test_the_first_key_is_moved_to_its_middle_and_others_to_their_start() -> None:
    grids = {RATE: [1e-3, 2e-3, 4e-3], TIMES: [1.0, 8.0]}
    there = {RATE: [0.00142, 0.00283, 0.00566], TIMES: [8.0, 64.0]}
    assert moved_grids(grids, {RATE: 0.00283, TIMES: 8.0}, BOUNDS) == there
    assert moved_grids(grids, {}, BOUNDS) == grids
    assert moved_grids({RATE: [1e-3, 2e-3]}, {RATE: 0.12345678}, BOUNDS) == {RATE: [0.12345678, 0.247]}


def test_a_grid_is_not_moved_out_of_the_range_of_its_key() -> None:
    assert moved_grids({RATE: [1e-3, 2e-3, 4e-3]}, {RATE: 0.8}, BOUNDS) == {RATE: [1e-3, 2e-3, 4e-3]}


@given(st.floats(1e-4, 1e-1), st.floats(0.05, 50))
def test_the_best_of_the_reference_is_among_the_settings_of_the_component(rate: float, times: float) -> None:
    """With the component's own key at its first value."""
    score = lambda setting: math.log(setting[0] / rate) ** 2  # noqa: E731
    reference: dict[tuple[float, ...], float] = {setting: score(setting) for setting in start_settings([[1e-3, 4e-3]])}
    while len(reference) < 6 and (setting := next_setting(reference, [[1e-3, 4e-3]], BOUNDS)) is not None:
        reference[setting] = score(setting)
    best = best_setting(reference)
    grids = moved_grids({RATE: [1e-3, 2e-3, 4e-3], TIMES: [times, 8 * times]}, {RATE: best[0]}, BOUNDS)
    first = start_settings([*grids.values()])
    assert (*best, times) in first
    assert step(grids[RATE]) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("published", "chosen", "again"),
    [([], 2e-3, False), ([1e-3, 2e-3, 4e-3], 2e-3, False), ([2e-3], 2e-3, False), ([1e-3, 2e-3, 4e-3], 2.83e-3, True)],
)
def test_a_search_that_cannot_use_what_is_published_says_so(
    published: list[float], chosen: float, again: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours of trials may depend on it."""
    plain, arm = (Arm(name, {RATE: [1e-3, 2e-3, 4e-3]}, BOUNDS[:1], [5e-4]) for name in ("plain", "with"))
    plain.published, plain.trials = {(chosen,): [20.0]}, {(chosen,): []}
    arm.start_at(plain)
    arm.published = {(rate,): [20.0] for rate in published}
    with mock.patch.object(Arm, "wanted", return_value=[]):
        search([arm], 6, Plan("group", Path(), []), lambda chosen: [], Session())
    said = "with is searched again: the 3 settings published for it are around other values than those chosen for plain"
    assert capsys.readouterr().out == f"group: {said}\n" * again


@pytest.mark.parametrize("name", [name for name in study_names() if read_study_file(name).tuning])
def test_shipped_studies_start_components_at_their_references(name: str) -> None:
    """Except those whose searches were published before that was possible."""
    study = read_study_file(name)
    assert study.tuning
    if not (EXPERIMENTS / name / "records").exists():
        assert study.tuning.start is Start.compared
        assert starts_of(tuned_cells(study.tuning, study.all_cells()), study.contrasts)
