"""Cells of a plan are composed from what their choices of files give; Hydra alone must give the same, errors too."""

from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from launch import ROOT

import hylo.cli.composition
from hylo.cli.composition import by_hydra, compose
from hylo.core.errors import ConfigError

CASES: tuple[tuple[str, ...], ...] = (
    ("method=lora", "trainer.learning_rate=0.002", "seed=3", "method.rank=16", "trainer.optimizer={beta1: 0.5}"),
    ("method=peft", "method.peft_type=LOHA", "method.kwargs.r=4", "trainer/optimizer=sgd", "study=ablation"),
    ("method=hylorada", "method.landmark=null", "method.low_rank.alpha=${method.low_rank.rank}", "seeds=[0,1]"),
    ("data=text", "data.train_files=[a.txt,b.txt]", "data.test_files=[c.txt]", "probe=kv", "cell='a=b'"),
)
FAULTS: tuple[tuple[str, ...], ...] = (
    ("method=lorra",),
    ("trainer.learning_rat=1",),
    ("trainer.learning_rate=fast",),
    ("+trainer.new=1",),
    ("trainer@other=smoke",),
    ("seed=1,2",),
)


@pytest.fixture(scope="module", autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def by_hydra_alone(overrides: Sequence[str]) -> Any:
    with mock.patch.object(hylo.cli.composition, "_composed", by_hydra):
        return compose(overrides)


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_what_is_composed_is_what_hydra_composes(overrides: tuple[str, ...]):
    assert compose(overrides) == by_hydra_alone(overrides)


@pytest.mark.parametrize("overrides", FAULTS, ids=" ".join)
def test_errors_are_those_of_hydra(overrides: tuple[str, ...]):
    with pytest.raises(ConfigError) as expected:
        by_hydra_alone(overrides)
    with pytest.raises(ConfigError) as found:
        compose(overrides)
    assert str(found.value) == str(expected.value)


def test_a_cell_does_not_change_the_next_one():
    """Lists and components are shared by what is kept: a cell that set them in place would change all later ones."""
    first, _ = compose(["method=lora", "data=text", "data.train_files=[a.txt]"])
    compose(["method=lora", "data=text", "data.train_files=[b.txt]", "method.low_rank.rank=3"])
    again, _ = compose(["method=lora", "data=text", "data.train_files=[a.txt]"])
    assert again == first


def test_files_are_searched_once_for_each_choice():
    compose(["method=dora", "seed=0"])
    with (
        mock.patch.object(hylo.cli.composition, "hydra_compose", side_effect=AssertionError("searched again")),
        mock.patch.object(OverridesParser, "parse_overrides", side_effect=AssertionError("parsed again")),
    ):
        assert [compose(["method=dora", f"seed={seed}"])[0].seed for seed in (0, 1, 2)] == [0, 1, 2]
