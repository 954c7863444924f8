"""The benchmarks run on a tiny model and write their rows, page and figure; the measured values are not tested."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import ROOT

from benchmarks.__main__ import peft_problems
from benchmarks.random_models import RANDOM
from benchmarks.results import Results, Row, measured, spread
from benchmarks.scripts import prepared
from benchmarks.settings import Shape, Subject, adapted_everywhere
from benchmarks.sides import SIDES, base_model, make_side
from hylo.core.errors import ConfigError
from hylo.models.sharding import shared_copy
from hylo.models.weights import is_quantized, uses_dequantized

ON_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

PARTS = {
    ("step", f"{method} 1x16", metric)
    for method in ("lora", "dora", "hylorada")
    for metric in ("seconds_per_step", "tokens_per_second")
} | {("memory", f"{method} 1x16", "peak_bytes_above_weights") for method in ("lora", "dora", "hylorada")}


def benchmarked(folder: Path, *options: str) -> tuple[dict[tuple[str, str, str], dict[str, Any]], dict[str, Any]]:
    """The rows and the machine of one call of the benchmarks, for one shape and one round."""
    command = [sys.executable, "-m", "benchmarks", "--shapes", "1x16", "--steps", "1", *options, "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = json.loads((folder / "results.json").read_text())
    rows = {(row["part"], row["work"], row["metric"]): row for row in kept["rows"]}
    assert all(math.isfinite(value) for row in kept["rows"] for value in row.values() if isinstance(value, float))
    page = (folder / "results.md").read_text()
    assert all(f"| {work} |" in page for _, work, _ in rows)
    return rows, kept["machine"]


@pytest.mark.exhaustive  # steps and memory are measured in ten processes
def test_benchmarks_of_a_tiny_model(tmp_path: Path) -> None:
    rows, machine = benchmarked(tmp_path, "--model", "tiny_llama", "--only", "step,evaluation,memory")
    assert rows.keys() >= PARTS | {("step", f"{method} 1x16", "ratio_to_own_lora") for method in ("dora", "hylorada")}
    assert {part for part, _, _ in rows} == {"step", "evaluation", "memory"}
    assert all(rows[key]["hylo"] is not None and rows[key]["peft"] is not None for key in PARTS)
    assert machine.keys() == {"cpu", "cores", "threads", "gpu", "versions"}
    for kind in ("png", "svg"):
        assert (tmp_path / "figures" / f"ratios.{kind}").stat().st_size > 1_000


@pytest.mark.parametrize("name", ["random_tiny", "tiny_llama"])
def test_each_side_multiplies_quantized_weights_in_its_own_way(name: str) -> None:
    """The library's layers on peft's side, those of a run on hylo's; both on the same weights."""
    pytest.importorskip("bitsandbytes")
    subject = Subject(name, weights="nf4")
    config, base = adapted_everywhere(subject, "lora", Shape(1, 16)), base_model(subject)
    weights = {id(each) for each in base.parameters()}
    products = {}
    for side in SIDES:
        model = make_side(side, subject, config, shared_copy(base)).model
        quantized = [module for module in model.modules() if is_quantized(module)]
        assert len(quantized) == 14
        assert {id(module.weight) for module in quantized} <= weights
        products[side] = {uses_dequantized(module) for module in quantized}
    assert products == {"hylo": {True}, "peft": {False}}


def test_a_side_of_peft_that_cannot_run_is_refused() -> None:
    assert not peft_problems(Subject("random_tiny", peft="compiled"))
    (message,) = peft_problems(Subject("random_tiny", peft="liger"))
    assert "hylo[liger]" in message


@pytest.mark.slow  # several processes
@pytest.mark.parametrize(
    ("device", "weights", "part"),
    [
        ("cpu", "nf4", "evaluation"),  # and bfloat16 in all other arithmetic
        pytest.param("cuda", "bfloat16", "step,evaluation,memory", marks=ON_CUDA),
        pytest.param("cuda", "nf4", "step,evaluation,memory", marks=ON_CUDA),
    ],
)
def test_benchmarks_of_random_weights(tmp_path: Path, device: str, weights: str, part: str) -> None:
    where = ("--model", "random_tiny", "--weights", weights, "--device", device)
    rows, machine = benchmarked(tmp_path, *where, "--only", part)
    assert {row[0] for row in rows} == set(part.split(","))
    assert f"`random_tiny`, {weights}" in (tmp_path / "results.md").read_text()
    assert (machine["gpu"] is not None) == (device == "cuda")


def test_a_row_replaces_its_own_alone_and_stands_beside_its_work(tmp_path: Path) -> None:
    results = Results.of(Subject("tiny_llama"), tmp_path)
    for value in (1.0, 2.0):
        results.add(Row(part="step", work="lora 1x16", metric="seconds_per_step", hylo=value))
        results.add(Row(part="step", work=f"dora {value}", metric="seconds_per_step", hylo=value))
    results.add(Row(part="step", work="lora 1x16", metric="tokens_per_second", hylo=3.0))
    results.write(tmp_path)
    again = Results.read(tmp_path)
    assert again is not None
    assert [(row.work, row.hylo) for row in again.rows] == [
        ("lora 1x16", 2.0),
        ("lora 1x16", 3.0),
        ("dora 1.0", 1.0),
        ("dora 2.0", 2.0),
    ]
    for other in (Subject("gpt2"), Subject("tiny_llama", device="cuda"), Subject("tiny_llama", weights="bfloat16")):
        with pytest.raises(ConfigError, match="another --out"):
            Results.of(other, tmp_path)


def test_whole_programs_need_a_pretrained_model_in_float32() -> None:
    """Refused before anything is measured, with what to do instead."""
    assert Subject("smollm2_135m", device="cuda").whole_programs
    for subject in (*map(Subject, RANDOM), Subject("smollm2_135m", weights="bfloat16")):
        with pytest.raises(ConfigError, match="step,memory,evaluation"), prepared(subject):
            pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "a device of this machine" in done.stderr
    assert not list(tmp_path.iterdir())


def test_ratios_are_those_of_the_rounds() -> None:
    """The ratio of medians would be 2 / 2 here: it mixes rounds, one of them on a busy machine."""
    row = measured("step", "lora", "seconds_per_step", [1.0, 2.0, 30.0], [2.0, 1.0, 60.0])
    assert (row.hylo, row.peft, row.ratio_to_peft, row.rounds) == (2.0, 2.0, 0.5, 3)


def test_spread() -> None:
    assert spread([3.0]) is None
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(0.5)
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx((4 - 2) / 2 / 3)


@pytest.mark.slow  # four processes that import torch or matplotlib
@pytest.mark.exhaustive
def test_the_costs_of_many_cells(tmp_path: Path) -> None:
    """Small, but the whole way: a plan, records in the real format, both reports, rows and page."""
    command = [sys.executable, "-m", "benchmarks.scale", "--cells", "10", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {
        (row["work"], row["metric"]): row["hylo"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]
    }
    works = ["plan of 10 cells", "report of 10 records", "report of 10 records, 5 seeds per cell, 1 contrasts"]
    assert list(dict.fromkeys(work for work, _ in rows)) == works
    assert all(rows[work, metric] > 0 for work in works for metric in ("cpu_seconds", "peak_bytes"))
    assert "## Many cells" in (tmp_path / "results.md").read_text()
