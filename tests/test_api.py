"""The Python API as a transformers user sees it: quick start, training loops, generation, saving."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from adapters import assert_same_state, logits, method, snapshot, tiny, tokens
from datasets import Dataset
from torch import Tensor
from transformers import GPT2Config, PreTrainedModel, Trainer, TrainingArguments

import hylo
from hylo import HyLoRADAConfig, HyLoRADAModel
from hylo.adapters.model import AdaptedModel
from hylo.adapters.saved import SETTINGS, WEIGHTS
from hylo.core.errors import ConfigError, MergeRefused, RecordError
from hylo.models.base import skeleton_from_config

IDS = tokens(2, 12)
HALF: dict[str, dict[str, Any]] = {
    "default": {},
    "learnable": {"landmark_bucketing": "learnable", "use_dora_magnitude": True},
    **{design: {"landmark_design": design} for design in ("original", "per_layer", "attention")},
}
"""Settings that reach every kind of component."""
DESIGNS = {  # the equivalent method in conf/method/, and the number of parameters on GPT-2 small
    "position_adaptive": ("landmark_pa", 12_545),
    "learnable": ("landmark_learnable", 12_576),
    "original": ("landmark_original", 6_145),
    "per_layer": ("landmark_per_layer", 36_876),
    "attention": ("landmark_attention", 73_740),
}
PLAIN: dict[str, Any] = {"position_bias_enabled": False, "landmark_enabled": False}


@pytest.fixture(params=["gpt2", "llama", "qwen2"])
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@torch.no_grad()
def _moved(model: HyLoRADAModel) -> HyLoRADAModel:
    """The model with every trainable tensor perturbed, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def test_the_published_quick_start(base: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = HyLoRADAConfig(
        lora_rank=8,
        lora_alpha=16.0,
        lora_dropout=0.05,
        use_dora_magnitude=True,
        landmark_enabled=True,
        landmark_design="position_adaptive",
        landmark_bucketing="fixed",
        num_landmarks=8,
        num_position_buckets=32,
        position_bias_enabled=True,
        max_sequence_length=32,
    )
    model = HyLoRADAModel(base, config)
    model.print_trainable_params()
    assert f"landmark: {2 * 8 * 48 + 32 * 8 + 1:,d}" in capsys.readouterr().out
    expected = logits(_moved(model), IDS)
    model.save_adapter(tmp_path / "adapter")
    with pytest.raises(MergeRefused, match="landmark: "):
        model.merge()
    assert torch.equal(
        logits(HyLoRADAModel.from_pretrained(model.detach(), tmp_path / "adapter").eval(), IDS), expected
    )


def test_the_version_alone_costs_no_torch():
    code = "import sys, hylo; assert hylo.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hylo.no_such_name


def test_defaults_are_hylorada_as_composed_in_conf():
    assert HyLoRADAConfig().method() == method("hylorada")
    assert HyLoRADAConfig(use_dora_magnitude=True).method() == method("hylorada_dora")
    assert HyLoRADAConfig(use_rslora=False, **PLAIN).method() == method("lora")


@pytest.mark.parametrize("design", DESIGNS)
def test_designs_are_those_composed_in_conf(design: str):
    """All five, with exact parameter counts on GPT-2 small."""
    name, count = DESIGNS[design]
    config = HyLoRADAConfig(position_bias_enabled=False, landmark_design=design)
    assert config.method() == method(name)
    model = HyLoRADAModel(skeleton_from_config(GPT2Config()), config)
    assert model.count_landmark_params() == count
    assert model.count_trainable_params() == 811_008 + count
    assert model.max_sequence_length == 1024


OTHER_VALUES: dict[str, dict[str, Any]] = {
    "lora_enabled": {"lora_enabled": False, "position_bias_enabled": False},
    "lora_rank": {"lora_rank": 4},
    "lora_alpha": {"lora_alpha": 8},
    "lora_dropout": {"lora_dropout": 0.1},
    "use_rslora": {"use_rslora": False},
    "use_dora_magnitude": {"use_dora_magnitude": True},
    "init_a": {"init_a": "orthogonal"},
    "target_modules": {"target_modules": ("q_proj", "v_proj")},
    "position_bias_enabled": {"position_bias_enabled": False},
    "position_bias_buckets": {"position_bias_buckets": 16},
    "landmark_enabled": {"landmark_enabled": False},
    "landmark_design": {"landmark_design": "original"},
    "landmark_bucketing": {"landmark_bucketing": "learnable"},
    "num_landmarks": {"num_landmarks": 3},
    "num_position_buckets": {"num_position_buckets": 16},
    "bucket_scale": {"bucket_scale": "uniform"},
    "max_sequence_length": {"max_sequence_length": 16},
    "seed": {"seed": 1},
}


def test_every_setting_changes_the_model():
    """An option that is accepted but ignored would leave method, length and seed at their defaults."""
    assert OTHER_VALUES.keys() == {field.name for field in dataclasses.fields(HyLoRADAConfig)}
    default = _what(HyLoRADAConfig())
    assert [name for name, other in OTHER_VALUES.items() if _what(HyLoRADAConfig(**other)) == default] == []


def _what(config: HyLoRADAConfig) -> tuple[Any, ...]:
    model = HyLoRADAModel(tiny("llama"), config)
    return dict(model.method), model.max_sequence_length, model.seed


def test_learnable_buckets_by_either_name_and_scale():
    by_bucketing = HyLoRADAConfig(landmark_bucketing="learnable", num_position_buckets=4, max_sequence_length=64)
    by_design = HyLoRADAConfig(landmark_design="learnable", num_position_buckets=4, max_sequence_length=64)
    assert by_bucketing.method() == by_design.method()
    assert HyLoRADAModel(tiny("llama"), by_design).learned_boundaries().tolist() == pytest.approx([2.5, 7.5, 22.5])
    uniform = HyLoRADAConfig(landmark_design="learnable", num_position_buckets=4, bucket_scale="uniform")
    assert HyLoRADAModel(tiny("llama"), uniform).learned_boundaries().tolist() == pytest.approx([16, 32, 48])


def test_printed_counts_are_exact(base: PreTrainedModel, capsys: pytest.CaptureFixture[str]):
    model = HyLoRADAModel(base, HyLoRADAConfig(lora_rank=4, use_dora_magnitude=True))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    model.print_trainable_parameters()
    *components, last = capsys.readouterr().out.splitlines()
    assert (
        last
        == f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
    )
    counts = {line.split(": ")[0]: int(line.split(": ")[1].replace(",", "")) for line in components}
    assert sum(counts.values()) == trainable == model.count_trainable_params()
    assert counts["landmark"] == model.count_landmark_params()
    assert counts["position_bias"] == 64
    assert HyLoRADAModel(model.detach(), HyLoRADAConfig(**PLAIN)).count_landmark_params() == 0


def test_a_plain_loop_trains_the_adapter_and_nothing_else(base: PreTrainedModel):
    before = snapshot(base)
    frozen = dict(base.named_parameters())
    model = HyLoRADAModel(base, HyLoRADAConfig(landmark_bucketing="learnable")).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    start, losses = model.state_dict(), []
    start = {name: tensor.clone() for name, tensor in start.items()}
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert [name for name, tensor in model.state_dict().items() if torch.equal(tensor, start[name])] == []
    assert [name for name, parameter in frozen.items() if not torch.equal(parameter, before[name])] == []
    model.detach()
    assert_same_state(base, before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_transformers_trainer(
    base: PreTrainedModel, tmp_path: Path, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
):
    """Trains, evaluates, saves an adapter-only checkpoint, and resumes from it to the same result."""
    monkeypatch.setattr(base.config, "use_cache", True)  # Trainer turns it off, in a config that the tiny models share
    before = snapshot(base)

    def trainer() -> Any:
        model = HyLoRADAModel(base, HyLoRADAConfig(lora_dropout=0.1))
        rows = {"input_ids": tokens(12, 10).tolist(), "labels": tokens(12, 10).tolist(), "text": ["unused"] * 12}
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            activation_checkpointing=checkpointing,
        )
        data: Any = Dataset.from_dict(rows)
        return Trainer(model, arguments, train_dataset=data, eval_dataset=data)

    straight = trainer()
    start = straight.evaluate()["eval_loss"]
    straight.train()
    assert straight.evaluate()["eval_loss"] < start
    trained = {name: tensor.clone() for name, tensor in straight.model.state_dict().items()}
    straight.model.detach()
    base.activation_checkpointing_disable()
    assert_same_state(base, before)

    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=0, atol=1e-6)


