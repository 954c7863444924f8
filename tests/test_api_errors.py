"""Bad arguments of the Python API: a ValueError that names the setting, its value, what is allowed, and the fix.

Messages use the names of `HyLoRADAConfig`: an API user never wrote `method.low_rank.rank`.
"""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from adapters import assert_same_state, snapshot, tiny, tokens
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BloomConfig,
    GPTJConfig,
    LlamaConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hylo import HyLoRADAConfig, HyLoRADAModel
from hylo.adapters.saved import EARLIER_SETTINGS, SETTINGS, WEIGHTS
from hylo.core.errors import ConfigError, RecordError

NAN, INFINITY = float("nan"), float("inf")
IN_CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "rank 0": ({"lora_rank": 0}, "lora_rank = 0 | a number >= 1 | lora_rank=8"),
    "negative rank": ({"lora_rank": -8}, "lora_rank = -8 | a number >= 1 | lora_rank=8"),
    "fractional rank": ({"lora_rank": 8.5}, "lora_rank = 8.5 | an integer | lora_rank=8"),
    "rank True": ({"lora_rank": True}, "lora_rank = True | an integer | lora_rank=8"),
    "rank as text": ({"lora_rank": "8"}, "lora_rank = '8' | an integer | lora_rank=8"),
    "rank None": ({"lora_rank": None}, "lora_rank = None | an integer | lora_rank=8"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha = 0.0 | a number > 0 | lora_alpha=16.0"),
    "negative alpha": ({"lora_alpha": -1.0}, "lora_alpha = -1.0 | a number > 0 | lora_alpha=16.0"),
    "alpha NaN": ({"lora_alpha": NAN}, "lora_alpha = nan | a number > 0 | lora_alpha=16.0"),
    "infinite alpha": ({"lora_alpha": INFINITY}, "lora_alpha = inf | a number > 0 | lora_alpha=16.0"),
    "alpha as text": ({"lora_alpha": "16"}, "lora_alpha = '16' | a number | lora_alpha=16.0"),
    "dropout 1": ({"lora_dropout": 1.0}, "lora_dropout = 1.0 | >= 0 and < 1 | lora_dropout=0.0"),
    "negative dropout": ({"lora_dropout": -0.1}, "lora_dropout = -0.1 | >= 0 and < 1 | lora_dropout=0.0"),
    "switch as text": ({"use_rslora": "no"}, "use_rslora = 'no' | True or False | use_rslora=True"),
    "switch as number": ({"landmark_enabled": 1}, "landmark_enabled = 1 | True or False | landmark_enabled=True"),
    "unknown start of A": ({"init_a": "zero"}, "init_a = 'zero' | 'kaiming', 'orthogonal' | init_a='kaiming'"),
    "target as text": ({"target_modules": "q_proj"}, "target_modules = 'q_proj' | a list of names | =None"),
    "target no text": ({"target_modules": [1]}, "target_modules = [1] | a list of names | =None"),
    "1 bucket of the bias": ({"position_bias_buckets": 1}, "position_bias_buckets = 1 | >= 2 | =64"),
    "unknown design": ({"landmark_design": "best"}, "landmark_design = 'best' | 'per_layer' | ='position_adaptive'"),
    "design no text": ({"landmark_design": ["original"]}, "landmark_design = ['original'] | 'original' | ="),
    "unknown bucketing": (
        {"landmark_bucketing": "log"},
        "landmark_bucketing = 'log' | 'fixed', 'learnable' | ='fixed'",
    ),
    "unknown scale": ({"bucket_scale": "linear"}, "bucket_scale = 'linear' | 'logarithmic', 'uniform' | ="),
    "no landmarks": ({"num_landmarks": 0}, "num_landmarks = 0 | >= 1 | num_landmarks=8"),
    "no landmarks, switched off": ({"num_landmarks": 0, "landmark_enabled": False}, "num_landmarks = 0 | >= 1 | =8"),
    "fractional landmarks": ({"num_landmarks": 4.0}, "num_landmarks = 4.0 | an integer or None | =None"),
    "1 bucket": ({"num_position_buckets": 1}, "num_position_buckets = 1 | >= 2 | num_position_buckets=32"),
    "0 tokens": ({"max_sequence_length": 0}, "max_sequence_length = 0 | >= 2 | a value in range"),
    "negative seed": ({"seed": -1}, "seed = -1 | >= 0 | seed=0"),
    "learnable buckets of a design without": (
        {"landmark_design": "per_layer", "landmark_bucketing": "learnable"},
        "landmark_bucketing = 'learnable' | 'per_layer', which has no position buckets | ='position_adaptive'",
    ),
    "number of buckets of a design without": (
        {"landmark_design": "attention", "num_position_buckets": 16},
        "num_position_buckets = 16 | 'attention', which has no position buckets | leave it out",
    ),
    "position bias without LoRA": (
        {"lora_enabled": False},
        "position_bias_enabled = True | it scales the low-rank update | position_bias_enabled=False",
    ),
    "nothing on": (
        {"lora_enabled": False, "position_bias_enabled": False, "landmark_enabled": False},
        "lora_enabled = False | True where landmark_enabled=False | lora_enabled=True",
    ),
}
ON_MODEL: dict[str, tuple[dict[str, Any], str]] = {  # k and v of the tiny model map 48 to 32; its context is 64 tokens
    "rank too large": ({"lora_rank": 33}, "lora_rank = 33 | 1 to 32, the smaller side of | lora_rank=8"),
    "unknown target": ({"target_modules": ["wq"]}, "target_modules = ['wq'] | it has down_proj | ['all-linear']"),
    "no target": ({"target_modules": []}, "target_modules = [] | it has down_proj | ['all-linear']"),
    "output head as target": (
        {"target_modules": ["lm_head"]},
        "target_modules = ['lm_head'] | it has | ['all-linear']",
    ),
    "longer than the model": (
        {"max_sequence_length": 65},
        "max_sequence_length = 65 | 2 to 64 | max_sequence_length=64",
    ),
}


