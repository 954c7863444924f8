"""Learnable buckets: weights, regularization, schedules and warm-up against slow references, and in training."""

import math
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import adapt, logits, perturbed, tiny, tokens, trained
from adapters import method as method_of
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import composed
from torch import Tensor
from trained import train_once

from hylo.adapters.buckets import Bucketing, assign_buckets, bucket_boundaries
from hylo.adapters.component import BuildContext
from hylo.adapters.landmarks.learnable import (
    Assignment,
    BoundaryStart,
    LearnableConfig,
    LearnableLandmark,
    repulsion,
    spread,
)
from hylo.adapters.landmarks.mixture import MixtureConfig
from hylo.adapters.landmarks.position_adaptive import PositionAdaptiveConfig
from hylo.adapters.saved import read_settings
from hylo.core.errors import ConfigError
from hylo.runs.cell import Cell, check
from hylo.runs.record import RunRecord
from hylo.runs.shared import Session
from hylo.training.config import TrainerConfig
from hylo.training.optimizers.adamw import AdamWConfig
from hylo.training.step import make_optimizer

BASE = tiny("llama")
N, P_MAX = 6, 40
IDS = tokens(2, 20)


def landmark(num_buckets: int = N, max_position: int = P_MAX, **settings: Any) -> LearnableLandmark:
    config = LearnableConfig(num_buckets=num_buckets, max_position=max_position, **settings)
    return LearnableLandmark(config, BuildContext(BASE, context_length=7, seed=0))


def scattered(**settings: Any) -> LearnableLandmark:
    """Unsorted boundaries, one of them outside [0, 1]."""
    component = landmark(**settings)
    with torch.no_grad():
        component.beta.copy_(torch.tensor([0.7, -0.1, 0.33, 0.9, 0.31]))
    return component


@pytest.mark.parametrize("assignment", Assignment)
def test_bucket_weights(assignment: Assignment) -> None:
    """Against a float64 loop, also beyond P_max."""
    component, tau = scattered(assignment=assignment, temperature=0.05), 0.05
    positions = torch.tensor([[0, 1, 12, 13], [28, 39, 40, 200]])
    weights = component.bucket_weights(positions)
    boundaries = sorted(component.beta.double().tolist())
    for row, column in np.ndindex(2, 4):
        x = min(int(positions[row, column]) / P_MAX, 1.0)
        if assignment is Assignment.hard:
            expected = np.eye(N)[sum(boundary <= x for boundary in boundaries)]
        else:
            s = [1.0, *(1 / (1 + math.exp(-(x - boundary) / tau)) for boundary in boundaries), 0.0]
            expected = np.array([s[i] - s[i + 1] for i in range(N)])
        np.testing.assert_allclose(weights[row, column].detach().numpy(), expected, atol=1e-6)


@given(st.integers(2, 64), st.integers(64, 9_000), st.floats(1e-4, 0.5), st.sampled_from(BoundaryStart))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_hard_weights_are_exactly_one_bucket(buckets: int, p_max: int, tau: float, start: BoundaryStart) -> None:
    """The usual form, `hard + soft - soft.detach()`, is exact only up to rounding."""
    component = landmark(buckets, p_max, assignment=Assignment.hard, temperature=tau, start=start)
    positions = torch.arange(0, p_max, 7)
    weights = component.bucket_weights(positions)
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(weights.sum(-1), torch.ones(len(positions)))
    if start is BoundaryStart.fixed:
        fixed = assign_buckets(positions, bucket_boundaries(Bucketing.logarithmic, buckets, p_max))
        assert torch.equal(weights.argmax(-1), fixed)


