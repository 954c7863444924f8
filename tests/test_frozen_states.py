"""Cells that act after the final norm begin at stored states: the same bits, and nothing that should not be stored."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapt, method, perturb, tiny, tokens
from launch import composed
from safetensors.torch import load_file
from torch import Tensor, nn

import hylo.core.cache
from hylo.kernels.frozen_states import STATES, FrozenStates
from hylo.models.tiny import TinyArchitecture, TinyModelConfig
from hylo.runs.cell import Cell
from hylo.runs.layout import ADAPTER, EVAL
from hylo.runs.record import RunRecord
from hylo.runs.run import run_cell
from hylo.runs.shared import Session

ALONE = ("method=landmark_pa", "method.low_rank=null")
GIB = 2.0**30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYLO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hylo.core.cache, "_CHECKED", set())
    return tmp_path / "cache" / "states"


def run(outputs: Path, *overrides: str) -> RunRecord:
    """In a session of its own, as in another process."""
    return run_cell(Cell("runs", "x", composed(*overrides, f"outputs={outputs}")), Session())


def bits(record: RunRecord) -> tuple[bytes, ...]:
    return tuple((record.folder / name).read_bytes() for name in (EVAL, f"{ADAPTER}/adapter.safetensors"))


def test_the_same_bits_and_the_next_cell_computes_nothing(tiny: tuple[str, ...], tmp_path: Path):
    without = run(tmp_path / "without", *tiny, *ALONE, "trainer.states_gib=0")
    first = run(tmp_path / "first", *tiny, *ALONE)
    again = run(tmp_path / "again", *tiny, *ALONE)
    assert bits(without) == bits(first) == bits(again)
    assert "states_read" not in without.result["training"]
    (read, computed), (later, none) = (
        [each.result["training"][f"states_{name}"] for name in ("read", "computed")] for each in (first, again)
    )
    assert (later, none) == (read + computed, 0)
    assert computed > 0
    other = run(tmp_path / "other", *tiny, *ALONE, "trainer.learning_rate=0.1")
    assert other.result["training"]["states_computed"] == 0, "another rate reads the same windows"
    assert bits(other) != bits(first)
    assert first.result["training"]["steps_from_states"] == 0, "only its second evaluation began at states"
    assert again.result["training"]["steps_from_states"] == 4
    seeded = run(tmp_path / "seeded", *tiny, *ALONE, "seed=1")
    assert seeded.result["training"]["steps_from_states"] == 0
    assert 0 < seeded.result["training"]["states_computed"] < read + computed, "all seeds have the evaluation windows"


@pytest.mark.parametrize("name", ["landmark_original", "landmark_learnable"])
def test_other_landmarks_after_the_final_norm(name: str, tiny: tuple[str, ...], tmp_path: Path):
    run(tmp_path / "before", *tiny, *ALONE)
    own = (f"method={name}", "method.low_rank=null")
    shared = run(tmp_path / "shared", *tiny, *own)
    assert shared.result["training"]["states_computed"] == 0, "they share the states of another method"
    assert bits(shared) == bits(run(tmp_path / "alone", *tiny, *own, "trainer.states_gib=0"))


@pytest.mark.parametrize("overrides", [("method=landmark_pa",), ("method=landmark_per_layer", "method.low_rank=null")])
def test_methods_that_act_before_the_final_norm(
    overrides: tuple[str, ...], tiny: tuple[str, ...], tmp_path: Path, cache: Path
):
    assert "states_read" not in run(tmp_path, *tiny, *overrides).result["training"]
    assert not cache.exists()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("trainer.states_gib=1e-6", "are needed, trainer.states_gib allows 0.0 GiB"),
        ("model.architecture=gpt2", "GPT2LMHeadModel draws random numbers in training"),
    ],
)
def test_states_that_cannot_be_kept_are_said(
    override: str, reason: str, tiny: tuple[str, ...], tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
):
    assert "states_read" not in run(tmp_path, *tiny, *ALONE, override).result["training"]
    assert not cache.exists()
    assert f"hidden states are not kept: {reason}" in re.sub(r"[\d.]+ GiB are", "are", capsys.readouterr().out)


def losses(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, targets=inputs["input_ids"].roll(-1, dims=1))


IDS = tokens(2, 12)
PADDED = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS).index_fill(1, torch.tensor([0, 1]), 0)}
RESTARTED = {"input_ids": IDS, "position_ids": torch.arange(12).remainder(5).expand(2, 12)}


@pytest.mark.parametrize("inputs", [{"input_ids": IDS}, PADDED, RESTARTED], ids=["whole", "padded", "packed"])
@pytest.mark.parametrize("architecture", list(TinyArchitecture))
def test_losses_and_gradients_of_every_architecture(architecture: TinyArchitecture, inputs: dict[str, Tensor]):
    found, states = [], None
    for budget in (None, GIB, GIB):
        base = TinyModelConfig(name="x", architecture=architecture).load()
        for module in base.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # a model with dropout is declined
        states = FrozenStates(base, "name", budget) if budget else None
        model = adapt(base, method("landmark_pa", ALONE[1]))
        perturb(model)
        model.states = states
        loss = model(**inputs, targets=IDS.roll(-1, dims=1)).sum()
        loss.backward()
        gradients = [t.grad.flatten() for t in model.adapter_state_dict().values() if t.grad is not None]
        assert len(gradients) == len(model.adapter_state_dict())
        found.append(torch.cat([loss.detach()[None], *gradients]))
        if states:
            assert states.declined is None
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert states is not None
    assert (states.read, states.computed) == (1, 0)


def test_another_model_has_other_states():
    models = [tiny("llama", seed=seed) for seed in (0, 1)]
    states = [FrozenStates(base, str(seed), GIB) for seed, base in enumerate(models)]
    for each in states:
        with each.of({"input_ids": IDS}):
            pass
    assert [each.computed for each in states] == [1, 1]


def test_a_damaged_file_is_computed_again(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    base = tiny("llama")
    model = adapt(base, method("landmark_pa", "method.low_rank=null"))
    expected = losses(model, {"input_ids": IDS})
    model.states = FrozenStates(base, "name", GIB)
    assert torch.equal(losses(model, {"input_ids": IDS}), expected)
    (path,) = cache.glob(f"*/{STATES}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(hylo.core.cache, "_CHECKED", set())
    assert torch.equal(losses(model, {"input_ids": IDS}), expected)
    assert "is damaged (states.safetensors); making it again" in capsys.readouterr().err
    assert model.states.computed == 2


def test_those_unused_for_longest_make_room(cache: Path):
    base = tiny("llama")
    size = 2 * 12 * 48 * 4
    states = FrozenStates(base, "name", 2.5 * (size + 200))
    batches = [tokens(2, 12, seed=seed) for seed in range(3)]

    def read(batch: int) -> bool:
        before = states.read
        with states.of({"input_ids": batches[batch]}):
            pass
        return states.read > before

    assert [read(0), read(1), read(0)] == [False, False, True]
    assert not read(2)
    assert len([*cache.glob(f"*/{STATES}")]) <= 3
    assert read(0), "it was used after the second one"
    assert not read(1)


def test_what_another_process_threw_away_is_computed(cache: Path, monkeypatch: pytest.MonkeyPatch):
    base = tiny("llama")
    states = FrozenStates(base, "name", GIB)
    with states.of({"input_ids": IDS}):
        pass

    def gone(*args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr("hylo.kernels.frozen_states.load_file", gone)
    with states.of({"input_ids": IDS}):
        pass
    assert states.computed == 2
    assert [*map(len, map(load_file, cache.glob(f"*/{STATES}")))] == [1]


def test_a_full_disk_costs_nothing_but_time(cache: Path, monkeypatch: pytest.MonkeyPatch):
    base = tiny("llama")
    model = adapt(base, method("landmark_pa", "method.low_rank=null"))
    expected = losses(model, {"input_ids": IDS})

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hylo.kernels.frozen_states.save_file", full)
    model.states = FrozenStates(base, "name", GIB)
    assert [torch.equal(losses(model, {"input_ids": IDS}), expected) for _ in range(2)] == [True, True]
    assert model.states.computed == 2
    assert not [*cache.glob("*")]


def test_a_model_that_draws_random_numbers_in_training_is_declined():
    """As a module, or in the attention function. Its own modes, and the draws of others, are left as they were."""
    state = torch.random.get_rng_state()
    base: Any = tiny("llama")
    base.model.layers[0].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.1)).eval()
    base.model.layers[1].train()
    modes = [module.training for module in base.modules()]
    assert "draws random numbers" in str(FrozenStates(base, "name", GIB).declined)
    assert [module.training for module in base.modules()] == modes
    base = tiny("llama")
    base.model.layers[1].self_attn.attention_dropout = 0.1
    assert "draws random numbers" in str(FrozenStates(base, "name", GIB).declined)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_that_does_more_after_its_layers_is_declined():
    base: Any = tiny("llama")
    own = base.model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    base.model.forward = scaled
    assert "does more after its layers" in str(FrozenStates(base, "name", GIB).declined)
