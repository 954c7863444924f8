"""Runs and their records: content, determinism, completeness, failure, reuse, damage."""

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from launch import composed, files_below, train

import hylo.runs.run
from hylo.adapters.model import adapted
from hylo.adapters.saved import read_settings
from hylo.cli.main import SESSION
from hylo.core.devices import accelerator_for
from hylo.data.base import Split
from hylo.evaluation.perplexity import evaluate
from hylo.models.tiny import TinyModelConfig
from hylo.runs.layout import AUDIT, COMPLETE, FAILED, SCHEMA_VERSION
from hylo.runs.record import RunRecord
from hylo.runs.shared import weights_checksum
from hylo.runs.store import read_study


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(cell: str, outputs: str = "outputs", group: str = "runs") -> RunRecord:
    return read_study(Path(outputs, group)).cells[cell][0]


def test_the_record_of_a_run(tiny: tuple[str, ...]) -> None:
    """The names are a contract: reports and other tools read them."""
    assert train(*tiny, "method=hylorada") == 0
    run = record("hylorada")
    result = run.result
    assert (result["schema_version"], result["status"], result["study"], result["seed"]) == (
        SCHEMA_VERSION,
        COMPLETE,
        "runs",
        0,
    )
    assert run.folder.name.endswith(f"-seed0-{result['fingerprint']}")
    assert set(result["metrics"]) == {
        "ppl", "lim_ppl", "head_ppl", "tail_ppl", "mean_window_ppl", "nll_nats_per_token", "bits_per_byte", "word_ppl",
        "eval_tokens",
    }  # fmt: skip
    assert set(result["training"]) == {
        "optimizer", "steps", "tokens", "seconds", "tokens_per_second", "utilization", "peak_memory_bytes",
        "estimated_peak_memory_bytes", "final_loss", "nonfinite_steps",
        "max_loss_jump", "padding_share",
    }  # fmt: skip
    assert set(result["config"]) == {"model", "data", "method", "trainer", "seed"}
    assert result["config"]["method"]["low_rank"]["rank"] == 8, "what no override says is there, too"
    assert result["audit"] == {"failed": []}
    checks = {finding["check"]: finding for finding in json.loads((run.folder / AUDIT).read_text())}
    assert {"causality", "unmoved_tensors", "deterministic_evaluation"} < set(checks)
    assert set(checks["causality"]) == {"check", "status", "value", "limit", "detail", "names"}
    assert set(result["environment"]) >= {"versions", "git_revision", "device", "threads"}
    assert 0 < result["environment"]["overhead_seconds"] < 60
    params = result["params"]
    assert set(params["by_component"]) == {"low_rank", "position_bias", "landmark"}
    assert params["trainable"] == sum(params["by_component"].values()) < params["total"]

    assert list(run.eval.columns) == ["window", "bin", "nll_sum", "tokens", "bytes", "words"]
    assert list(run.windows.columns) == ["window", "document", "first_token", "length"]
    assert set(run.windows["length"]) == {32}
    nll, tokens, size = (float(run.eval[name].to_numpy().sum()) for name in ("nll_sum", "tokens", "bytes"))
    assert tokens == result["metrics"]["eval_tokens"] == 6 * 31
    assert result["metrics"]["ppl"] == pytest.approx(math.exp(nll / tokens))
    assert result["metrics"]["bits_per_byte"] == pytest.approx(nll / math.log(2) / size)
    assert list(run.curve["step"]) == [1, 2, 3, 4]
    assert run.curve["tokens"].sum() == result["training"]["tokens"] == 4 * 2 * 32
    assert {path.name for path in run.folder.iterdir()} == {
        "adapter", "audit.json", "config.yaml", "curve.jsonl", "eval.parquet", "half.parquet", "result.json",
        "sha256.json", "thirds.parquet", "windows.parquet",
    }  # fmt: skip


