"""Position buckets, fixed and learned: properties for all sizes, with hypothesis."""

import pytest
import torch
from adapters import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hylo.adapters.buckets import Bucketing, assign_buckets, bucket_boundaries
from hylo.adapters.component import BuildContext
from hylo.adapters.landmarks.learnable import BoundaryStart, LearnableConfig, LearnableLandmark
from hylo.adapters.landmarks.position_adaptive import PositionAdaptiveConfig

BASE = tiny("llama")
sizes = st.tuples(st.integers(2, 128), st.integers(2, 40_000))  # N, P_max
roomy = sizes.filter(lambda size: size[0] <= size[1])  # at least one position per bucket
properties = settings(deadline=None, derandomize=True, max_examples=200)


def _learnable(num_buckets: int, max_position: int, tau: float, start: BoundaryStart, seed: int = 0):
    config = LearnableConfig(num_buckets=num_buckets, max_position=max_position, temperature=tau, start=start)
    return LearnableLandmark(config, BuildContext(BASE, context_length=7, seed=seed))


@given(sizes, st.sampled_from(Bucketing))
@properties
def test_boundaries_do_not_decrease_and_every_bucket_is_in_range(size: tuple[int, int], bucketing: Bucketing):
    N, P_max = size
    boundaries = bucket_boundaries(bucketing, N, P_max)
    assert boundaries.shape == (N - 1,)
    assert boundaries.dtype == torch.int64
    assert (boundaries.diff() >= 0).all()
    buckets = assign_buckets(torch.tensor([[0, 1, P_max - 1, P_max, 10 * P_max]]), boundaries)
    assert buckets.shape == (1, 5)
    assert buckets[0, 0] == 0
    assert (buckets.diff() >= 0).all()
    assert buckets.max() <= N - 1


@given(roomy, st.sampled_from(Bucketing))
@example((16, 1024), Bucketing.logarithmic)
@example((8, 32), Bucketing.logarithmic)
@properties
def test_no_bucket_is_empty(size: tuple[int, int], bucketing: Bucketing):
    """An empty bucket is a parameter that is never trained."""
    N, P_max = size
    boundaries = bucket_boundaries(bucketing, N, P_max)
    assert boundaries[0] > 0
    assert (boundaries.diff() > 0).all()
    assert assign_buckets(torch.arange(P_max), boundaries).unique().numel() == N
    assert assign_buckets(torch.tensor(P_max), boundaries) == N - 1  # positions from P_max on: the last bucket


@given(roomy)
@properties
def test_logarithmic_boundaries_grow_as_powers_of_p_max(size: tuple[int, int]):
    """P_max^(i/N) within a token, or i while that grows by less than a token."""
    N, P_max = size
    for i, boundary in enumerate(bucket_boundaries(Bucketing.logarithmic, N, P_max).tolist(), start=1):
        power = P_max ** (i / N)
        assert boundary >= i
        assert boundary == i or abs(boundary - power) < 1


@pytest.mark.parametrize(("N", "P_max", "single"), [(32, 256, 16), (32, 1024, 11), (64, 1024, 32), (32, 32_768, 5)])
def test_first_logarithmic_buckets_are_one_token_wide(N: int, P_max: int, single: int):
    """As long as P_max^(i/N) stays below i + 1/2: 256^(16/32) = 16 does, 256^(17/32) = 19 does not."""
    boundaries = bucket_boundaries(Bucketing.logarithmic, N, P_max)
    widths = boundaries.diff(prepend=torch.tensor([0]))
    assert (widths[:single] == 1).all()
    assert widths[single] > 1


def test_logarithmic_is_not_what_was_published():
    """What was published as logarithmic is uniform over 32,768 positions: all of a short context is in bucket 0."""
    positions = torch.arange(1024)
    published = bucket_boundaries(Bucketing.uniform, 32, 32_768)
    assert (assign_buckets(positions, published) == 0).all()
    assert assign_buckets(torch.tensor(1024), published) == 1
    logarithmic = bucket_boundaries(Bucketing.logarithmic, 32, 32_768)
    assert assign_buckets(positions, logarithmic).unique().numel() > 20