def _assert_told(error: pytest.ExceptionInfo[ValueError], expected: str) -> None:
    """`expected` is `setting = value | what is allowed | the fix`."""
    message = str(error.value)
    setting, allowed, fix = expected.split(" | ")
    told = dict(zip(("setting", "allowed", "fix"), message.split("\n"), strict=True))
    assert told["setting"] == setting
    assert allowed in told["allowed"]
    assert fix in told["fix"]
    assert "method." not in message


@pytest.mark.parametrize("name", IN_CONFIG)
def test_refused_without_a_model(name: str):
    settings, expected = IN_CONFIG[name]
    with pytest.raises(ValueError, match="allowed: ") as error:
        HyLoRADAConfig(**settings)
    _assert_told(error, expected)


@pytest.mark.parametrize("name", ON_MODEL)
def test_refused_on_the_model_which_stays_as_it_was(name: str):
    settings, expected = ON_MODEL[name]
    base = tiny("llama")
    before = snapshot(base)
    with pytest.raises(ValueError, match="allowed: ") as error:
        HyLoRADAModel(base, HyLoRADAConfig(**settings))
    _assert_told(error, expected)
    assert_same_state(base, before)
    assert all(parameter.requires_grad for parameter in base.parameters())
    HyLoRADAModel(base, HyLoRADAConfig())


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"(?s)max_sequence_length = 1.*lora_rank = 0.*num_landmarks = -1"):
        HyLoRADAConfig(lora_rank=0, num_landmarks=-1, max_sequence_length=1)
    with pytest.raises(ValueError, match=r"(?s)lora_rank = '8'.*use_rslora = 1.*landmark_design = 'x'"):
        HyLoRADAConfig(lora_rank="8", use_rslora=1, landmark_design="x")  # pyright: ignore[reportArgumentType]


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="lora_rnak"):
        HyLoRADAConfig(lora_rnak=8)  # pyright: ignore[reportCallIssue]
    with pytest.raises(AttributeError, match="lora_rnak"):
        HyLoRADAConfig().lora_rnak = 8  # pyright: ignore[reportAttributeAccessIssue]


