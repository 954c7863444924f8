"""What components choose and what models write: recorded from finished runs, and shown in the report."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from adapters import adapt, method, perturb, tiny, tokens
from launch import train
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.landmarks.per_layer import LayerLandmarks
from hylo.adapters.model import AdaptedModel
from hylo.analysis.readings import readings_table, texts_table
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.core.errors import ConfigError
from hylo.evaluation.probes.readings import BINS, ReadingsProbe, ReadingsProbeConfig
from hylo.evaluation.probes.texts import TextsProbe, TextsProbeConfig
from hylo.models.tiny import TinyModelConfig
from hylo.runs.store import read_study

IDS = tokens(2, 32)


def heard(model: AdaptedModel, ids: Tensor = IDS) -> dict[tuple[str, int], Tensor]:
    """What a model's components tell in one pass."""
    found: dict[tuple[str, int], Tensor] = {}
    model.positions.reader = lambda name, layer, values: found.update({(name, layer): values})
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.positions.reader = None
    return found


def perturbed(name: str, *overrides: str) -> AdaptedModel:
    model = adapt(tiny("llama"), method(name, *overrides))
    perturb(model)
    return model


@pytest.mark.parametrize(
    "name", ["landmark_pa", "landmark_learnable", "landmark_original", "landmark_per_layer", "landmark_attention"]
)
def test_listening_changes_nothing(name: str):
    model = perturbed(name)
    with torch.no_grad():
        before = model.eval()(input_ids=IDS).logits
        heard(model)
        model.positions.reader = lambda *told: None
        during = model(input_ids=IDS).logits
        model.positions.reader = None
        assert torch.equal(before, during)
        assert torch.equal(before, model(input_ids=IDS).logits)


@pytest.mark.parametrize("name", ["landmark_pa", "landmark_learnable", "landmark_original"])
def test_weights_after_the_final_norm_are_those_of_the_output(name: str):
    """From the change that the landmark makes to the final norm's output: w = out - h in terms of the rows of a L."""
    model = perturbed(name, "method.low_rank=null")
    landmark: Any = model.components["landmark"]
    outputs: list[Tensor] = []
    forward = landmark.forward
    landmark.forward = lambda h: outputs.append(h.detach()) or outputs.append(forward(h).detach()) or outputs[-1]
    ((key, weights),) = heard(model).items()
    assert key == ("landmark weights", 0)
    h, out = outputs[:2]
    solved = torch.linalg.lstsq((landmark.a * landmark.L).detach().double().T, (out - h).double().flatten(0, 1).T)
    torch.testing.assert_close(weights.double().flatten(0, 1), solved.solution.T, rtol=1e-3, atol=1e-4)


def test_weights_of_every_layer():
    model = perturbed("landmark_per_layer")
    found = heard(model)
    layers = [each for each in model.modules() if isinstance(each, LayerLandmarks)]
    assert [*found] == [("landmark weights", index) for index in range(len(layers))]
    for weights in found.values():
        assert weights.shape == (*IDS.shape, len(layers[0].L))
        torch.testing.assert_close(weights.sum(-1), torch.ones(IDS.shape))


def with_attention(architecture: str, implementation: str) -> PreTrainedModel:
    base = copy.deepcopy(tiny(architecture))  # with a config of its own: other tests share that of `tiny`
    base.set_attn_implementation(implementation)
    return base


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_attention_to_landmarks_is_what_the_text_loses(architecture: str, attention: str):
    """Against eager attention's own weights, whose columns of the text sum to what is left."""
    base = with_attention(architecture, attention)
    model = adapt(base, method("landmark_attention"))
    perturb(model)
    shares = {layer: values for (name, layer), values in heard(model).items() if name == "attention to landmarks"}
    assert [*shares] == [0, 1]
    model.detach()
    again = adapt(with_attention(architecture, "eager"), method("landmark_attention"))
    perturb(again)
    with torch.no_grad():
        attentions = again.eval()(input_ids=IDS, output_attentions=True).attentions
    for layer, weights_BHTS in enumerate(attentions):
        left = 1 - weights_BHTS.sum(-1).transpose(1, 2)
        torch.testing.assert_close(shares[layer], left, rtol=1e-4, atol=1e-5)


def test_separate_landmarks_share_their_own_softmax():
    found = heard(perturbed("landmark_attention", "method.landmark.softmax=separate"))
    assert {name for name, _ in found} == {"landmark weights"}
    for weights in found.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(IDS.shape))


def test_the_gate_is_that_of_the_positions():
    model = perturbed("hylorada", "method.landmark=null")
    bias: Any = model.components["position_bias"]
    values = heard(model)["position gate", 0]
    assert torch.equal(values, bias.make_gate(torch.arange(IDS.shape[1])[None]).unsqueeze(-1))


