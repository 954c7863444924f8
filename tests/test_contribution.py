"""Component contributions and the evaluation at half of the steps: measured without changing the run itself."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from adapters import adapt, causal_loss, method, tiny, tokens, values
from launch import train

import hylo.runs.run
from hylo.audit import Contributions, Finding, Status
from hylo.audit.contribution import chosen_windows, read
from hylo.data.windows import Windows
from hylo.runs.layout import AUDIT
from hylo.runs.store import read_study
from hylo.training.config import TrainerConfig
from hylo.training.optimizers.adamw import AdamWConfig
from hylo.training.step import make_optimizer

IDS = tokens(2, 20)
WINDOWS = Windows(
    IDS.numpy().astype(np.int32), np.ones((2, 19), int), np.array(["a", "a"]), np.array([0, 20]), np.array([20, 12])
)
"""The second one is padded from its twelfth token."""


def measured(name: str, rate: float, steps: int = 4) -> tuple[Contributions, Any]:
    base = tiny("llama")
    before = read(base, base, WINDOWS)
    model = adapt(base, method(name))
    contributions = Contributions(model, WINDOWS, before)
    optimizer = make_optimizer(model, TrainerConfig(learning_rate=rate, optimizer=AdamWConfig()))
    for _ in range(steps):
        model.zero_grad()
        causal_loss(model(input_ids=IDS).logits, IDS).backward()
        optimizer.step()
    return contributions, model


def test_the_section_by_hand() -> None:
    """Change and gain against forward passes with tensors set by hand, one at a time; the model is left unchanged."""
    contributions, model = measured("hylorada", 1e-2)
    trained = values(model)
    finding = contributions.after_training()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in values(model).items()), "bit for bit"
    section = contributions.section
    assert section["slots"].keys() == {"low_rank", "position_bias", "landmark"}
    assert section["at_start"] < 0.01 < section["at_end"]

    base = tiny("llama")
    plain = read(base, base, WINDOWS)
    full = read(model, model.base, WINDOWS)
    assert plain.hidden.shape == (32, base.config.hidden_size), "padding is no part of it"
    assert plain.losses.shape == (30,)
    (bias,) = (tensor for name, tensor in model.tensors()["position_bias"].items())
    end = bias.detach().clone()
    with torch.no_grad():
        bias.copy_(torch.zeros_like(bias))
        without = read(model, model.base, WINDOWS)
        bias.copy_(2 * end)
        double = read(model, model.base, WINDOWS)
        bias.copy_(end)
    found = section["slots"]["position_bias"]
    assert found["change"] == pytest.approx(float((full.hidden - without.hidden).norm() / plain.hidden.norm()))
    assert found["gain_doubled"] == pytest.approx(float((full.losses - double.losses).double().mean()))
    assert finding.status in (Status.passed, Status.noted)


@pytest.mark.parametrize(
    ("lengths", "chosen"), [([5, 256, 256, 256], [1, 2]), ([256, 8, 511], [0, 2]), ([256, 512, 600], [2]), ([7], [0])]
)
def test_the_longest_windows_are_read_and_one_is_enough_if_it_is_long(lengths: list[int], chosen: list[int]) -> None:
    ids = np.zeros((len(lengths), max(lengths)), np.int32)
    documents, places = np.array(["a"] * len(lengths)), np.arange(len(lengths))
    windows = Windows(ids, np.ones((len(ids), ids.shape[1] - 1), int), documents, places, np.array(lengths))
    assert chosen_windows(windows).first_token.tolist() == chosen


def test_what_hardly_moved_is_undertrained_and_what_moved_is_not() -> None:
    slow, _ = measured("landmark_pa", 1e-5)
    assert slow.after_training().names == ("low_rank", "landmark")
    fast, _ = measured("landmark_pa", 3e-2, steps=30)
    assert "low_rank" not in fast.after_training().names
    assert fast.section["slots"]["low_rank"]["change"] > 0.01


def test_a_trained_base_model_is_measured_as_a_whole() -> None:
    contributions, _ = measured("full", 1e-2)
    assert contributions.after_training().status is Status.skipped
    assert contributions.section["slots"] == {}
    assert contributions.section["at_end"] > 0


@pytest.mark.parametrize("name", ["hylorada_dora", "full"])
def test_a_run_has_the_same_bits_with_and_without_these_measurements(
    name: str, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dropout = [] if name == "full" else ["method.low_rank.dropout=0.1"]
    assert train(*tiny, f"method={name}", *dropout) == 0
    evaluate = hylo.runs.run.evaluate

    def only_at_the_end(*arguments: Any, label: str, **options: Any) -> Any:
        return (
            mock.Mock(bins=pd.DataFrame({"a": [0]}))
            if "half-way" in label
            else evaluate(*arguments, label=label, **options)
        )

    left_out = mock.Mock(
        return_value=mock.Mock(
            section={}, after_training=lambda: Finding(check="contribution", status=Status.skipped, detail="")
        )
    )
    with (
        mock.patch.object(hylo.runs.run, "evaluate", only_at_the_end),
        mock.patch.object(hylo.runs.run, "Contributions", left_out),
        mock.patch.object(hylo.runs.run, "prepare_for_training"),
    ):
        assert train(*tiny, f"method={name}", *dropout, "outputs=plain") == 0
    left_out.assert_called_once()
    (plain,) = Path("plain/runs").glob(f"{name}*/eval.parquet")
    (full,) = Path("outputs/runs").glob(f"{name}*/eval.parquet")
    assert plain.read_bytes() == full.read_bytes()
    run = next(runs[0] for cell, runs in read_study(Path("outputs/runs")).cells.items() if cell != "none")
    assert run.half is not None
    assert run.half["tokens"].tolist() == run.eval["tokens"].tolist()
    assert run.half["nll_sum"].tolist() != run.eval["nll_sum"].tolist()
    checks = {finding["check"]: finding for finding in json.loads((run.folder / AUDIT).read_text())}
    assert "contribution" in checks
    assert run.result["contribution"]["at_end"] > 0
