"""Kernels chosen by measurement: what is chosen, that it is remembered, and that no choice changes a number."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import ON_EVERY_ARCHITECTURE, adapt, matrix, method, perturb, tokens, trained
from adapters import tiny as tiny_model
from launch import train
from torch import Tensor

import hylo.kernels.fastest
import hylo.kernels.product
from hylo.kernels import measured
from hylo.kernels.fastest import COMPILED, LAYER_WAYS, LIGER
from hylo.kernels.measured import Choices, chosen, machine, measuring
from hylo.kernels.product import product, product_added
from hylo.runs.record import RunRecord
from hylo.runs.store import read_study

CPU = torch.device("cpu")


@pytest.fixture
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choices:
    """The choices of an unknown machine, which `measuring` follows."""
    found = Choices(tmp_path / "machine", CPU)
    monkeypatch.setattr(measured, "choices_of", lambda kind: found)
    return found


def burn(seconds: float) -> Callable[[], object]:
    """Work that takes so much processor time."""

    def work() -> None:
        began = measured.time.thread_time()
        while measured.time.thread_time() - began < seconds:
            pass

    return work


def never() -> None:
    raise AssertionError("measured again")


# --- choices ---


def test_the_fastest_way_is_found_and_remembered(choices: Choices):
    assert choices.fastest("w", {"slow": burn(0.004), "fast": burn(0.001)}) == "fast"
    assert choices.fastest("w", {"slow": never, "fast": never}) == "fast"
    entry = json.loads(choices.file.read_text())["w"]
    assert entry["chosen"] == "fast"
    assert 1 <= entry["milliseconds"]["fast"] < 4 <= entry["milliseconds"]["slow"]
    another = Choices(choices.file.parent, CPU)  # of another process
    assert another.fastest("w", {"slow": never, "fast": never}) == "fast"
    assert another.used == {"w": "fast"}


def test_noise_does_not_decide():
    assert chosen({"first": 1.0, "second": 0.96}) == "first"
    assert chosen({"first": 1.0, "second": 0.94, "third": 0.90}) == "third"


def test_what_is_no_longer_a_way_is_measured_again(choices: Choices):
    choices.fastest("w", {"old": burn(0.0)})
    assert choices.fastest("w", {"new": burn(0.0)}) == "new"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"w": 3}', '{"w": {"milliseconds": {}}}'])
def test_a_damaged_file_is_measured_again(choices: Choices, text: str):
    choices.file.parent.mkdir(parents=True)
    choices.file.write_text(text)
    assert choices.fastest("w", {"only": burn(0.0)}) == "only"
    assert json.loads(choices.file.read_text())["w"]["chosen"] == "only"


def test_what_is_measured_may_ask_for_its_parts(choices: Choices):
    """A layer asks which product is fastest; both are remembered."""

    def whole() -> None:
        assert choices.fastest("part", {"only": burn(0.0)}) == "only"

    assert choices.fastest("whole", {"way": whole}) == "way"
    assert json.loads(choices.file.read_text()).keys() == {"part", "whole"}
    assert choices.fastest("after", {"way": burn(0.0)}) == "way", "the lock is free again"
    assert json.loads(choices.file.read_text()).keys() == {"part", "whole", "after"}


def test_a_way_that_fails_is_never_chosen(choices: Choices, capsys: pytest.CaptureFixture[str]):
    """Another way may need a compiler or more memory; an error of the first one is the run's own."""

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    assert choices.fastest("w", {"first": burn(0.002), "other": fails}) == "first"
    said = capsys.readouterr().out
    assert said == "kernels: other cannot be used here: OutOfMemoryError: CUDA out of memory.\n"
    assert json.loads(choices.file.read_text())["w"]["milliseconds"]["other"] is None
    with pytest.raises(torch.OutOfMemoryError):
        choices.fastest("v", {"first": fails, "other": burn(0.0)})


def test_a_hopeless_way_is_measured_once(choices: Choices):
    calls: list[str] = []

    def noted(name: str, seconds: float) -> Callable[[], object]:
        return lambda: (calls.append(name), burn(seconds)())

    assert choices.fastest("w", {"slow": noted("slow", 0.02), "fast": noted("fast", 0.002)}, rounds=3) == "fast"
    assert (calls.count("slow"), calls.count("fast")) == (2, 4), "each with a round that is not counted"