def test_straight_through_gradient_is_the_soft_one() -> None:
    values = torch.randn(2, 20, N, generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.arange(20), torch.arange(30, 50)])
    gradients = []
    for assignment in Assignment:
        component = scattered(assignment=assignment, temperature=0.03)
        (component.bucket_weights(positions) * values).sum().backward()
        gradients.append(component.beta.grad)
    assert torch.equal(*gradients)
    assert (gradients[0] != 0).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_hard_from_the_fixed_start_is_the_design_with_fixed_buckets(autocast: bool) -> None:
    """Under autocast too: a product with the rows of P in bfloat16 would be less precise than a lookup."""
    sizes: dict[str, Any] = {"num_landmarks": 3, "num_buckets": 8}
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    fixed = perturbed(BASE, {"landmark": PositionAdaptiveConfig(**sizes)})
    tensors = {name: tensor.detach().clone() for name, tensor in trained(fixed).items()}
    with narrow:
        expected = logits(fixed, IDS)
    fixed.detach()
    for assignment in Assignment:
        model = adapt(BASE, {"landmark": LearnableConfig(**sizes, temperature=0.1, assignment=assignment)})
        with torch.no_grad():
            for name, tensor in tensors.items():
                trained(model)[name].copy_(tensor)
        with narrow:
            assert torch.equal(logits(model, IDS), expected) == (assignment is Assignment.hard)
        model.detach()


def _spread(boundaries: list[float]) -> float:
    ends = [0.0, *sorted(boundaries), 1.0]
    widths = [right - left for left, right in pairwise(ends)]
    return sum((len(widths) * width - 1) ** 2 for width in widths) / len(widths)


def _repulsion(boundaries: list[float], gap: float) -> float:
    ordered = sorted(boundaries)
    pairs = list(pairwise(ordered))
    return sum(max(0.0, (gap - (right - left)) / gap) ** 2 for left, right in pairs) / len(pairs)


def test_regularization_of_scattered_boundaries() -> None:
    component = scattered(spread_weight=0.3, repulsion_weight=2.0, minimum_gap=3.0)
    boundaries = component.beta.double().tolist()
    expected = 0.3 * _spread(boundaries) + 2.0 * _repulsion(boundaries, 3 / P_MAX)
    term = component.regularization()
    assert term is not None
    assert term.item() == pytest.approx(expected, rel=1e-5)
    assert landmark().regularization() is None, "no weight, no term"


