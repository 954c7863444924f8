"""Scaled rotary positions: angles against the formulas, what they change, and settings that would change nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import composed, train
from torch import Tensor
from transformers import GPT2Config, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hylo.core.errors import ConfigError
from hylo.models.architecture import model_context_length
from hylo.models.rope import RopeScaling, RopeType, rope_problems
from hylo.models.tiny import TinyModelConfig, byte_tokenizer
from hylo.runs.cell import Cell, check
from hylo.runs.shared import Session
from hylo.runs.store import read_study

D, L, BASE, FACTOR = 64, 256, 10_000.0, 4.0
SCALED = [type for type in RopeType if type is not RopeType.unscaled]


def angles(rope: RopeScaling, length: int, longest: int = L) -> tuple[list[float], float]:
    """Angle per position of each pair, as the model computes them for a text of this length, and what queries and keys
    are multiplied by."""
    config: Any = LlamaConfig(hidden_size=2 * D, num_attention_heads=2, max_position_embeddings=longest)
    rope.applied(config)
    embedding = LlamaRotaryEmbedding(config)
    embedding(torch.zeros(1), torch.arange(length)[None])
    return embedding.inv_freq.double().tolist(), embedding.attention_scaling


def theta(i: int, base: float = BASE) -> float:
    return base ** (-2 * i / D)


def test_linear_divides_every_angle():
    found, scale = angles(RopeScaling(type=RopeType.linear, factor=FACTOR), 8)
    assert found == pytest.approx([theta(i) / FACTOR for i in range(D // 2)], rel=1e-6)
    assert scale == 1


@pytest.mark.parametrize("length", [8, L, L + 1, 3 * L])
def test_dynamic_raises_the_base_beyond_the_longest_context(length: int):
    found, scale = angles(RopeScaling(type=RopeType.dynamic, factor=FACTOR), length)
    base = BASE * max(1.0, FACTOR * length / L - (FACTOR - 1)) ** (D / (D - 2))
    assert found == pytest.approx([theta(i, base) for i in range(D // 2)], rel=1e-5)
    assert scale == 1


def test_yarn_keeps_fast_angles_and_divides_slow_ones():
    longest = 4096  # enough for several pairs at both ends
    found, scale = angles(RopeScaling(type=RopeType.yarn, factor=FACTOR), 8, longest)
    turns = [longest * theta(i) / (2 * math.pi) for i in range(D // 2)]
    fast, slow = ([i for i, each in enumerate(turns) if chosen(each)] for chosen in (lambda n: n > 32, lambda n: n < 1))
    assert len(fast) > 2
    assert len(slow) > 2
    shares = [found[i] / theta(i) for i in range(D // 2)]
    # The ends of the mix are rounded outwards to whole pairs.
    assert shares[: fast[-1] + 1] == pytest.approx([1.0] * len(fast), rel=1e-6)
    assert shares[slow[0] :] == pytest.approx([1 / FACTOR] * len(slow), rel=1e-6)
    mixed = shares[fast[-1] : slow[0] + 1]
    assert mixed == sorted(mixed, reverse=True)
    assert scale == pytest.approx(0.1 * math.log(FACTOR) + 1)


def tiny(type: RopeType, factor: float, *, context: int = 32) -> TinyModelConfig:
    return TinyModelConfig(name="tiny", context=context, rope=RopeScaling(type=type, factor=factor))


@torch.no_grad()
def logits(config: TinyModelConfig, length: int, **kwargs: Any) -> Tensor:
    ids = torch.arange(length)[None] % 250
    return config.load()(input_ids=ids, **kwargs).logits


@pytest.mark.parametrize("type", SCALED)
def test_which_texts_a_model_reads_differently(type: RopeType):
    """Same weights. Linear and YaRN change short texts, dynamic changes those beyond the longest context alone."""
    scaled, plain = tiny(type, 2.0), tiny(RopeType.unscaled, 1.0, context=64)
    short = torch.equal(logits(scaled, 32), logits(plain, 32))
    assert short == (type is RopeType.dynamic)
    assert not torch.allclose(logits(scaled, 60), logits(plain, 60), atol=1e-4)
    assert model_context_length(scaled.load()) == model_context_length(scaled.skeleton()) == 64


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"factor": 2.0}, "model.rope.factor = 2.0"),
        *(({"type": type}, f"more than 1 with model.rope.type={type.name}") for type in SCALED),
    ],
)
def test_a_setting_that_changes_nothing_is_refused(rope: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        RopeScaling(**rope).applied(LlamaConfig())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GPT2Config(), "gpt2 has no rotary positions"),
        (
            LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            r"already scaled \(linear\)",
        ),
    ],
)
def test_models_without_positions_to_scale_are_refused(config: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        RopeScaling(type=RopeType.yarn, factor=2.0).applied(config)


def test_a_model_that_does_not_read_the_setting_is_refused():
    (said,) = rope_problems(RopeScaling(type=RopeType.yarn, factor=2.0), tiny(RopeType.linear, 2.0).skeleton(), 64)
    assert "does not read the setting" in said


def refusal(tiny: tuple[str, ...], *overrides: str) -> str:
    cell = Cell("runs", "none", composed(*tiny, "method=none", *overrides))
    with pytest.raises(ConfigError) as caught:
        check(cell, Session())
    return str(caught.value)


def test_contexts_that_a_model_cannot_read(tiny: tuple[str, ...]):
    """Beyond the longest context, with the way out where there is one; and dynamic scaling where nothing is scaled."""
    said = refusal(tiny, "model.context=64", "data.context_length=200")
    assert "4 to 64, the longest context" in said
    assert "data.context_length=64, or model.rope.type=yarn model.rope.factor=4" in said
    said = refusal(tiny, "model=tiny_gpt2", "data.context_length=1025")
    assert "4 to 512" in said
    assert "rope" not in said
    for type in ("linear", "dynamic"):
        longer = ("model.context=64", f"model.rope.type={type}", "model.rope.factor=2")
        assert "or model.rope.factor=4" in refusal(tiny, *longer, "data.context_length=200")
    assert "up to there model.rope.type=dynamic changes nothing" in refusal(tiny, *longer, "data.context_length=64")


def test_runs_beyond_the_longest_context(tiny: tuple[str, ...], tmp_path: Path):
    """From a folder, whose config stays as it is; the record knows the scaling."""
    model = TinyModelConfig(name="tiny", context=16)
    model.load().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    folder = (*tiny, "model=folder", f"model.folder={tmp_path / 'model'}", "method=none", f"outputs={tmp_path}")
    for factor in (2, 3):
        assert train(*folder, "model.rope.type=yarn", f"model.rope.factor={factor}") == 0
    results = [run.result for runs in read_study(tmp_path / "runs").cells.values() for run in runs]
    folders = list((tmp_path / "runs").glob("none-*"))
    assert len(folders) == 2, "each has a fingerprint of its own"
    assert results[-1]["model"]["identity"].endswith("rope yarn 3.0")
    assert results[-1]["config"]["model"]["rope"] == {"type": "yarn", "factor": 3.0}