def test_windows_can_be_recomputed_from_the_record(tiny: tuple[str, ...]) -> None:
    assert train(*tiny, "method=none") == 0
    run, config = record("none"), composed(*tiny, "method=none")
    texts = {document.name: document.text for document in config.data.documents(Split.test)}
    tokenizer = config.model.tokenizer()
    windows = SESSION.eval_windows(config.data, config.model)
    for row, ids in zip(run.windows.to_dict("records"), windows.ids, strict=True):
        tokens = tokenizer(texts[row["document"]], add_special_tokens=False)["input_ids"]
        assert tokens[row["first_token"] : row["first_token"] + row["length"]] == ids.tolist()


def test_the_saved_adapter_gives_the_recorded_numbers(tiny: tuple[str, ...]) -> None:
    assert train(*tiny, "method=hylorada_dora_learnable") == 0
    run, config = record("hylorada_dora_learnable"), composed(*tiny, "method=hylorada_dora_learnable")
    method, context_length, *_ = read_settings(run.folder / "adapter")
    accelerator = accelerator_for(config.trainer.device, config.trainer.precision)
    with adapted(config.model.load(), method, context_length=context_length, seed=99) as model:
        model.load(run.folder / "adapter")
        windows = SESSION.eval_windows(config.data, config.model)
        again = evaluate(model, windows, accelerator, batch_size=8, label="again")
    assert np.array_equal(again.bins["nll_sum"], run.eval["nll_sum"])


@pytest.mark.parametrize(
    "method",
    ["hylorada_dora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("landmark_learnable", "full"))],
)
def test_same_seed_same_bits(method: str, tiny: tuple[str, ...]) -> None:
    """Cells that ran earlier in the same process leave no trace, neither in weights nor in random state."""
    cell = (*tiny, f"method={method}", *(["method.low_rank.dropout=0.1"] if method != "full" else []))
    name = method if method == "full" else f"{method},low_rank.dropout=0.1"
    assert train(*cell, "outputs=first") == 0
    torch.manual_seed(1234)
    assert train(*tiny, "method=lora", "seed=5", "outputs=between") == 0
    assert train(*cell, "outputs=second") == 0
    first, second = record(name, "first"), record(name, "second")
    pd.testing.assert_frame_equal(first.eval, second.eval, check_exact=True)
    assert [line["loss"] for line in lines(first)] == [line["loss"] for line in lines(second)]
    weights = "adapter/adapter.safetensors"
    assert (first.folder / weights).read_bytes() == (second.folder / weights).read_bytes()
    assert train(*cell, "seed=1", "outputs=third") == 0
    assert lines(record(name, "third")) != lines(first)


def lines(run: RunRecord) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "curve.jsonl").read_text().splitlines()]


