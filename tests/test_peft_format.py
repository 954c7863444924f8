"""Adapters in the peft library's folder format: what one side writes, the other reads, with the same logits."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters import adapt, assert_same_state, logits, method, perturbed, snapshot, tiny, tokens, trained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.families.tiny import tiny_model
from hylo.adapters.low_rank import LowRankConfig, Scaling
from hylo.adapters.peft.format import CONFIG, PICKLE, WEIGHTS, export_peft, import_peft
from hylo.core.errors import ConfigError, RecordError
from hylo.models.targets import ALL_LINEAR

IDS = tokens(2, 12)
FORMS: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 6.5},
    "rslora": {"scaling": Scaling.rank_stabilized},
    "dora": {"magnitude": True},
    "rslora_dora": {"scaling": Scaling.rank_stabilized, "magnitude": True},
}
TARGETS: dict[str, list[list[str] | None]] = {
    "llama": [None, [ALL_LINEAR], ["v_proj", "layers.1.self_attn.q_proj", "mlp.down_proj"]],
    "gpt2": [None, [ALL_LINEAR], ["mlp.c_proj", "h.0.attn.c_attn"]],  # c_proj of attention has the same suffix
}
CASES = [(architecture, index) for architecture, choices in TARGETS.items() for index in range(len(choices))]


def _from_pretrained(base: PreTrainedModel, folder: Path) -> nn.Module:
    """The adapter as loaded by the library; its warnings about missing and unexpected tensors are errors here."""
    with warnings.catch_warnings():
        # peft 0.21.2 reads a property that transformers 5.23.0 calls deprecated (November 2026).
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def _by_the_library(base: PreTrainedModel, folder: Path, **kwargs: Any) -> Tensor:
    """Writes an adapter with the library, with every tensor perturbed, and returns its logits."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"], "task_type": "CAUSAL_LM"} | kwargs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's warnings about transformers, and about kwargs refused here
        model: Any = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings)).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        model.save_pretrained(str(folder))
        return logits(model, IDS)


def test_names_that_the_library_would_take_for_experts_are_refused(tmp_path: Path):
    """DeepSeek's gate_proj also was a name inside experts that are fused now: the library loads another model."""
    model = perturbed(tiny_model("deepseek_v3"), {"low_rank": LowRankConfig(rank=4, target_modules=["gate_proj"])})
    with pytest.raises(ConfigError, match=r"\['gate_proj'\](.|\n)*fused experts(.|\n)*save_adapter"):
        export_peft(model, tmp_path)
    assert not any(tmp_path.iterdir())


def _edit(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | changes))


@pytest.mark.parametrize(("architecture", "targets"), CASES)
@pytest.mark.parametrize("form", FORMS)
def test_the_library_reads_what_is_exported(form: str, architecture: str, targets: int, tmp_path: Path):
    """Perturbed: at step 0 B is zero, and a zero or missing adapter would pass."""
    config = LowRankConfig(rank=4, target_modules=TARGETS[architecture][targets], **FORMS[form])
    model = perturbed(tiny(architecture), {"low_rank": config})
    expected = logits(model, IDS)
    export_peft(model, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {CONFIG, WEIGHTS}
    base = tiny(architecture)
    assert (logits(base, IDS) - expected).abs().max() > 0.1
    theirs = _from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs, IDS), expected, rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert settings["fan_in_fan_out"] == (architecture == "gpt2")
    assert (settings["r"], settings["use_dora"]) == (4, config.magnitude)