def test_settings_changed_afterwards_are_checked_again():
    config = HyLoRADAConfig()
    config.lora_rank = 0
    with pytest.raises(ValueError, match="lora_rank = 0"):
        HyLoRADAModel(tiny("llama"), config)


_SMALL: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
_T5 = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
NO_LANGUAGE_MODEL = {
    "module": torch.nn.Linear(2, 2),
    "name": "gpt2",
    "none": None,
    "encoder": BertModel(BertConfig(intermediate_size=8, **_SMALL)),
    "without head": AutoModel.from_config(LlamaConfig(intermediate_size=8, **_SMALL)),
    "encoder and decoder": T5ForConditionalGeneration(_T5),
}


@pytest.mark.parametrize("name", NO_LANGUAGE_MODEL)
def test_a_base_that_is_no_causal_language_model(name: str, tmp_path: Path):
    base: Any = NO_LANGUAGE_MODEL[name]
    kind = type(base).__name__
    for refused in (
        lambda: HyLoRADAModel(base, HyLoRADAConfig()),
        lambda: HyLoRADAModel.from_pretrained(base, tmp_path),
        lambda: HyLoRADAModel.import_peft(base, tmp_path),
    ):
        with pytest.raises(ValueError, match=f"base_model = '{kind}'(.|\n)*AutoModelForCausalLM"):
            refused()


def test_a_config_of_another_kind():
    config: Any = {"lora_rank": 8}
    with pytest.raises(ValueError, match=r"config = 'dict'(.|\n)*HyLoRADAConfig\(lora_rank=8\)"):
        HyLoRADAModel(tiny("llama"), config)


def test_a_base_that_carries_an_adapter(tmp_path: Path):
    """As when a notebook cell is run twice."""
    base = tiny("llama")
    model = HyLoRADAModel(base, HyLoRADAConfig())
    model.save_adapter(tmp_path)
    carriers: list[Any] = [base, model, model.adapter]
    for carrier in carriers:
        with pytest.raises(ValueError, match=r"base_model = .*(.|\n)*carries no adapter; this one does(.|\n)*detach"):
            HyLoRADAModel(carrier, HyLoRADAConfig())
        with pytest.raises(ValueError, match="carries no adapter; this one does"):
            HyLoRADAModel.from_pretrained(carrier, tmp_path)
    HyLoRADAModel(model.detach(), HyLoRADAConfig())


def test_a_design_that_the_model_cannot_host():
    own = AutoModelForCausalLM.from_config(GPTJConfig(n_embd=48, n_layer=1, n_head=4, rotary_dim=4, vocab_size=9))
    config = HyLoRADAConfig(landmark_design="attention", target_modules=["all-linear"])
    with pytest.raises(ValueError, match=r"^landmark_design = 'attention'(.|\n)*fix:     landmark_enabled=False$"):
        HyLoRADAModel(own, config)