def test_uniform_buckets_have_the_same_width():
    boundaries = bucket_boundaries(Bucketing.uniform, 4, 10)
    assert boundaries.tolist() == [3, 5, 8]  # after a boundary at 2.5, 3 is the first position
    assert assign_buckets(torch.arange(12), boundaries).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_positions_of_any_layout_are_taken_without_a_warning():
    """A left-padded batch decoded with a cache gives a slice of a larger tensor."""
    boundaries = bucket_boundaries(Bucketing.logarithmic, 32, 256)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise only the first slice in the session would warn
    try:
        sliced = assign_buckets(torch.arange(12).view(3, 4)[:, -1:], boundaries)
    finally:
        torch.set_warn_always(always)
    assert sliced.tolist() == [[3], [7], [11]]


def test_p_max_defaults_to_the_context_length():
    context = BuildContext(BASE, context_length=100, seed=0)
    adaptive = PositionAdaptiveConfig().build(context)
    assert torch.equal(adaptive.boundaries, bucket_boundaries(Bucketing.logarithmic, 32, 100))
    assert LearnableConfig().build(context).max_position == 100


@given(roomy, st.sampled_from(BoundaryStart), st.floats(1e-4, 0.3))
@properties
def test_soft_weights_are_a_distribution(size: tuple[int, int], start: BoundaryStart, tau: float):
    N, P_max = size
    positions = torch.tensor([[0, 1, P_max // 3, P_max - 1, P_max, 3 * P_max]])
    weights = _learnable(N, P_max, tau, start).bucket_weights(positions)
    assert weights.shape == (1, 6, N)
    assert weights.min() >= -1e-6
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 6))


@torch.no_grad()
@pytest.mark.parametrize(("N", "P_max"), [(2, 2), (32, 32), (32, 256), (8, 1024), (32, 4096)])
def test_soft_weights_tend_to_the_fixed_buckets(N: int, P_max: int):
    positions = torch.arange(P_max)
    hard = assign_buckets(positions, bucket_boundaries(Bucketing.logarithmic, N, P_max))
    errors = []
    for tau in (3, 1, 0.3, 0.1, 0.03):  # in tokens
        weights = _learnable(N, P_max, tau / P_max, BoundaryStart.fixed).bucket_weights(positions)
        errors.append(float((1 - weights[positions, hard]).max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("start", BoundaryStart)
def test_learned_boundaries_are_sorted_and_in_tokens(start: BoundaryStart):
    N, P_max = 16, 512
    landmark = _learnable(N, P_max, 0.01, start)
    index = torch.arange(1, N)
    expected = {
        BoundaryStart.fixed: bucket_boundaries(Bucketing.logarithmic, N, P_max) - 0.5,
        BoundaryStart.uniform: index * P_max / N,
        BoundaryStart.log: P_max ** (index / N),
    }
    boundaries = landmark.learned_boundaries()
    if start in expected:
        torch.testing.assert_close(boundaries, expected[start].float())
    else:
        other = _learnable(N, P_max, 0.01, start, seed=1).learned_boundaries()
        assert 0 <= boundaries.min() < boundaries.max() <= P_max
        assert not torch.equal(boundaries, other)
    assert (boundaries.diff() > 0).all()
    assert not boundaries.requires_grad

    positions = torch.arange(P_max)
    before = landmark.bucket_weights(positions)
    with torch.no_grad():
        landmark.beta.copy_(landmark.beta.flip(0))  # order carries no meaning: training may let boundaries cross
    assert torch.equal(landmark.learned_boundaries(), boundaries)
    assert torch.equal(landmark.bucket_weights(positions), before)


def test_every_boundary_inside_the_context_gets_a_gradient():
    landmark = _learnable(32, 256, 0.004, BoundaryStart.fixed)
    values = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    (landmark.bucket_weights(torch.arange(256)) * values).sum().backward()
    assert landmark.beta.grad is not None
    assert (landmark.beta.grad != 0).all()
