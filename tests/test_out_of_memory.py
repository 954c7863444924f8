"""Missing memory, devices and libraries: a clear end of one cell, or an error before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import composed, train

import hylo.training.loop
from hylo.core.devices import Device, bfloat16_problems, device_problems, trial
from hylo.core.errors import ConfigError, MissingDependency
from hylo.models.base import ModelConfig, load_folder
from hylo.models.tiny import TinyModelConfig
from hylo.models.weights import Quantization
from hylo.runs.cell import Cell, check
from hylo.runs.out_of_memory import lower
from hylo.runs.run import run_or_report
from hylo.runs.shared import Session
from hylo.runs.store import read_run

OF_A_CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
ERRORS: dict[str, Callable[[], Exception]] = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
    "cpu": lambda: RuntimeError(f"{OF_A_CPU}allocate 9000000000 bytes. Error code 12 (Cannot allocate memory)"),
    "python": MemoryError,
}


def failing(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception], *, step: int = 2) -> None:
    """Lets the first run that comes to this step run out of memory in it."""
    own, done = hylo.training.loop.update, []

    def update(*args: Any, **kwargs: Any) -> Any:
        done.append(None)
        if len(done) == step:
            raise make()
        return own(*args, **kwargs)

    monkeypatch.setattr(hylo.training.loop, "update", update)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_cell_without_memory_says_what_was_estimated_and_what_to_lower(
    kind: str,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    failing(monkeypatch, ERRORS[kind])
    config = composed(*tiny, "method=lora", f"outputs={tmp_path}")
    assert run_or_report(Cell("runs", "lora", config), Session()) is None
    said = capsys.readouterr().err
    (folder,) = tmp_path.glob("runs/lora-*")
    result = read_run(folder).result
    assert (result["status"], result["metrics"]) == ("failed", {})
    assert result["training"]["estimated_peak_memory_bytes"] > 0
    assert "lora: failed: OutOfMemory: the cpu ran out of memory" in said
    for part in ("estimated as ", "GiB are free", "trainer.gradient_checkpointing=true", "model.quantization=nf4"):
        assert part in said
    assert "trainer.batch_size=" in said
    assert "trainer.gradient_accumulation_steps=2" in said
    assert type(ERRORS[kind]()).__name__ in (folder / "traceback.txt").read_text(), "the cause is lost"


@pytest.mark.slow
def test_the_other_cells_of_a_sweep_run(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing(monkeypatch, ERRORS["gpu"])
    assert train("-m", *tiny, "method=lora,bitfit", f"outputs={tmp_path}") == 1
    status = {path.parent.name.split("-")[0]: json.loads(path.read_text()) for path in tmp_path.glob("*/*/result.json")}
    assert {name: result["status"] for name, result in status.items()} == {
        "none": "complete",
        "lora": "failed",
        "bitfit": "complete",
    }
    assert "OutOfMemory" in capsys.readouterr().out, "the report does not say why the cell failed"


def test_memory_that_is_missing_while_weights_are_loaded(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """It is no fault of the folder, and no estimate is known yet."""

    def allocate(*args: Any, **kwargs: Any) -> Any:
        raise ERRORS["cpu"]()

    monkeypatch.setattr("hylo.models.base.AutoModelForCausalLM.from_pretrained", allocate)
    monkeypatch.setattr(TinyModelConfig, "load", lambda self: load_folder(tmp_path, self))
    (tmp_path / "model.safetensors").touch()
    TinyModelConfig(name="tiny").config().save_pretrained(tmp_path)
    config = composed(*tiny, "method=lora", f"outputs={tmp_path}")
    assert run_or_report(Cell("runs", "x", config), Session()) is None
    said = capsys.readouterr().err
    assert "x: failed: OutOfMemory: the cpu ran out of memory" in said
    assert "not yet estimated" in said


def test_other_errors_keep_their_name(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing(monkeypatch, lambda: RuntimeError("shapes do not match"))
    assert run_or_report(Cell("runs", "x", composed(*tiny, "method=lora", f"outputs={tmp_path}")), Session()) is None
    assert "x: failed: RuntimeError: shapes do not match" in capsys.readouterr().err


def test_what_is_lowered_is_what_can_be(tiny: tuple[str, ...]):
    """Nothing that is as low as it gets, and of a model that is only evaluated nothing of training."""
    least = ("trainer.batch_size=1", "trainer.gradient_checkpointing=true", "trainer.eval_batch_size=1", "workers=1")
    held = ("model.dtype=bfloat16", "model.quantization=nf4", "method=lora")
    assert [*lower(composed(*tiny, *least, *held))] == ["data.context_length=16"]
    evaluated = [*lower(composed(*tiny, "method=none"))]
    assert not [text for text in evaluated if "checkpointing" in text or "trainer.batch_size" in text]


# --- before anything is loaded ---


def refused(kind: type[Exception], *overrides: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error of a check in which no weights may be loaded."""
    config = composed(*overrides)
    monkeypatch.setattr(type(config.model), "load", lambda self: pytest.fail("weights were loaded"))
    with pytest.raises(kind) as caught:
        check(Cell("runs", "x", config), Session())
    return str(caught.value)


def test_a_quantized_model_without_the_library(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hylo.core.extras.find_spec", lambda name: None)
    said = refused(MissingDependency, *tiny, "method=lora", "model.quantization=nf4", monkeypatch=monkeypatch)
    assert "needs the library bitsandbytes" in said
    assert "[quantization]" in said


@pytest.mark.parametrize("key", ["model.dtype", "trainer.precision"])
def test_bfloat16_on_a_gpu_without_it(key: str, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    said = refused(ConfigError, *tiny, "method=lora", f"{key}=bfloat16", monkeypatch=monkeypatch)
    assert f"{key} = 'bfloat16'" in said
    assert "Tesla V100 does not compute in bfloat16" in said
    assert bfloat16_problems(key, Device.cpu) == []


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert device_problems(Device.auto) == device_problems(Device.cpu) == [], "without a GPU they share the CPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (said,) = device_problems(Device.auto)
    assert "processes = 3" in said
    assert "at most 2" in said
    assert "--num_processes 2" in said
    assert device_problems(Device.cpu) == []


def test_settings_of_a_model():
    """An unknown dtype or quantization fails when the configuration is composed."""
    assert isinstance(model := composed("model=tiny_llama", "model.quantization=int8").model, ModelConfig)
    assert model.quantization is Quantization.int8
    for wrong in ("model.dtype=float64", "model.quantization=fp4"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[2]):
            composed("model=tiny_llama", wrong)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_model_that_is_only_tried_is_not_to_blame_for_missing_memory(kind: str):
    with trial():
        raise ValueError("an odd model")
    with pytest.raises(type(ERRORS[kind]())), trial():
        raise ERRORS[kind]()
