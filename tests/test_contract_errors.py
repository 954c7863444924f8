"""Impossible methods are refused before anything is attached, with the value, what is allowed, and the fix."""

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from adapters import CONFIGS, CONTEXT, adapt, assert_same_state, method, perturb, perturbed, snapshot, tiny

from hylo.adapters.component import BuildContext, Component
from hylo.adapters.full import FullConfig
from hylo.adapters.landmarks.position_adaptive import PositionAdaptiveConfig
from hylo.adapters.low_rank import LowRankConfig
from hylo.adapters.model import AdaptedModel, Method, method_problems
from hylo.adapters.position_bias import PositionBiasConfig
from hylo.adapters.saved import SETTINGS, WEIGHTS, read_settings
from hylo.core.errors import ConfigError, RecordError
from hylo.models.base import skeleton_from_config

IMPOSSIBLE: list[tuple[Method, str, str]] = [
    ({"position_bias": PositionBiasConfig()}, "method.position_bias = 'position_bias'", "method.low_rank"),
    ({"full": FullConfig(), "low_rank": LowRankConfig()}, "method.full = 'full'", "remove low_rank"),
    ({"full": FullConfig(), "landmark": PositionAdaptiveConfig()}, "method.full = 'full'", "remove landmark"),
    ({"low_rank": LowRankConfig(rank=33)}, "method.low_rank.rank = 33", "1 to 32"),  # k and v: 48 to 32
    ({"low_rank": LowRankConfig(target_modules=["wq"])}, "['wq']", "q_proj"),
    ({"low_rank": LowRankConfig(target_modules=["q_proj", "proj"])}, "'proj' matches no", "q_proj"),
    ({"low_rank": LowRankConfig(target_modules=["lm_head"])}, "'lm_head' matches no", "all-linear"),
    ({"low_rank": LowRankConfig(target_modules=["norm"])}, "'norm' matches no", "all-linear"),
    ({"low_rank": LowRankConfig(target_modules=[])}, "method.low_rank.target_modules = []", "all-linear"),
    ({"low_rank": LowRankConfig(dropout=1.0)}, "low_rank.dropout = 1.0", ">= 0 and < 1"),
    ({"low_rank": LowRankConfig(alpha=float("nan"))}, "low_rank.alpha = nan", "> 0"),
    ({"low_rank": LowRankConfig(learning_rate_multiplier=0.0)}, "low_rank.learning_rate_multiplier = 0.0", "> 0"),
    ({"landmark": PositionAdaptiveConfig(num_landmarks=0)}, "landmark.num_landmarks = 0", ">= 1"),
    ({"landmark": PositionAdaptiveConfig(max_position=1)}, "landmark.max_position = 1", ">= 2"),
]


@pytest.mark.parametrize(("components", "value", "hint"), IMPOSSIBLE, ids=[value for _, value, _ in IMPOSSIBLE])
def test_refused_with_value_allowed_and_fix(components: Method, value: str, hint: str):
    base = tiny("llama")
    before = snapshot(base)
    with pytest.raises(ConfigError) as caught:
        adapt(base, components)
    message = str(caught.value)
    assert value in message
    assert hint in message
    assert "allowed: " in message
    assert "fix: " in message
    assert_same_state(base, before)


def test_a_hook_under_its_earlier_name_is_refused():
    """It would never be called, and the component would silently train without it."""
    with pytest.raises(TypeError, match="Old: begin_step is now on_step_start"):
        type("Old", (Component,), {"begin_step": lambda self, step, steps: None})


def test_a_model_that_carries_an_adapter_is_refused():
    """Two would train on top of each other, and detaching the first would break the second."""
    base = tiny("llama")
    model = adapt(base, method("lora"))
    for carrier in (base, copy.deepcopy(base)):
        with pytest.raises(ConfigError, match="carries no adapter; this one does"):
            adapt(carrier, method("lora"))
    assert adapt(model.detach(), method("lora")).attached


def test_a_model_with_layers_of_peft_is_refused():
    base = tiny("llama")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), base)
    with pytest.raises(ConfigError, match="without PEFT's layers"):
        adapt(base, method("lora"))


def test_several_problems_are_told_at_once():
    components = {"position_bias": PositionBiasConfig(num_buckets=0), "low_rank": LowRankConfig(rank=0, alpha=-1.0)}
    with pytest.raises(ConfigError) as caught:
        adapt(tiny("llama"), components)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("rank", [32, 33])