def test_the_table_is_the_mean_over_texts_and_positions():
    """Against a loop in Python. Bins of unequal length: 40 positions in 16 bins."""
    model = perturbed("landmark_pa")
    ids = tokens(3, 40)
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    answers = ReadingsProbe(ids.numpy()).ask(model, accelerator, cached=True, label="x")
    weights = heard(model, ids)["landmark weights", 0].mean(0)
    covered = []
    for row in answers.table.to_dict("records"):
        own = weights[row["first"] : row["last"] + 1, row["item"]]
        assert row["value"] == pytest.approx(float(own.double().mean()), abs=1e-6)
        if row["item"] == 0:
            covered += range(row["first"], row["last"] + 1)
    assert covered == [*range(40)]
    assert model.positions.reader is None


def test_texts_that_are_read(tmp_path: Path):
    tokenizer = TinyModelConfig(name="tiny").tokenizer()
    (tmp_path / "a.txt").write_text("abcdefgh" * 10)
    (tmp_path / "b.txt").write_text("ABCDEFGH" * 10)
    settings = {"tokens": BINS, "files": [str(tmp_path / "*.txt")]}
    probe = ReadingsProbeConfig(texts=4, **settings).build(tokenizer)
    said = [str(tokenizer.decode(row.tolist())) for row in probe.ids_BT]
    assert said == ["abcdefgh" * 2, "ABCDEFGH" * 2] * 2, "one after the other from each document in turn"
    with pytest.raises(ConfigError, match=r"probe\.texts = 100\n *allowed: at most 10"):
        ReadingsProbeConfig(texts=100, **settings).build(tokenizer)


def test_a_report_shows_what_components_choose(tiny: tuple[str, ...], tmp_path: Path):
    cells = "method=lora,hylorada,landmark_attention,landmark_per_layer"
    probe = ("probe=readings", "probe.tokens=32", "probe.texts=2")
    assert train("-m", *tiny, cells, *probe, f"outputs={tmp_path}", figures=True) == 0
    (sweep,) = tmp_path.glob("sweep-*")
    table = readings_table(read_study(sweep))
    found = {(row["cell"], row["quantity"]) for row in table.to_dict("records")}
    assert found == {
        ("hylorada", "landmark weights"), ("hylorada", "position gate"), ("landmark_attention", "landmark weights"),
        ("landmark_attention", "attention to landmarks"), ("landmark_per_layer", "landmark weights"),
    }  # fmt: skip
    assert (sweep / "figures" / "readings.png").stat().st_size > 10_000
    assert "what components choose" in (sweep / "report.html").read_text()


# --- texts ---


def continued(name: str, *overrides: str, **settings: Any) -> pd.DataFrame:
    probe = TextsProbeConfig(**{"count": 2, "new_tokens": 8, **settings}).build(TinyModelConfig(name="t").tokenizer())
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    cached = settings.get("cached", True)
    base = TinyModelConfig(name="t").load()
    return probe.ask(adapt(base, method(name, *overrides)), accelerator, cached=cached, label="x").table


def test_greedy_texts_are_the_most_likely_tokens():
    config = TextsProbeConfig(prompts=["To be, or"], new_tokens=6)
    tokenizer = TinyModelConfig(name="t").tokenizer()
    model = adapt(TinyModelConfig(name="t").load(), method("lora"))
    perturb(model)
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    ids = tokenizer("To be, or", return_tensors="pt")["input_ids"]
    expected = ids
    with torch.no_grad():
        for _ in range(6):
            expected = torch.cat([expected, model.eval()(input_ids=expected).logits[:, -1:].argmax(-1)], dim=1)
    for cached in (True, False):
        table = TextsProbe(config, config.prompts, tokenizer).ask(model, accelerator, cached=cached, label="x").table
        written = tokenizer.decode(expected[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
        assert table["continuation"].tolist() == [written]


def test_draws_follow_from_the_seed_alone():
    state = torch.random.get_rng_state()
    one = continued("lora", temperature=1.0)
    assert torch.equal(torch.random.get_rng_state(), state), "the state of others' draws is left alone"
    torch.manual_seed(99)
    pd.testing.assert_frame_equal(one, continued("lora", temperature=1.0))
    assert not one["continuation"].equals(continued("lora", temperature=1.0, seed=1)["continuation"])


def test_texts_stand_in_the_report(tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    probe = ("probe=texts", "probe.count=2", "probe.new_tokens=5")
    assert train("-m", *tiny, "method=lora,rslora", *probe, f"outputs={tmp_path}") == 0
    assert "2 texts; the first goes on: " in capsys.readouterr().out
    (sweep,) = tmp_path.glob("sweep-*")
    table = texts_table(read_study(sweep))
    assert table["cell"].tolist() == ["none", "lora", "rslora"] * 2
    assert table["prompt"].tolist() == [0] * 3 + [1] * 3
    assert table.groupby("prompt")["beginning"].nunique().tolist() == [1, 1]
    page = (sweep / "report.html").read_text()
    assert "What every cell continues." in page
    assert np.all(["\n" not in row for row in (sweep / "summary.md").read_text().splitlines()])


def test_an_empty_prompt_is_refused(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert train(*tiny, "method=lora", "probe=texts", "probe.prompts=['']") == 2
    assert "texts that are not empty" in capsys.readouterr().err
