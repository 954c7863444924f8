"""Every registered optimizer: its file, its state, and its role in names, fingerprints and grid searches."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from adapters import values
from launch import ROOT, composed, train
from torch import Tensor
from trained import SESSION, train_once

import hylo.studies.spec
import hylo.training.loop
from hylo.adapters.model import AdaptedModel, adapted
from hylo.cli.main import job_cell
from hylo.core.registry import registered
from hylo.core.schema import Bounds, number_at, number_range
from hylo.runs.cell import Cell
from hylo.runs.config import Config
from hylo.runs.store import read_study
from hylo.studies.choices import condition
from hylo.studies.spec import EXPERIMENTS
from hylo.training.checkpoint import Checkpoint
from hylo.training.config import TrainerConfig
from hylo.training.step import make_optimizer

OPTIMIZERS = sorted(registered("optimizer"))


def config_of(tiny: tuple[str, ...], name: str, *overrides: str) -> Config:
    return composed(*tiny, "method=hylorada", f"trainer/optimizer={name}", "trainer.steps=6", *overrides)


def tiny_model(config: Config) -> AbstractContextManager[AdaptedModel]:
    base = SESSION.base(config.model, torch.device("cpu"))
    return adapted(base, config.components, context_length=32, seed=0)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_each_has_its_file() -> None:
    assert sorted(path.stem for path in (ROOT / "conf/trainer/optimizer").glob("*.yaml")) == OPTIMIZERS
    for name in OPTIMIZERS:
        assert type(composed(f"trainer/optimizer={name}").trainer.optimizer) is registered("optimizer")[name]


def test_adamw_has_the_bits_of_the_library(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Called as before other optimizers were added."""

    def of_the_library(model: AdaptedModel, config: TrainerConfig) -> torch.optim.AdamW:
        groups = []
        for tensors in model.tensors().values():
            for decay, chosen in (
                (0.1, [tensor for tensor in tensors.values() if tensor.dim() > 1]),
                (0.0, [tensor for tensor in tensors.values() if tensor.dim() <= 1]),
            ):
                rate = config.learning_rate
                groups += [{"params": chosen, "peak": rate, "lr": rate, "weight_decay": decay}] if chosen else []
        return torch.optim.AdamW(groups, betas=(0.8, 0.99), eps=1e-7)

    own = [f"trainer.optimizer.{text}" for text in ("weight_decay=0.1", "beta1=0.8", "beta2=0.99", "eps=1e-7")]
    config = config_of(tiny, "adamw", *own)
    _, ours = train_once(config, tmp_path / "ours")
    with mock.patch.object(hylo.training.loop, "make_optimizer", of_the_library):
        _, expected = train_once(config, tmp_path / "library")
    assert losses(tmp_path / "ours") == losses(tmp_path / "library")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_run_ends_bit_equal(name: str, tiny: tuple[str, ...], tmp_path: Path) -> None:
    config = config_of(tiny, name, "method.low_rank.dropout=0.1")
    section, expected = train_once(config, tmp_path / "whole")
    assert section["optimizer"] == name
    config.trainer.checkpoint_seconds = 1e-9

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_once(config, tmp_path / "parts", on_step=stop)
    _, tensors = train_once(config, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_takes_the_memory_that_is_told(name: str, tiny: tuple[str, ...]) -> None:
    config = composed(*tiny, "method=lora", f"trainer/optimizer={name}")
    with tiny_model(config) as model:
        optimizer = make_optimizer(model, config.trainer)
        tensors = [*model.adapter_state_dict().values()]
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
        kept = [
            each
            for tensor in tensors
            for each in optimizer.state[tensor].values()
            if isinstance(each, Tensor) and each.dim()  # a step count is a scalar, not one value per parameter
        ]
        told = config.trainer.optimizer.state_bytes * sum(tensor.numel() for tensor in tensors)
        assert sum(each.numel() * each.element_size() for each in kept) == pytest.approx(told, rel=0.25)
        model.zero_grad()


def test_plain_descent_keeps_nothing(tiny: tuple[str, ...], tmp_path: Path) -> None:
    config = config_of(tiny, "sgd", "trainer.optimizer.momentum=0", "trainer.learning_rate=0.1")
    assert config.trainer.optimizer.state_bytes == 0
    train_once(config, tmp_path)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


class Counting(torch.optim.Optimizer):
    """Keeps a scalar per tensor and one per group in addition to a tensor."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"length": 1.0, "pair": (1, 2)})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            group["length"] /= 3
            for tensor in group["params"]:
                state = self.state[tensor]
                state["steps"] = state.get("steps", 0) + 1
                state["last"] = tensor.detach() * group["length"]


def test_a_checkpoint_keeps_numbers_of_tensors_and_groups(tiny: tuple[str, ...], tmp_path: Path) -> None:
    config = config_of(tiny, "adamw")
    with tiny_model(config) as model:
        first, second = (Counting([{"params": [*values(model).values()]}]) for _ in range(2))
        first.step()
        first.step()
        Checkpoint(tmp_path / "state", model, first, every_seconds=1).save({"step": 2})
        assert Checkpoint(tmp_path / "state", model, second, every_seconds=1).restore() == {"step": 2}
    (one,), (other,) = first.param_groups, second.param_groups
    assert other["length"] == one["length"] == 1 / 3 / 3
    assert other["pair"] == (1, 2)
    for before, after in zip(one["params"], other["params"], strict=True):
        assert second.state[after]["steps"] == 2
        assert torch.equal(first.state[before]["last"], second.state[after]["last"])


@pytest.mark.slow
def test_names_in_tables_say_which(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("-m", *tiny, "method=lora", "trainer/optimizer=adamw,sgd") == 0
    (folder,) = Path("outputs").glob("sweep-*")
    cells = read_study(folder).cells
    named = {f"lora,trainer.optimizer={name}": name for name in ("adamw", "sgd")}
    assert list(cells) == ["none", *named]
    assert {cell: cells[cell][0].result["training"]["optimizer"] for cell in named} == named
    assert cells["none"][0].result["training"]["optimizer"] is None
    (adamw,), (sgd,) = (cells[cell] for cell in named)
    assert not np.array_equal(adamw.eval["nll_sum"], sgd.eval["nll_sum"])
    assert "lora,trainer.optimizer=sgd" in capsys.readouterr().out
    overrides = ["trainer/optimizer=sgd", "trainer.optimizer.momentum=0.5"]
    cell = job_cell(composed(*tiny, *overrides), overrides, "lora", "group", [])
    assert cell.name == "lora,trainer.optimizer=sgd,trainer.optimizer.momentum=0.5"


TUNED = """
question: Does momentum help?
protocol: The same for all.
cells:
  plain: [method=lora, trainer/optimizer=sgd, trainer.optimizer.momentum=0]
  heavy: [method=lora, trainer/optimizer=sgd]
tuning:
  cells: [heavy]
  keys: {trainer.optimizer.momentum: [0.25, 0.5]}
  trials: 4
"""


@pytest.mark.slow
def test_a_setting_of_an_optimizer_is_searched_like_any_other(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search steps up, towards an end of the range that is not itself a valid value."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "claims.csv").write_text((EXPERIMENTS / "claims.csv").read_text())
    (tmp_path / "mine/study.yaml").write_text(TUNED)
    assert train("study=mine", *tiny, "trainer.learning_rate=0.01") == 0
    (path,) = Path("outputs").glob("mine*/study.json")
    (told,) = json.loads(path.read_text())["tuning"]
    assert told["keys"] == ["trainer.optimizer.momentum"]
    assert len(told["tried"]) == 4
    assert all(0 < each["values"][0] < 1 for each in told["tried"])
    assert told["defaults"] == [0.9]


def test_ranges_leave_out_open_ends() -> None:
    low, high = number_range(Bounds(gt=0, lt=1))
    assert 0 < low < 1e-300
    assert 1 - 1e-15 < high < 1
    assert number_range(Bounds(ge=0, le=1)) == (0, 1)
    found = number_at(composed("trainer/optimizer=sgd"), "trainer.optimizer.momentum")
    assert found == (0.9, Bounds(ge=0, lt=1))


def test_what_a_choice_holds_for(tiny: tuple[str, ...]) -> None:
    """AdamW's conditions are those under which choices were published, with the names used then."""

    def of(*overrides: str, keys: tuple[str, ...] = ("trainer.learning_rate",)) -> str:
        return condition(Cell("g", "lora", composed(*tiny, "method=lora", *overrides)), keys, SESSION)

    sgd, key = "trainer/optimizer=sgd", "trainer.optimizer.momentum"
    assert len({of(), of("trainer.optimizer.beta1=0.8"), of(sgd), of(sgd, f"{key}=0.5")}) == 4
    assert of(sgd, keys=(key,)) == of(sgd, f"{key}=0.5", keys=(key,))
    with mock.patch("hylo.studies.choices.json.dumps", side_effect=json.dumps) as dumps:
        of()
    trainer = dumps.call_args.args[0]["trainer"]
    assert {key for key in trainer if "adam" in key or "decay" in key} == {
        "decay", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"
    }  # fmt: skip
    assert trainer["adam_epsilon"] == 1e-8
    assert "optimizer" not in trainer