def test_the_largest_rank_is_the_smaller_side_and_checked_without_weights(rank: int):
    components = {"low_rank": LowRankConfig(rank=rank)}
    skeleton = BuildContext(skeleton_from_config(CONFIGS["llama"]), CONTEXT, seed=0)
    assert bool(list(method_problems(components, skeleton))) == (rank > 32)
    if rank == 32:
        assert adapt(tiny("llama"), components).parameter_counts()["trainable"] > 0


@pytest.mark.parametrize("other", [LowRankConfig(rank=4), LowRankConfig(magnitude=True)])
def test_a_saved_adapter_of_another_method_is_refused(other: LowRankConfig, tmp_path: Path):
    perturbed(tiny("llama"), method("lora")).save(tmp_path)
    model = adapt(tiny("llama"), {"low_rank": other})
    before = snapshot(model)
    with pytest.raises(RecordError, match=WEIGHTS):
        model.load(tmp_path)
    assert_same_state(model, before)


def test_a_damaged_adapter_is_a_record_error(tmp_path: Path):
    """A single error names the file, whatever is wrong with it."""
    model = perturbed(tiny("llama"), method("lora"))
    model.save(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    settings["method"]["low_rank"]["component"] = "no_such_component"
    for text in ("{", "{}", json.dumps(settings)):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(RecordError, match=SETTINGS):
            read_settings(tmp_path)
    (tmp_path / SETTINGS).unlink()
    with pytest.raises(RecordError, match=SETTINGS):
        read_settings(tmp_path)


@pytest.mark.parametrize("change", [{"rnak": 8}, {"rank": "eight"}, {"rank": -1}])
def test_adapter_settings_are_checked_like_any_other(change: dict[str, object], tmp_path: Path):
    """An adapter's JSON may come from anywhere: keys may be unknown, of the wrong type or out of range."""
    model = perturbed(tiny("llama"), method("lora"))
    model.save(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    settings["method"]["low_rank"] |= change
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises((RecordError, ConfigError), match=r"rank|rnak"):
        adapt(tiny("llama"), read_settings(tmp_path)[0])


def test_restoring_gives_back_method_seed_and_tensors_or_leaves_the_model_alone(tmp_path: Path):
    """Tensors are checked last: a failure there must not leave the untrained adapter attached."""
    trained = AdaptedModel(tiny("llama"), method("hylorada"), context_length=CONTEXT, seed=5)
    perturb(trained)
    trained.save(tmp_path)
    base = tiny("llama")
    before = snapshot(base)
    restored = AdaptedModel.restore(base, tmp_path)
    assert (restored.method, restored.context_length, restored.seed) == (method("hylorada"), CONTEXT, 5)
    assert_same_state(restored, snapshot(trained))
    restored.detach()

    other = tiny("gpt2")
    with pytest.raises(RecordError, match="was trained on LlamaForCausalLM"):
        AdaptedModel.restore(other, tmp_path)
    with pytest.raises(RecordError, match="does not fit"):
        AdaptedModel.restore(other, tmp_path, other_base=True)
    for rank in (4, 33):  # other shapes, and a rank that the layers do not allow
        settings = json.loads((tmp_path / SETTINGS).read_text())
        settings["method"]["low_rank"]["rank"] = rank
        (tmp_path / SETTINGS).write_text(json.dumps(settings))
        with pytest.raises(RecordError, match="does not fit"):
            AdaptedModel.restore(base, tmp_path)
        assert_same_state(base, before)
        assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("change", [{"context_length": -1}, {"context_length": "long"}, {"seed": None}, {"method": []}])
def test_settings_besides_the_method_are_checked_as_well(change: dict[str, object], tmp_path: Path):
    perturbed(tiny("llama"), method("lora")).save(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(settings | change))
    with pytest.raises(RecordError, match=SETTINGS):
        AdaptedModel.restore(tiny("llama"), tmp_path)


def test_a_cut_off_weights_file_is_a_record_error(tmp_path: Path):
    model = perturbed(tiny("llama"), method("lora"))
    model.save(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    for damaged in (content[: len(content) // 2], b"", None):
        (tmp_path / WEIGHTS).unlink()
        if damaged is not None:
            (tmp_path / WEIGHTS).write_bytes(damaged)
        with pytest.raises(RecordError, match=WEIGHTS):
            model.load(tmp_path)


def test_a_component_needs_a_forward_pass():
    model = adapt(tiny("llama"), method("hylorada"))
    with pytest.raises(TypeError, match="by keyword"):
        model(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3))
