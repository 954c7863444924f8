"""Coverage of the methods under known truth; docs/statistics.md has the complete tables."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.coverage import intervals as simulation
from benchmarks.coverage import selection as selection_simulation
from benchmarks.coverage.hierarchical import hierarchical_bootstrap
from benchmarks.coverage.intervals import KINDS, NOISES, Noise
from hylo import stats

EQUAL, UNEQUAL, HEAVY = KINDS
DOCS = Path(__file__).parent.parent / "docs" / "statistics.md"


@pytest.mark.slow
@pytest.mark.parametrize("windows", [16, 32, 128])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_reports_covers(seeds: int, windows: int):
    """In every setting of the table, within the sampling error of 3,000 studies."""
    rng = np.random.default_rng(seeds)
    for noise in NOISES:
        found = simulation.coverage(noise, EQUAL, seeds, windows, rng, repeats=3_000, bootstrapped=1, resamples=1)
        assert 0.93 <= found.effect <= 0.975, noise


@pytest.mark.parametrize("kind", [UNEQUAL, HEAVY])
def test_the_interval_of_reports_covers_other_windows(kind: simulation.Windows):
    for noise in NOISES[::3]:
        rng = np.random.default_rng(1)
        found = simulation.coverage(noise, kind, 5, 32, rng, repeats=2_000, bootstrapped=1, resamples=1)
        assert 0.92 <= found.effect <= 0.98, noise


@pytest.mark.parametrize(("seeds", "most"), [(3, 0.80), (5, 0.88), (10, 0.93)])
def test_bootstraps_cover_less_where_seeds_differ(seeds: int, most: float):
    """The reason that reports do not use them: the first is common, the second (seeds only) also ignores windows."""
    settings = {"repeats": 1, "bootstrapped": 2_000, "resamples": 1_000}
    found = simulation.coverage(Noise(1, 0, 0), EQUAL, seeds, 32, np.random.default_rng(seeds), **settings)
    assert found.hierarchical < most
    found = simulation.coverage(Noise(0.1, 0.9, 0), EQUAL, seeds, 32, np.random.default_rng(seeds), **settings)
    assert found.seed_bootstrap < 0.6


def test_hierarchical_bootstrap_against_loops():
    rng = np.random.default_rng(2)
    sums, tokens = rng.normal(size=(3, 5)), np.array([10, 20, 30, 40, 50])
    found = hierarchical_bootstrap(sums, tokens, np.random.default_rng(0), resamples=4_000)
    drawn = []
    for _ in range(4_000):
        seeds, windows = rng.integers(0, 3, 3), rng.integers(0, 5, 5)  # the same windows for all seeds
        drawn.append(np.mean([sums[seed, windows].sum() / tokens[windows].sum() for seed in seeds]))
    assert found.value == pytest.approx(stats.ratio_of_sums(sums, tokens))
    ends, chance = tuple(np.quantile(drawn, [0.025, 0.975])), 0.1 * float(np.std(drawn))
    assert (found.low, found.high) == pytest.approx(ends, abs=chance)


def test_the_generator_decides():
    sums, tokens = np.random.default_rng(3).normal(size=(3, 8)), np.ones(8)
    first, again, other = (
        hierarchical_bootstrap(sums, tokens, np.random.default_rng(seed), resamples=200) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    for bad, message in ((np.ones((1, 8)), r"\(1, 8\); \[seeds, windows\]"), (sums * [np.nan] * 8, "is nan")):
        with pytest.raises(ValueError, match=message):
            hierarchical_bootstrap(bad, tokens, np.random.default_rng(0))


@pytest.mark.parametrize("noise", [Noise(1, 0, 0), Noise(0, 1, 0), Noise(0, 0, 1), Noise(0.34, 0.33, 0.33)])
def test_the_sequential_rule_is_wrong_in_5_percent_of_studies_at_most(noise: Noise):
    """Within sampling error; the same looks at 95 % each are wrong more often, which is why alpha is divided."""
    found = simulation.sequential(noise, 0, np.random.default_rng(4), repeats=3_000)
    assert found.excluded <= 0.05 + 2 * (0.05 * 0.95 / 3_000) ** 0.5
    if noise.seed == 1:
        naive = simulation.sequential(noise, 0, np.random.default_rng(4), repeats=3_000, spends=[0.05] * 4)
        assert naive.excluded > 0.09


def test_the_sequential_rule_finds_effects_and_stops_early():
    found = simulation.sequential(Noise(0.34, 0.33, 0.33), 5, np.random.default_rng(5), repeats=1_000)
    assert found.excluded > 0.95
    assert found.seeds < 9


def test_too_small_to_matter_is_wrong_in_5_percent_at_most():
    """With the true effect at exactly the smallest that matters, through the public functions that a study calls."""
    rng, smallest, looks = np.random.default_rng(6), 1.0, stats.looks(5)
    tokens, wrong, found = EQUAL.tokens(32), 0, 0
    for scale, truth in itertools.product((0.2,), (smallest, 0.0)):
        for sums in scale * simulation.studies(Noise(0.5, 0.4, 0.1), EQUAL, 5, 32, rng, repeats=300):
            shifted, decision = sums + truth * tokens, False
            for seeds, level in stats.levels(looks).items():
                estimate = stats.effect(shifted[:seeds], tokens, level=level)
                small = -smallest < estimate.low and estimate.high < smallest
                decision = decision or (small and stats.decided(estimate, 0.0, smallest))
            wrong, found = wrong + (decision and truth > 0), found + (decision and truth == 0)
    assert wrong <= 0.05 * 300 + 8
    assert found > 200


def test_studies_have_the_variance_they_say():
    for kind, noise in itertools.product(KINDS, NOISES[::4]):
        sums = simulation.studies(noise, kind, 3, 16, np.random.default_rng(7), repeats=4_000, effect=2)
        means = sums.sum((1, 2)) / kind.tokens(16).sum() / 3
        assert (means.mean(), means.var()) == pytest.approx((2, 1), abs=0.12)


def test_the_page_begins_with_what_the_command_prints_first(monkeypatch: pytest.MonkeyPatch):
    """The first row, number for number: it is quick, while all of them take minutes."""
    monkeypatch.setattr(simulation, "KINDS", KINDS[:1])
    monkeypatch.setattr(simulation, "WINDOWS", simulation.WINDOWS[:1])
    assert "\n".join(simulation.coverage_table(np.random.default_rng(0))) in DOCS.read_text()


@pytest.mark.slow
@pytest.mark.skipif("HYLO_SIMULATIONS" not in os.environ, reason="HYLO_SIMULATIONS=1 makes all tables again: minutes")
@pytest.mark.parametrize("module", [simulation, selection_simulation], ids=lambda module: module.__name__)
def test_the_page_holds_what_the_command_prints(module: Any, capsys: pytest.CaptureFixture[str]):
    """Every table, number for number."""
    page = DOCS.read_text()
    assert f"python -m {module.__name__}" in page
    module.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2
    assert [table for table in tables if table not in page] == []