@pytest.mark.parametrize("targets", [["c_attn", "c_fc"], "all-linear", r".*\.h\.1\.(attn|mlp)\.c_proj"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_what_the_library_wrote_is_read_on_gpt2(dora: bool, rslora: bool, targets: Any, tmp_path: Path):
    base = tiny("gpt2")
    kwargs = {"target_modules": targets, "use_dora": dora, "use_rslora": rslora, "fan_in_fan_out": True}
    expected = _by_the_library(base, tmp_path, **kwargs)
    torch.testing.assert_close(logits(import_peft(base, tmp_path), IDS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "targets", [["q_proj", "down_proj"], "all-linear", r".*layers\.1\..*_proj", ["q_proj", "absent"]]
)
@pytest.mark.parametrize("dora", [False, True])
def test_what_the_library_wrote_is_read_on_llama(dora: bool, targets: Any, tmp_path: Path):
    base = tiny("llama")
    expected = _by_the_library(base, tmp_path, target_modules=targets, use_dora=dora, use_rslora=True)
    model = import_peft(base, tmp_path)
    torch.testing.assert_close(logits(model, IDS), expected, rtol=0, atol=1e-5)
    assert not model.training
    assert all(tensor.requires_grad for tensor in trained(model).values())


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "rslora_dora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_a_round_trip_keeps_every_bit_and_the_method(name: str, architecture: str, tmp_path: Path):
    model = perturbed(tiny(architecture), method(name))
    export_peft(model, tmp_path)
    again = import_peft(tiny(architecture), tmp_path)
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    ours, theirs = model.method["low_rank"], again.method["low_rank"]
    assert isinstance(ours, LowRankConfig)
    assert isinstance(theirs, LowRankConfig)
    assert (theirs.rank, theirs.scale, theirs.magnitude) == (ours.rank, ours.scale, ours.magnitude)
    export_peft(again, tmp_path / "again")
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_half_precision_tensors_become_float32(tmp_path: Path):
    export_peft(perturbed(tiny("llama"), method("lora")), tmp_path)
    halved = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(halved, tmp_path / WEIGHTS)
    model = import_peft(tiny("llama"), tmp_path)
    assert {tensor.dtype for tensor in trained(model).values()} == {torch.float32}


@pytest.mark.parametrize("name", ["landmark_pa", "hylorada", "full", "peft_vera", "none"])
def test_export_refuses_what_the_format_cannot_hold(name: str, tmp_path: Path):
    model = adapt(tiny("llama"), method(name))
    with pytest.raises(ConfigError) as caught:
        export_peft(model, tmp_path / "adapter")
    others = [slot for slot in method(name) if slot != "low_rank"] or ["no low_rank"]
    assert [slot for slot in others if f"method = '{slot}'" not in str(caught.value)] == []
    assert not (tmp_path / "adapter").exists()


OPTIONS: dict[str, dict[str, Any]] = {
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["norm"]},
    "layers_to_transform": {"layers_to_transform": [0]},
    "exclude_modules": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "lora_bias": {"lora_bias": True},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "task_type": {"task_type": "SEQ_CLS"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_without_a_counterpart_are_refused_by_name(option: str, tmp_path: Path):
    """Written by the library itself, so that the names are the library's."""
    kwargs = dict(OPTIONS[option])
    edited = {key: kwargs.pop(key) for key in ("task_type",) if key in kwargs}
    base = tiny("llama")
    _by_the_library(base, tmp_path, **kwargs)
    _edit(tmp_path, **edited)
    before = snapshot(base)
    with pytest.raises(ConfigError, match=option):
        import_peft(base, tmp_path)
    assert_same_state(base, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type = 'VERA'"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"an_option_of_tomorrow": True}, "an_option_of_tomorrow"),
        ({"rank_pattern": {"q_proj": 2}, "bias": "all"}, r"(?s)(rank_pattern.*bias|bias.*rank_pattern)"),
    ],
)
def test_other_types_and_unknown_options_are_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    export_peft(perturbed(tiny("llama"), method("lora")), tmp_path)
    _edit(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        import_peft(tiny("llama"), tmp_path)


def _rename(folder: Path, old: str, new: str | None) -> None:
    """Renames tensors whose names contain a text, or drops them."""
    saved = load_file(folder / WEIGHTS)
    save_file({key.replace(old, new or ""): t for key, t in saved.items() if new or old not in key}, folder / WEIGHTS)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (lambda folder: (folder / CONFIG).unlink(), CONFIG),
    "half the settings": (lambda folder: (folder / CONFIG).write_text('{"peft_type": '), CONFIG),
    "other settings": (lambda folder: (folder / CONFIG).write_text('{"model_type": "llama"}'), "peft_type"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "peft_type"),
    "no tensors": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "half the tensors": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:900]), WEIGHTS),
    "a pickle": (lambda folder: (folder / WEIGHTS).rename(folder / PICKLE), "pickle"),
    "a layer less": (lambda folder: _rename(folder, "layers.0.self_attn.q_proj", None), "q_proj has no tensors"),
    "a matrix less": (lambda folder: _rename(folder, "layers.0.self_attn.q_proj.lora_B", None), "q_proj.B"),
    "a layer that is not there": (lambda folder: _rename(folder, "layers.0", "layers.7"), "not a linear layer"),
    "an unknown tensor": (lambda folder: _rename(folder, "lora_B", "lora_embedding_B"), "lora_embedding_B"),
    "another rank": (lambda folder: _edit(folder, r=3), "does not fit"),
    "a rank that is none": (lambda folder: _edit(folder, r="many"), "rank"),
    "other targets": (lambda folder: _edit(folder, target_modules=["q_proj"]), "target_modules does not name"),
    "a magnitude more": (lambda folder: _edit(folder, use_dora=True), "magnitude"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_adapter_is_a_record_error_and_leaves_the_base(case: str, tmp_path: Path):
    damage, message = DAMAGE[case]
    export_peft(perturbed(tiny("llama"), method("lora")), tmp_path)
    damage(tmp_path)
    base = tiny("llama")
    before, modules = snapshot(base), list(base.modules())
    with pytest.raises(RecordError, match=message):
        import_peft(base, tmp_path)
    assert_same_state(base, before)
    assert list(base.modules()) == modules


def test_an_adapter_of_another_model_is_refused(tmp_path: Path):
    export_peft(perturbed(tiny("llama"), method("lora")), tmp_path)
    with pytest.raises(RecordError, match="GPT2LMHeadModel"):
        import_peft(tiny("gpt2"), tmp_path)