def test_a_model_that_names_no_longest_context():
    """ALiBi has no maximum position, so the end of the buckets must be given."""
    base = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2))
    config = HyLoRADAConfig(target_modules=["query_key_value"], lora_rank=2)
    with pytest.raises(ValueError, match=r"max_sequence_length = None(.|\n)*fix:     max_sequence_length=1024"):
        HyLoRADAModel(base, config)
    config.max_sequence_length = 32
    assert HyLoRADAModel(base, config).max_sequence_length == 32


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of an adapter."""
    HyLoRADAModel(tiny("llama"), HyLoRADAConfig()).save_adapter(tmp_path)
    return tmp_path


def _refused(base: PreTrainedModel, folder: Path, match: str) -> None:
    before = snapshot(base)
    with pytest.raises(RecordError, match=match) as error:
        HyLoRADAModel.from_pretrained(base, folder)
    assert isinstance(error.value, ValueError)
    assert_same_state(base, before)
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_a_folder_that_holds_no_adapter(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "none"):
        _refused(tiny("llama"), folder, SETTINGS)
    (tmp_path / SETTINGS).write_text("{}")
    _refused(tiny("llama"), tmp_path, SETTINGS)


def test_a_damaged_adapter(saved: Path):
    content = (saved / WEIGHTS).read_bytes()
    for damaged in (b"", content[:99], content[:-4]):
        (saved / WEIGHTS).write_bytes(damaged)
        _refused(tiny("llama"), saved, WEIGHTS)
    (saved / WEIGHTS).unlink()
    _refused(tiny("llama"), saved, WEIGHTS)


def test_settings_of_a_saved_adapter_are_checked(saved: Path):
    settings = json.loads((saved / SETTINGS).read_text())
    settings["method"]["low_rank"]["rank"] = -1
    (saved / SETTINGS).write_text(json.dumps(settings))
    _refused(tiny("llama"), saved, r"(?s)does not fit LlamaForCausalLM.*rank = -1")


def test_an_adapter_of_another_model(saved: Path):
    _refused(tiny("gpt2"), saved, "trained on LlamaForCausalLM, not on this GPT2LMHeadModel")
    with pytest.raises(RecordError, match=f"{WEIGHTS} does not fit"):
        HyLoRADAModel.from_pretrained(tiny("gpt2"), saved, other_base=True)


def test_an_adapter_of_a_model_of_the_same_shapes(saved: Path):
    """Another architecture, or other weights: refused unless it is asked for."""
    _refused(tiny("mistral"), saved, "trained on LlamaForCausalLM, not on this MistralForCausalLM")
    _refused(tiny("llama", seed=1), saved, "trained on other weights, not on this LlamaForCausalLM")
    assert HyLoRADAModel.from_pretrained(tiny("llama", seed=1), saved, other_base=True).count_trainable_params()
    same = cast(Any, tiny("llama")).to(torch.bfloat16)
    assert HyLoRADAModel.from_pretrained(same, saved).count_trainable_params()


def test_an_adapter_saved_earlier(saved: Path):
    """Its settings had another name, and did not say what it was trained on."""
    settings = json.loads((saved / SETTINGS).read_text())
    del settings["base"]
    (saved / SETTINGS).unlink()
    (saved / EARLIER_SETTINGS).write_text(json.dumps(settings))
    assert HyLoRADAModel.from_pretrained(tiny("llama", seed=1), saved).count_trainable_params()


def test_an_adapter_in_its_model_s_own_folder_leaves_the_model_loadable(tmp_path: Path):
    base = tiny("llama")
    base.save_pretrained(tmp_path)
    model = HyLoRADAModel(base, HyLoRADAConfig())
    model.save_adapter(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    HyLoRADAModel.from_pretrained(again, tmp_path)
    assert_same_state(again, snapshot(base))


def test_reentrant_checkpointing_is_refused_where_layers_share_a_tensor():
    """It ended in an error of autograd about a graph that was gone."""
    model = HyLoRADAModel(tiny("llama"), HyLoRADAConfig()).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigError, match=r"use_reentrant = True(.|\n)*method\.position_bias(.|\n)*False"):
        model(input_ids=tokens(1, 4))
    model.eval()(input_ids=tokens(1, 4))
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids=tokens(1, 4), labels=tokens(1, 4)).loss.backward()
    model.detach()
    plain = HyLoRADAModel(tiny("llama"), HyLoRADAConfig(position_bias_enabled=False)).train()
    plain.gradient_checkpointing_enable({"use_reentrant": True})
    plain(input_ids=tokens(1, 4), labels=tokens(1, 4)).loss.backward()


def test_a_model_is_not_pickled(tmp_path: Path):
    """torch.load could not make it again; so this is said before the file is written."""
    model = HyLoRADAModel(tiny("llama"), HyLoRADAConfig())
    with pytest.raises(TypeError, match="cannot be pickled; save the adapter"):
        torch.save(model, tmp_path / "model.pt")


def test_a_failed_load_leaves_the_model_usable(saved: Path):
    base = tiny("llama")
    (saved / WEIGHTS).write_bytes(b"")
    _refused(base, saved, WEIGHTS)
    with torch.no_grad():
        expected = base(input_ids=tokens(1, 4)).logits
        actual = HyLoRADAModel(base, HyLoRADAConfig(landmark_enabled=False)).eval()(tokens(1, 4)).logits
    torch.testing.assert_close(actual, expected)