def test_long_work_is_measured_once(choices: Choices, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured, "ENOUGH_SECONDS", 0.0)
    calls: list[str] = []
    choices.fastest("w", {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a", "b"] * 2  # of which the first pair does not count


def test_measuring_leaves_the_threads_alone(choices: Choices):
    threads, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        choices.fastest("w", {"a": lambda: seen.append(torch.get_num_threads())})
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_other_instructions_are_another_machine(monkeypatch: pytest.MonkeyPatch):
    machine.cache_clear()
    here = machine("cpu")
    machine.cache_clear()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert machine("cpu") != here
    machine.cache_clear()


# --- products ---


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_ways_compute_the_same_product(dtype: torch.dtype, transposed: bool):
    """Each against float64; a product of narrow numbers is as precise as its rounded result."""
    generator = torch.Generator().manual_seed(0)
    x, W, bias, total = (torch.randn(*s, generator=generator) for s in ((7, 5), (3, 5), (3,), (7, 3)))
    W = W.T.contiguous().T if transposed else W
    x, W, bias, total = (each.to(dtype) for each in (x, W, bias, total))
    assert W.is_contiguous() is not transposed
    wanted = x.double() @ W.double().T
    tolerance: dict[str, Any] = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    ways = hylo.kernels.product._candidates(dtype, transposed=transposed, enabled=True)
    assert len(ways) == 2
    for way in ways:
        found = hylo.kernels.product._PRODUCTS[way](x, W, None)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, **tolerance)
        found = hylo.kernels.product._PRODUCTS[way](x, W, bias)
        torch.testing.assert_close(found.double(), wanted + bias.double(), **tolerance)
        found = hylo.kernels.product._SUMS[way](x, W, total.clone())
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted + total.double(), **tolerance)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("way", ["onednn", "torch"])
def test_products_follow_what_was_measured(choices: Choices, monkeypatch: pytest.MonkeyPatch, way: str, added: bool):
    """Per shape and layout; the number of rows counts by its power of two."""
    called: list[str] = []
    table = hylo.kernels.product._SUMS if added else hylo.kernels.product._PRODUCTS
    for name, own in list(table.items()):
        monkeypatch.setitem(table, name, lambda *args, own=own, name=name: (called.append(name), own(*args))[1])
    monkeypatch.setattr(measured, "measured", lambda ways, *_, **__: {name: float(name != way) for name in ways})

    def compute(rows: int) -> Tensor:
        x, W = torch.randn(rows, 512), torch.randn(256, 512)
        return product_added(x, W, torch.zeros(rows, 256)) if added else product(x, W)

    with measuring(CPU):
        compute(60)
        compute(64)
        assert called == [way, way]
        assert list(choices.used) == [f"{'sum' if added else 'product'} torch.float32 64x512 by 512x256"]
        compute(65)
        assert len(choices.used) == 2
        compute(4)  # too small to measure
        assert len(choices.used) == 2
    compute(64)
    assert len(choices.used) == 2  # outside the block nothing is measured


def test_a_new_way_is_measured_beside_the_others(choices: Choices):
    assert choices.fastest("w", {"a": burn(0.002), "b": burn(0.008)}) == "a"
    assert choices.fastest("w", {"a": burn(0.002), "b": burn(0.008), "new": burn(0.0005)}) == "new"
    assert choices.fastest("w", {"a": burn(0.002), "b": burn(0.008)}) == "a", "the new one is gone again"
    assert choices.fastest("w", {"a": never}) == "a"


def test_a_cpu_without_the_instructions_computes_narrow_products_in_float32(monkeypatch: pytest.MonkeyPatch):
    candidates: Any = hylo.kernels.product._candidates
    for has, first in ((True, "torch"), (False, "float32")):
        candidates.cache_clear()
        monkeypatch.setattr(hylo.kernels.product, "has_instructions", lambda dtype, device, has=has: has)
        assert candidates(torch.bfloat16, transposed=False, enabled=True)[0] == first
    candidates.cache_clear()


def test_large_products_are_measured_in_part(choices: Choices):
    """And follow the same choice as those with as many rows as are measured."""
    W = torch.randn(256, 512)
    with measuring(CPU):
        for rows in (1024, 5000):
            x = torch.randn(rows, 512)
            torch.testing.assert_close(product(x, W), x @ W.T, rtol=1e-4, atol=1e-4)
    assert len(choices.used) == 1


# --- layers and loss ---


