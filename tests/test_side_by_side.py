"""Cells in parallel: when, the same bits as sequentially, and the cost of a failure or a killed process."""

import dataclasses
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from adapters import adapt, method, perturb
from launch import composed, train
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

import hylo.launch.jobs
import hylo.launch.local
from hylo.launch.local import LocalConfig, odd_ones, operations
from hylo.runs.cell import Cell
from hylo.runs.record import RunRecord
from hylo.runs.shared import Session
from hylo.runs.store import read_study
from hylo.training.config import TrainerConfig

SESSION = Session()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cells(tiny: tuple[str, ...]) -> list[Cell]:
    return [Cell("group", name, composed(*tiny, f"method={name}")) for name in ("lora", "dora", "hylorada")]


def bits(run: RunRecord) -> dict[str, bytes]:
    """A run's measurements and trained tensors."""
    return {name: (run.folder / name).read_bytes() for name in ("eval.parquet", "adapter/adapter.safetensors")}


@pytest.mark.slow
def test_numbers_are_those_of_one_after_the_other(tiny: tuple[str, ...]) -> None:
    """A sweep in two processes, twice the default in tests, against the same sweep in this process."""
    sweep = ("-m", "method=lora,hylorada", *tiny)
    assert train(*sweep, "workers=2", "outputs=together") == 0
    assert train(*sweep, "workers=1", "outputs=alone") == 0
    (together,), (alone,) = Path("together").glob("sweep-*"), Path("alone").glob("sweep-*")
    runs, expected = read_study(together).cells, read_study(alone).cells
    assert runs.keys() == expected.keys() == {"none", "lora", "hylorada"}
    for name in ("lora", "hylorada"):
        assert bits(runs[name][0]) == bits(expected[name][0])


@pytest.mark.slow
def test_a_failing_cell_costs_no_other(cells: list[Cell], capfd: pytest.CaptureFixture[str]) -> None:
    """The training text disappears between the check and the run."""
    gone = dataclasses.replace(cells[0].config.data, name="gone", train_files=["no_such_file.txt"])
    config = dataclasses.replace(cells[0].config, data=gone, workers=2)
    broken = dataclasses.replace(cells[0], config=config)
    LocalConfig().run([broken, cells[1]], SESSION)
    printed = capfd.readouterr()
    assert "lora: failed" in printed.err
    assert "2 of 2 cells done" in printed.out
    assert len(list(Path("outputs/group").glob("dora-*/result.json"))) == 1


def test_after_a_killed_process_the_rest_runs_here(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(left: list[Cell], workers: int, chosen: list[Cell], places: list[str]) -> None:
        assert [cell.name for cell in chosen] == ["lora", "dora"], "the third would leave a core idle"
        left.pop(0)
        raise BrokenProcessPool

    monkeypatch.setattr(hylo.launch.local, "_in_workers", killed)
    ran: list[str] = []
    monkeypatch.setattr(hylo.launch.jobs, "run_or_report", lambda cell, session: ran.append(cell.name))
    cells[0].config.workers = 2
    LocalConfig().run(cells, SESSION)
    assert ran == ["dora", "hylorada"]
    assert "a process was killed" in capsys.readouterr().err


def test_how_many_at_once(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """One per core, given enough memory and cells and no GPU; or as configured."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 2**30))
    assert LocalConfig().at_once(cells, SESSION) == 1, "tiny cells are done before processes have started"
    monkeypatch.setattr(hylo.launch.local, "WORTH", operations(cells[0], SESSION))
    assert LocalConfig().at_once(cells, SESSION) == 2
    assert LocalConfig().at_once(cells[:1], SESSION) == 1
    assert LocalConfig().at_once([], SESSION) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert LocalConfig().at_once(cells * 3, SESSION) == hylo.launch.local.MOST
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        assert LocalConfig().at_once(cells, SESSION) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert LocalConfig().at_once(cells, SESSION) == 1
    memory = type("Memory", (), {"available": 2**30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert LocalConfig().at_once(cells, SESSION) == 1
    cells[0].config.workers = 3
    assert LocalConfig().at_once(cells, SESSION) == 3


def test_cells_that_would_leave_a_core_idle_come_last(cells: list[Cell]) -> None:
    """Of five trained cells on two cores, the last one gets both; evaluations are not counted."""
    untuned = cells[0].base_cell()
    five = [untuned, *cells, *cells[:2]]
    assert odd_ones(five, 2) == [cells[1]]
    assert odd_ones(five[:-1], 2) == []
    assert odd_ones(five, 3) == [cells[0], cells[1]]


def test_operations_of_a_cell(cells: list[Cell]) -> None:
    """Four per weight and trained token, two per weight and evaluated token."""
    cell, weights = cells[0], SESSION.skeleton(cells[0].config.model).num_parameters()
    trainer: TrainerConfig = cell.config.trainer
    tokens = trainer.steps * trainer.batch_size * 32
    assert operations(cell, SESSION) == weights * (4 * tokens + 2 * 6 * 32)
    assert operations(cell.base_cell(), SESSION) == weights * 2 * 6 * 32


@pytest.mark.parametrize("name", ["lora", "hylorada_dora_learnable"])
def test_threads_change_no_bit(name: str) -> None:
    """A model large enough to be split over threads: losses and gradients with one thread and with two.

    On some processors (seen with AMX), matrix products split sums of vocabulary length over threads, which changes the
    last bits: there the numbers agree up to rounding.
    """
    sizes: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 5000}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads), dtype=torch.float32)
        ids = torch.randint(5000, (4, 128))
    model = adapt(base, method(name))
    perturb(model)

    def measured() -> list[Tensor]:
        model.zero_grad()
        losses = model(input_ids=ids, targets=ids.roll(-1, dims=1))
        losses.sum().backward()
        return [losses.detach(), *(t.grad.clone() for t in model.adapter_state_dict().values() if t.grad is not None)]

    one, two = with_threads(1, measured), with_threads(2, measured)
    assert len(one) > 10
    long_sum = torch.linspace(-1, 1, 512 * 5000).reshape(512, 5000)
    products = [with_threads(count, lambda: [long_sum @ long_sum[:192].T])[0] for count in (1, 2)]
    if torch.equal(*products):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(a.abs().max()))


def with_threads(count: int, action: Callable[[], list[Tensor]]) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return action()
    finally:
        torch.set_num_threads(before)