def test_the_output_is_the_base_model_s(base: PreTrainedModel):
    model = HyLoRADAModel(base, HyLoRADAConfig(**PLAIN)).eval()
    mask = torch.ones_like(IDS)
    output = model(IDS, mask, labels=IDS)  # positional arguments, as the base model takes them
    assert type(output) is type(base(input_ids=IDS))
    torch.testing.assert_close(output.loss, base(input_ids=IDS, labels=IDS).loss)
    assert model(inputs_embeds=base.get_input_embeddings()(IDS)).logits.shape == (2, 12, 97)
    assert isinstance(model(input_ids=IDS, return_dict=False), tuple)
    assert (model.config, model.device, model.dtype) == (base.config, base.device, torch.float32)


@pytest.mark.parametrize("settings", HALF.values(), ids=HALF)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("converted", [False, True], ids=["loaded", "converted"])
def test_a_base_model_in_half_precision(
    base: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype, converted: bool
):
    """What transformers loads for most hub models, or a model converted afterwards: the adapter stays in float32, and
    outputs have the base model's dtype and values. Dropout takes the reference kernels in training."""
    config = HyLoRADAConfig(lora_dropout=0.1, max_sequence_length=32, **settings)
    expected = logits(_moved(HyLoRADAModel(copy.deepcopy(base), config)), IDS)
    if converted:
        model = _moved(HyLoRADAModel(base, config).to(dtype))
    else:
        model = _moved(HyLoRADAModel(cast(Any, base).to(dtype), config))
    found = logits(model, IDS)
    assert (found.dtype, model.dtype) == (dtype, dtype)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert float((found.float() - expected).square().mean().sqrt() / expected.std()) < 0.05
    assert model.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] == IDS.shape[1] + 3
    loss = model.train()(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert loss.isfinite()
    gradients = [tensor.grad for tensor in model.adapter.adapter_state_dict().values()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("design", ["position_adaptive", "attention"])
def test_generate_is_greedy_decoding_by_full_passes(base: PreTrainedModel, design: str):
    """In a left-padded batch, with the cache, rows equal their texts alone. Without positions, padding would count."""
    model = _moved(HyLoRADAModel(base, HyLoRADAConfig(landmark_design=design, use_dora_magnitude=True)))
    texts = [tokens(1, length, seed=length) for length in (4, 9)]
    ids = torch.cat([torch.nn.functional.pad(text, (9 - text.shape[1], 0)) for text in texts])
    mask = torch.tensor([[0] * 5 + [1] * 4, [1] * 9])
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=mask, **settings)
    for row, text in enumerate(texts):
        expected: Tensor = text
        for _ in range(5):
            expected = torch.cat([expected, logits(model, expected, use_cache=False)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(together[row : row + 1, -expected.shape[1] :], expected)


def test_saved_adapters_come_back_with_their_settings(base: PreTrainedModel, tmp_path: Path):
    config = HyLoRADAConfig(landmark_design="learnable", max_sequence_length=24, seed=7, target_modules=["c_proj"])
    if "c_proj" not in str(base):
        config.target_modules = ["o_proj", "down_proj"]
    model = _moved(HyLoRADAModel(base, config))
    expected, boundaries = logits(model, IDS), model.learned_boundaries()
    model.save_pretrained(str(tmp_path / "a" / "b"))
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {WEIGHTS, SETTINGS}
    again = HyLoRADAModel.from_pretrained(model.detach(), str(tmp_path / "a" / "b")).eval()
    assert torch.equal(logits(again, IDS), expected)
    assert torch.equal(again.learned_boundaries(), boundaries)
    assert (again.method, again.max_sequence_length, again.seed) == (config.method(), 24, 7)


def test_an_adapter_that_a_run_saved_is_one_of_the_api(base: PreTrainedModel, tmp_path: Path):
    run = AdaptedModel(base, method("hylorada"), context_length=16, seed=3).eval()
    run.save(tmp_path)
    expected = logits(run, IDS)
    run.detach()
    model = HyLoRADAModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(logits(model, IDS), expected)
    assert (model.max_sequence_length, model.seed) == (16, 3)


def test_the_seed_decides_the_start(base: PreTrainedModel):
    def start(seed: int) -> dict[str, Tensor]:
        model = HyLoRADAModel(base, HyLoRADAConfig(seed=seed))
        state = model.state_dict()
        model.detach()
        return state

    first, same, other = start(0), start(0), start(1)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dora", [False, True])
def test_merged_model_is_the_plain_one(base: PreTrainedModel, dora: bool):
    model = _moved(HyLoRADAModel(base, HyLoRADAConfig(use_dora_magnitude=dora, **PLAIN)))
    expected = logits(model, IDS)
    assert model.merge() is base
    torch.testing.assert_close(logits(base, IDS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(model, IDS), expected, rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in base.parameters())
    with pytest.raises(MergeRefused, match="already merged"):
        model.merge()


def test_state_of_the_adapter(base: PreTrainedModel):
    """Names are those of a saved adapter, prefixed inside another module. Loading is all or nothing."""
    model = _moved(HyLoRADAModel(base, HyLoRADAConfig(lora_rank=4)))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert state.keys() == model.adapter.adapter_state_dict().keys()
    assert torch.nn.ModuleDict({"inner": model}).state_dict().keys() == {f"inner.{name}" for name in state}
    expected = logits(model, IDS)
    _moved(model)
    assert not torch.equal(logits(model, IDS), expected)
    for strict in (False, True):
        with pytest.raises(RecordError, match="the state does not fit"):
            model.load_state_dict(dict(list(state.items())[1:]), strict=strict)
    model.load_state_dict(state)
    assert torch.equal(logits(model, IDS), expected)


def test_boundaries_need_learnable_buckets():
    for config in (HyLoRADAConfig(), HyLoRADAConfig(landmark_enabled=False)):
        with pytest.raises(ConfigError, match="landmark_bucketing='learnable'"):
            HyLoRADAModel(tiny("llama"), config).learned_boundaries()


def test_peft_format_and_back(base: PreTrainedModel, tmp_path: Path):
    model = _moved(HyLoRADAModel(base, HyLoRADAConfig(lora_alpha=8, use_dora_magnitude=True, **PLAIN)))
    expected = logits(model, IDS)
    model.export_peft(str(tmp_path / "peft"))
    again = HyLoRADAModel.import_peft(model.detach(), tmp_path / "peft").eval()
    torch.testing.assert_close(logits(again, IDS), expected, rtol=0, atol=1e-5)