@pytest.fixture
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a tiny model is measured."""
    monkeypatch.setattr(hylo.kernels.fastest, "ENOUGH", 0)


def fused_kinds(base: Any) -> set[str]:
    """The kinds of modules whose forward is a fused one."""
    kinds = {"_fused_norm": "norm", "_fused_shifted_norm": "norm", "_fused_ffn": "ffn", "_fused_linear": "linear"}
    forwards = [vars(module)["forward"] for module in base.modules() if "forward" in vars(module)]
    return {kinds[forward.__func__.__name__] for forward in forwards if forward.__func__.__name__ in kinds}


@pytest.mark.usefixtures("everything_counts")
@matrix(*ON_EVERY_ARCHITECTURE, "rslora", "landmark_pa", "hylorada")
def test_no_choice_changes_a_number(choices: Choices, monkeypatch: pytest.MonkeyPatch, architecture: str, name: str):
    """Losses and gradients with each way of layers and loss, and nothing left behind by the measurement."""
    ids, targets = tokens(2, 12), tokens(2, 12, seed=5)
    base = tiny_model(architecture)

    def numbers(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = model(input_ids=ids, targets=targets)
        losses.sum().backward()
        return losses.detach(), {key: each.grad for key, each in trained(model).items() if each.grad is not None}

    for way in [name for name in LAYER_WAYS if name not in (COMPILED, LIGER)]:
        wanted = way
        monkeypatch.setattr(
            measured, "chosen", lambda seconds, wanted=wanted: wanted if wanted in seconds else min(seconds)
        )
        choices.file.unlink(missing_ok=True)
        choices._kept.clear()
        model = adapt(base, method(name))
        perturb(model)
        state, modes = torch.get_rng_state(), [module.training for module in base.modules()]
        model.choose_kernels(choices, ids)
        assert model.kernels["layers"] == way
        has = fused_kinds(base)
        assert has <= set(LAYER_WAYS[way])
        if architecture == "llama":
            assert has == set(LAYER_WAYS[way])
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in base.modules()] == modes
        assert all(each.grad is None for each in trained(model).values())
        losses, gradients = numbers(model)
        model.detach()
        reference = adapt(base, method(name), fused=False)
        perturb(reference)
        expected, slopes = numbers(reference)
        reference.detach()
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
        assert gradients.keys() == slopes.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, slopes[key], rtol=2e-3, atol=2e-4)


@pytest.mark.usefixtures("everything_counts")
def test_backward_passes_are_measured_as_training_runs_them(choices: Choices, monkeypatch: pytest.MonkeyPatch):
    """Outside of autocast, which would turn products that were widened on purpose back into narrow ones."""
    widened: list[bool] = []
    ways: Any = hylo.kernels.product._PRODUCTS
    in_float32 = ways["float32"]

    def noted(*args: Any) -> Tensor:
        widened.append(torch.is_autocast_enabled("cpu"))
        return in_float32(*args)

    monkeypatch.setitem(ways, "float32", noted)
    monkeypatch.setattr(hylo.kernels.product, "_candidates", lambda *args, **kwargs: ("float32",))
    model = adapt(tiny_model("llama"), method("lora"))
    with torch.autocast("cpu", torch.bfloat16), measuring(CPU):
        model.choose_kernels(choices, tokens(2, 12))
    assert len(widened) > len(LAYER_WAYS)
    assert not any(widened)


@pytest.mark.usefixtures("everything_counts")
def test_reference_kernels_are_not_tried_without_the_instructions(choices: Choices, monkeypatch: pytest.MonkeyPatch):
    """Their products would take many times as long. The loss has no other candidate on a CPU, and is not measured."""
    monkeypatch.setattr(hylo.kernels.fastest, "has_instructions", lambda dtype, device: False)
    model = adapt(tiny_model("llama"), method("lora"))
    model.choose_kernels(choices, tokens(2, 12))
    (entry,) = json.loads(choices.file.read_text()).values()
    assert entry["milliseconds"].keys() == {"fused", "fused but norms", "fused but FFN"}
    assert model.kernels["loss"] == "fused"


@pytest.mark.usefixtures("everything_counts")
def test_the_loss_may_come_from_logits(choices: Choices, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured, "chosen", lambda seconds: "reference")
    model, ids = adapt(tiny_model("gemma"), method("lora")), tokens(2, 12)
    expected = model(input_ids=ids, targets=ids)
    model.choose_kernels(choices, ids)
    assert model.kernels["loss"] == "reference"
    assert not model.losses_without_logits
    torch.testing.assert_close(model(input_ids=ids, targets=ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("everything_counts")
def test_compiled_layers_are_a_candidate_where_they_can_be_built(choices: Choices, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for the compiler, which counts what it is given."""
    calls: list[int] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (calls.append(1), function(*args, **kwargs))[1]

    monkeypatch.setattr("hylo.kernels.compiled.torch.compile", counting)
    monkeypatch.setattr(measured, "chosen", lambda seconds: "compiled" if "compiled" in seconds else min(seconds))
    model, ids = adapt(tiny_model("llama"), method("dora")), tokens(2, 12)
    model.choose_kernels(choices, ids, compilable=True)
    assert model.kernels["layers"] == "compiled"
    assert len(calls) == hylo.kernels.fastest.ROUNDS + 1
    assert all(layer._compiled_call_impl is None for layer in model.base.model.layers)