def test_regularization_gradient_by_finite_differences() -> None:
    """One gap above the minimum, one below, one boundary outside [0, 1]."""
    boundaries = torch.tensor([-0.2, 0.1, 0.13, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spread, (boundaries,))
    assert torch.autograd.gradcheck(lambda b: repulsion(b, 0.05), (boundaries,))


@pytest.mark.parametrize("buckets", [2, 5, 32])
def test_what_spread_and_repulsion_are_at_their_ends(buckets: int) -> None:
    index = torch.arange(1, buckets, dtype=torch.float64)
    assert float(spread(index / buckets)) == pytest.approx(0, abs=1e-12)
    for end in (0.0, 1.0):
        assert float(spread(index * 0 + end)) == pytest.approx(buckets - 1)
    outside = [float(spread(index * 0 + end)) for end in (1.0, 1.5, 3.0)]
    assert outside == sorted(outside)
    if buckets > 2:
        assert float(repulsion(index / buckets, 0.99 / buckets)) == 0
        assert float(repulsion(index * 0 + 0.4, 0.01)) == 1


def test_descent_brings_boundaries_back_and_apart() -> None:
    """The purpose of the terms. With absolute gaps, coinciding boundaries would have no gradient."""
    stray = torch.nn.Parameter(torch.tensor([-0.5, 0.2, 1.4]))
    equal = torch.nn.Parameter(torch.full((3,), 0.4))
    optimizer = torch.optim.SGD([stray, equal], lr=2e-3)
    for _ in range(500):
        optimizer.zero_grad()
        (spread(stray.sort().values) + repulsion(equal.sort().values, 0.05)).backward()
        optimizer.step()
    assert ((stray > 0) & (stray < 1)).all()
    assert (equal.detach().sort().values.diff() > 0.045).all()


def test_temperature_follows_from_the_step_alone() -> None:
    component = landmark(temperature=0.1, final_temperature=0.003)
    course = []
    for step in range(5):
        component.on_step_start(step, 5)
        course.append(component.temperature)
    assert (course[0], course[-1]) == (0.1, 0.003), "exactly, and not after rounding"
    assert [b / a for a, b in pairwise(course)] == pytest.approx([0.03**0.25] * 4)
    other = landmark(temperature=0.1, final_temperature=0.003)
    other.on_step_start(3, 5)
    assert other.temperature == course[3], "a continued run is at the same temperature"
    other.on_step_start(0, 1)
    assert other.temperature == 0.003
    constant = landmark(temperature=0.1)
    constant.on_step_start(3, 7)
    assert constant.temperature == 0.1


def test_a_saved_adapter_evaluates_at_the_final_temperature(tmp_path: Path) -> None:
    """Even if saved mid-training: the file does not hold the temperature that training had reached."""
    model = perturbed(BASE, {"landmark": LearnableConfig(temperature=0.3, final_temperature=0.01)})
    model.on_step_start(1, 4)
    model.train()
    half_way = logits(model, IDS)
    expected = logits(model.eval(), IDS)
    assert not torch.equal(half_way, expected)
    model.save(tmp_path)
    model.detach()
    components, context_length, *_ = read_settings(tmp_path)
    assert context_length == model.context_length
    again = adapt(BASE, components, seed=9)
    again.load(tmp_path)
    assert torch.equal(logits(again, IDS), expected)
    again.detach()


def test_the_boundaries_alone_have_their_own_learning_rate() -> None:
    components = method_of("landmark_learnable", "method.landmark.boundary_learning_rate_multiplier=7")
    components["landmark"].learning_rate_multiplier = 3.0  # composed configs are shared, but this one is not reused
    model = adapt(BASE, components)
    config = TrainerConfig(learning_rate=0.01, optimizer=AdamWConfig(weight_decay=0.1))
    groups = make_optimizer(model, config).param_groups
    rate = {id(tensor): group["peak"] for group in groups for tensor in group["params"]}
    decay = {id(tensor): group["weight_decay"] for group in groups for tensor in group["params"]}
    own = model.tensors()
    model.detach()
    assert sorted(rate) == sorted(id(tensor) for tensors in own.values() for tensor in tensors.values())
    assert rate[id(own["landmark"]["beta"])] == pytest.approx(0.01 * 3 * 7)
    assert decay[id(own["landmark"]["beta"])] == 0
    assert {rate[id(own["landmark"][name])] for name in "LCPa"} == {0.03}
    assert {rate[id(tensor)] for tensor in own["low_rank"].values()} == {0.01}


def _run(tiny: tuple[str, ...], folder: Path, *overrides: str, **named: Any) -> dict[str, Tensor]:
    always = ("method=landmark_learnable", "trainer.steps=6", "trainer.learning_rate=0.01")
    return train_once(composed(*tiny, *always, *overrides), folder, **named)[1]


def _boundaries(folder: Path) -> np.ndarray:
    """Boundaries in tokens before each step and after the last: [steps + 1, N - 1]."""
    table = RunRecord(folder, {}).trajectory
    return table.pivot(index="step", columns="index", values="value").to_numpy()


@pytest.mark.parametrize(("share", "steps", "held"), [(0.5, 6, 3), (0.99, 4, 3), (0.1, 4, 0), (0.0, 4, 0)])
def test_warm_up_holds_the_boundaries_for_the_promised_steps(
    share: float, steps: int, held: int, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Afterwards AdamW starts fresh and moves each boundary by at most its learning rate.

    Zeroing the gradient would hold them as well, but age the moments: after three such steps, the first move would be
    0.58 times the learning rate. Without warm-up the first step has no gradient, because P starts at zero.
    """
    overrides = (f"method.landmark.boundary_warmup={share}", f"trainer.steps={steps}", "trainer.lr_scheduler=constant")
    _run(tiny, tmp_path, *overrides, "trainer.optimizer.eps=1e-30")
    moves = np.abs(np.diff(_boundaries(tmp_path), axis=0)) / 32
    assert moves.shape == (steps, 31)
    assert (moves[:held] == 0).all()
    assert (moves[max(held, 1) :] > 0).all()
    if held:
        assert moves[held].max() == pytest.approx(0.01, rel=1e-3)


def test_warm_up_is_a_rounded_share_of_the_steps() -> None:
    component = landmark(boundary_warmup=0.29)
    held = 0
    for step in range(100):
        component.on_step_start(step, 100)
        component.beta.grad = torch.ones(N - 1)
        component.on_before_optimizer_step()
        held += component.beta.grad is None
    assert held == 29, "and not 28, although 0.29 * 100 < 29 in floating point"


CHANGES = {
    "final_temperature": ["final_temperature=0.05"],
    "boundary_learning_rate_multiplier": ["boundary_learning_rate_multiplier=5"],
    "boundary_warmup": ["boundary_warmup=0.5"],
    "spread_weight": ["spread_weight=0.1"],
    "repulsion_weight": ["repulsion_weight=1", "minimum_gap=1.05"],
    "assignment": ["assignment=hard"],
    "temperature": ["temperature=0.01"],
    "start": ["start=uniform"],
}


def _options(options: list[str]) -> list[str]:
    return [f"method.landmark.{option}" for option in options]


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGES)
def test_every_key_changes_training(key: str, tiny: tuple[str, ...], tmp_path: Path) -> None:
    default = _run(tiny, tmp_path / "default")
    changed = _run(tiny, tmp_path / "changed", *_options(CHANGES[key]))
    assert not torch.equal(changed["landmark.beta"], default["landmark.beta"])
    assert not torch.equal(changed["landmark.P"], default["landmark.P"])


def test_the_gap_changes_training(tiny: tuple[str, ...], tmp_path: Path) -> None:
    near = _run(tiny, tmp_path / "near", *_options(["repulsion_weight=1", "minimum_gap=0.9"]))
    far = _run(tiny, tmp_path / "far", *_options(["repulsion_weight=1", "minimum_gap=1.05"]))
    assert not torch.equal(near["landmark.beta"], far["landmark.beta"])


def test_no_field_is_left_out_above() -> None:
    shared = {field.name for field in fields(MixtureConfig)}
    assert {field.name for field in fields(LearnableConfig)} == shared | set(CHANGES) | {"minimum_gap"}


def test_neutral_values_change_no_bit(tiny: tuple[str, ...], tmp_path: Path) -> None:
    default = _run(tiny, tmp_path / "default")
    neutral = [
        "final_temperature=0.004",
        "boundary_warmup=0.01",
        "minimum_gap=3",
        "boundary_learning_rate_multiplier=1",
    ]
    same = _run(tiny, tmp_path / "neutral", *_options(neutral))
    assert all(torch.equal(tensor, same[name]) for name, tensor in default.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["repulsion_weight=1", "num_buckets=2"], r"repulsion_weight = 1\.0\s+allowed: 0 with two buckets"),
        (
            ["repulsion_weight=1", "minimum_gap=3"],
            r"minimum_gap = 3\.0\s+allowed: at most 1\.06667.*\s+fix:.*=0\.53333",
        ),
        (["boundary_warmup=1"], r"boundary_warmup = 1\.0\s+allowed: a number >= 0 and < 1"),
        (["final_temperature=0"], r"final_temperature = 0\.0\s+allowed: a number > 0"),
        (["spread_weight=-1"], r"spread_weight = -1\.0"),
    ],
)
def test_settings_that_cannot_work(options: list[str], message: str, tiny: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=message):
        check(Cell("runs", "a", composed(*tiny, "method=landmark_learnable", *_options(options))), Session())