def test_base_weights_are_bit_equal_after_every_cell(tiny: tuple[str, ...]) -> None:
    config = composed(*tiny)
    base = SESSION.base(config.model, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    assert train("-m", *tiny, "method=full,hylorada_dora_learnable") == 0
    assert SESSION.base(config.model, torch.device("cpu")) is base, "loaded twice"
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert weights_checksum(base) == weights_checksum(config.model.load())


def test_a_complete_run_is_not_run_again(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*tiny, "method=lora") == 0
    before, printed = files_below(Path("outputs")), capsys.readouterr().out
    with mock.patch.object(hylo.runs.run, "execute", side_effect=AssertionError("ran again")):
        assert train(*tiny, "method=lora") == 0
    records = {name: at for name, at in files_below(Path("outputs")).items() if "seed0" in name and ".lock" not in name}
    assert len(records) >= 7
    assert records.items() <= before.items(), "a record was written again"
    table = printed[printed.index("runs: Against") :]
    assert table in capsys.readouterr().out


def test_the_same_run_in_another_study_is_adopted(tiny: tuple[str, ...]) -> None:
    """One record under two names: the second costs a copy."""
    assert train(*tiny, "method=lora") == 0
    with mock.patch.object(hylo.runs.run, "execute", side_effect=AssertionError("ran again")):
        assert train(*tiny, "method=lora", "method.low_rank.rank=8", "cell=mine") == 0
    mine, lora = record("mine"), record("lora") if "lora" in read_study(Path("outputs/runs")).cells else None
    assert lora is None, "the report of the last call names its own cells"
    assert mine.result["metrics"]["eval_tokens"] == 6 * 31
    assert mine.folder.name == f"mine-seed0-{mine.result['fingerprint']}"


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        ("bfloat16", "nf4"),
        pytest.param("float32", "int8", marks=pytest.mark.slow),
        pytest.param("bfloat16", "none", marks=pytest.mark.slow),
        pytest.param("float16", "none", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_narrow_weights(dtype: str, quantization: str, tiny: tuple[str, ...]) -> None:
    """Audited without a finding; the base weights end as they began, packed or not; counted as if they were not."""
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    held = (f"model.dtype={dtype}", f"model.quantization={quantization}")
    assert train(*tiny, "method=hylorada_dora", *held) == 0
    records = [json.loads(path.read_text()) for path in Path("outputs/runs").glob("*/result.json")]
    assert [record["audit"]["failed"] for record in records] == [[], []]
    plain = TinyModelConfig(name="x").load().num_parameters()
    assert {record["params"]["total"] - record["params"]["trainable"] for record in records} == {plain}
    assert all(f", {dtype if quantization == 'none' else quantization}" in r["model"]["identity"] for r in records)


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_others(tiny: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """An alpha of 1e30 makes the loss overflow in the second step: a real failure, not a staged one."""
    bad = ("method.low_rank.alpha=1e30", "trainer.max_nonfinite_steps=0")
    sweep = ("-m", *tiny, "method=lora,rslora", "method.low_rank.alpha=16,1e30", "trainer.max_nonfinite_steps=0")
    assert train(*sweep) == 1
    printed = capfd.readouterr()
    study = read_study(next(Path("outputs").glob("sweep-*")))
    status = {cell: runs[0].result["status"] for cell, runs in study.cells.items()}
    names = [name for name in status if "1e+30" in name]
    assert len(names) == 2
    assert all((state == FAILED) == (name in names) for name, state in status.items())
    for name in names:
        assert name in printed.out, "the sweep does not name the cell that failed"
        folder = study.cells[name][0].folder
        assert "TrainingDiverged" in (folder / "traceback.txt").read_text()
        assert study.cells[name][0].result["metrics"] == {}
    assert train(*tiny, "method=lora", *bad) == 1


def test_a_failed_run_is_run_again_and_a_complete_one_is_not(tiny: tuple[str, ...]) -> None:
    sweep = ("-m", *tiny, "method=lora,rslora")
    real = hylo.runs.run.train

    def fails_on_rslora(model: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        if named["label"].startswith("rslora"):
            raise RuntimeError("the disk is full")
        return real(model, *arguments, **named)

    with mock.patch.object(hylo.runs.run, "train", side_effect=fails_on_rslora):
        assert train(*sweep) == 1
    labels = []
    with mock.patch.object(
        hylo.runs.run, "train", side_effect=lambda *a, **k: labels.append(k["label"]) or real(*a, **k)
    ):
        assert train(*sweep) == 0
    assert labels == ["rslora (seed 0)"]
    folder = read_study(next(Path("outputs").glob("sweep-*"))).cells["rslora"][0].folder
    assert not (folder / "traceback.txt").exists()


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_result_is_passed_over_and_replaced(damage: str, tiny: tuple[str, ...]) -> None:
    assert train(*tiny, "method=none") == 0
    path = record("none").folder / "result.json"
    good = json.loads(path.read_text())["metrics"]
    path.write_text(damage)
    assert train(*tiny, "method=none") == 0
    assert json.loads(path.read_text())["metrics"] == good


def test_a_damaged_table_is_named(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*tiny, "method=none") == 0
    path = record("none").folder / "eval.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    assert train(*tiny, "method=none") == 0
    assert f"{path} is damaged" in capsys.readouterr().err
    assert path.read_bytes() == good, "the run was repeated"