@pytest.mark.parametrize(
    ("most", "expected"), [(5_000, (4, 256)), (1_024, (4, 256)), (600, (2, 256)), (100, (1, 100)), (3, (1, 16))]
)
def test_large_work_is_measured_on_a_part(most: int, expected: tuple[int, int]):
    ids = torch.arange(1024).reshape(4, 256)
    part = hylo.kernels.fastest.part_of(ids, most)
    assert part.shape == expected
    assert torch.equal(part, ids[: expected[0], : expected[1]])


@pytest.mark.usefixtures("everything_counts")
def test_a_model_whose_layers_cannot_be_called_alone_is_fused(
    choices: Choices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Nothing of the attempt stays: modes, hooks, gradients and fused forwards are as before."""
    model, ids = adapt(tiny_model("llama"), method("lora")), tokens(2, 12)
    expected = model(input_ids=ids, targets=ids)
    forward = type(model.base.model.layers[0]).forward

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if broken_now:
            raise RuntimeError("not without my neighbours")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base.model.layers[0]), "forward", broken)
    broken_now = True
    model.choose_kernels(choices, ids)
    broken_now = False
    assert model.kernels["layers"] == "fused"
    assert "not measured: not without my neighbours" in capsys.readouterr().out
    assert not model.base.training
    assert not model.base.model.layers[0]._forward_pre_hooks
    torch.testing.assert_close(model(input_ids=ids, targets=ids), expected, rtol=1e-4, atol=1e-4)


def test_small_work_is_not_measured(choices: Choices):
    model = adapt(tiny_model("llama"), method("lora"))
    model.choose_kernels(choices, tokens(2, 12))
    assert model.kernels == {"layers": "fused", "loss": "fused"}
    assert not choices.file.exists()


# --- runs ---


def recorded_runs(outputs: Path) -> list[RunRecord]:
    """The base model's run, and the method's."""
    return [records[0] for records in read_study(outputs / "runs").cells.values()]


@pytest.mark.usefixtures("everything_counts")
def test_a_record_says_which_kernels_ran(
    choices: Choices, tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And a second run on the same machine measures nothing and gives the same bits."""
    assert train("method=rslora", *tiny, f"outputs={tmp_path / 'a'}") == 0
    assert "kernels: layers " in capsys.readouterr().out
    before = choices.file.read_bytes()
    assert train("method=rslora", *tiny, f"outputs={tmp_path / 'b'}") == 0
    assert choices.file.read_bytes() == before
    one, two = (recorded_runs(tmp_path / name) for name in "ab")
    kernels = [record.result["environment"]["kernels"] for record in one]
    assert [sorted(each) for each in kernels] == [["layers", "loss", "products"]] * 2
    assert {entry for entry in json.loads(before) if entry.startswith("layer ")}
    assert kernels == [record.result["environment"]["kernels"] for record in two]
    for first, second in zip(one, two, strict=True):
        assert (first.folder / "eval.parquet").read_bytes() == (second.folder / "eval.parquet").read_bytes()


@pytest.mark.parametrize(("kernels", "way"), [("fused", "fused"), ("reference", "reference")])
def test_named_kernels_measure_nothing(choices: Choices, tiny: tuple[str, ...], tmp_path: Path, kernels: str, way: str):
    assert train("method=rslora", *tiny, f"trainer.kernels={kernels}", f"outputs={tmp_path}") == 0
    for record in recorded_runs(tmp_path):
        assert record.result["environment"]["kernels"] == {"layers": way, "loss": way, "products": {}}
    assert not choices.file.exists()
