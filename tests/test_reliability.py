"""The promises of docs/reliability.md: damage is noticed, interrupted work continues, one fault costs nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launch import ROOT, composed, train
from omegaconf import OmegaConf

import hylo.cli.main
import hylo.core.cache
import hylo.studies.spec
import hylo.training.loop
from hylo.cli.hydra_errors import refuse_paths, refuse_replaced
from hylo.core.errors import ConfigError, MissingDependency, RecordError
from hylo.core.files import draft_of, exclusive, remove_drafts
from hylo.core.interpolations import resolver_problems
from hylo.core.interruption import Interrupted, asked_to_stop, stop_if_asked, stopping_on_signals
from hylo.core.names import file_name, name_problems
from hylo.core.sums import SUMS, damaged_files, remove_sums, write_sums
from hylo.data.base import Document
from hylo.data.tokens import tokenize
from hylo.models.base import check_places, load_folder, skeleton_from_folder
from hylo.models.tiny import TinyModelConfig, byte_tokenizer
from hylo.report.render.files import csv
from hylo.runs.cell import Cell
from hylo.runs.reuse import reuse_finished
from hylo.runs.run import run_cell
from hylo.runs.shared import Session
from hylo.runs.store import COMPLETE, INTERRUPTED, RESULT, read_run
from hylo.studies.spec import read_study_file
from hylo.training.checkpoint import BEFORE, CHECKPOINT, DAMAGED, STATE

SESSION = Session()


def flip(path: Path, seed: int = 0) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    place = int(np.random.default_rng(seed).integers(8 * len(content)))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(content))


# --- checksums ---


def test_checksums(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name in ("a", "in/b", ".lock"):
        (tmp_path / name).write_text(name)
    assert damaged_files(tmp_path) == [], "nothing was promised yet"
    write_sums(tmp_path)
    assert set(json.loads((tmp_path / SUMS).read_text())) == {"a", "in/b"}
    assert damaged_files(tmp_path) == []
    flip(tmp_path / "in" / "b")
    assert (damaged_files(tmp_path), damaged_files(tmp_path, lambda name: name == "a")) == (["in/b"], [])
    (tmp_path / "a").unlink()
    assert damaged_files(tmp_path) == ["a", "in/b"]
    (tmp_path / SUMS).write_text("{")
    assert damaged_files(tmp_path) == [SUMS]
    remove_sums(tmp_path)
    assert damaged_files(tmp_path) == []


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_of_a_record_is_noticed_and_the_run_repeated(
    seed: int, tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Parquet notices most of them itself, but not all: some gave other numbers without a word."""
    cell = Cell("runs", "none", composed(*tiny, "method=none", f"outputs={tmp_path}"))
    folder = run_cell(cell, SESSION).folder
    files = sorted(path for path in folder.iterdir() if path.suffix in (".parquet", ".json", ".yaml"))
    before = {path.name: path.read_bytes() for path in files}
    damaged = files[seed % len(files)]
    flip(damaged, seed)
    assert not reuse_finished(cell, SESSION)
    said = capsys.readouterr().err
    assert f"{damaged} is damaged" in said or (damaged.name == SUMS and " is damaged" in said)
    run_cell(cell, SESSION)
    assert (folder / "eval.parquet").read_bytes() == before["eval.parquet"]
    assert damaged_files(folder) == []


def test_a_flipped_bit_of_the_token_cache_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HYLO_CACHE", str(tmp_path))
    documents, tokenizer = [Document("a", "some text " * 50)], byte_tokenizer()
    (good,) = tokenize(documents, tokenizer)
    (folder,) = (tmp_path / "tokens").iterdir()
    expected = good.ids.tolist()
    flip(folder / "tokens.safetensors", 3)
    monkeypatch.setattr(hylo.core.cache, "_CHECKED", set())  # as in another process
    (again,) = tokenize(documents, tokenizer)
    assert again.ids.tolist() == expected
    assert f"{folder} is damaged (tokens.safetensors); making it again" in capsys.readouterr().err
    assert damaged_files(folder) == []


def test_a_folder_is_checked_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYLO_CACHE", str(tmp_path))

    def make(draft: Path) -> None:
        (draft / "file").write_text("content")

    made = hylo.core.cache.cached_folder("x", make)
    flip(made / "file")
    assert hylo.core.cache.cached_folder("x", lambda draft: pytest.fail("made again")) == made


# --- checkpoints ---

SLOW = ("trainer.checkpoint_seconds=1e-9", "method=lora", "trainer.steps=8")


class Stopped(Exception):
    """Ends a run as a crash would."""


def crashed(cell: Cell, at: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that ended during a step."""

    def update(*args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        if len(steps) == at:
            raise Stopped
        return own(*args, **kwargs)

    steps: list[None] = []
    own = hylo.training.loop.update
    with monkeypatch.context() as patch:
        patch.setattr(hylo.training.loop, "update", update)
        with pytest.raises(Stopped):
            run_cell(cell, SESSION)
    (folder,) = Path(cell.config.outputs).glob("runs/lora-*")
    return folder


@pytest.fixture
def undisturbed(tiny: tuple[str, ...], tmp_path: Path) -> bytes:
    cell = Cell("runs", "lora", composed(*tiny, *SLOW, f"outputs={tmp_path / 'undisturbed'}"))
    return (run_cell(cell, SESSION).folder / "eval.parquet").read_bytes()


@pytest.mark.parametrize("name", [STATE, "optimizer.json", "counters.json", SUMS])
def test_training_resumes_from_the_checkpoint_before_a_damaged_one(
    name: str,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: bytes,
):
    cell = Cell("runs", "lora", composed(*tiny, *SLOW, f"outputs={tmp_path / 'o'}"))
    folder = crashed(cell, 6, monkeypatch)
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {CHECKPOINT, BEFORE}
    flip(folder / CHECKPOINT / name, 1)
    record = run_cell(cell, SESSION)
    said = capsys.readouterr()
    told = f"{folder / CHECKPOINT} is damaged ({'' if name == SUMS else name}"
    assert told in said.err
    assert f"it is set aside as {DAMAGED}" in said.err
    assert "continues from step 4" in said.out
    assert (folder / "eval.parquet").read_bytes() == undisturbed
    assert len(record.curve) == 8
    assert not any(path.name.startswith(CHECKPOINT) for path in folder.iterdir())


def test_two_damaged_checkpoints_cost_the_training_and_no_more(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes
):
    cell = Cell("runs", "lora", composed(*tiny, *SLOW, f"outputs={tmp_path / 'o'}"))
    folder = crashed(cell, 6, monkeypatch)
    for name in (CHECKPOINT, BEFORE):
        flip(folder / name / STATE)
    assert len(run_cell(cell, SESSION).curve) == 8
    assert (folder / "eval.parquet").read_bytes() == undisturbed


def test_a_shortened_log_does_not_give_a_shorter_curve(
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: bytes,
):
    cell = Cell("runs", "lora", composed(*tiny, *SLOW, f"outputs={tmp_path / 'o'}"))
    folder = crashed(cell, 6, monkeypatch)
    curve = folder / "curve.jsonl"
    curve.write_text("".join(curve.read_text().splitlines(keepends=True)[:4]))
    assert list(run_cell(cell, SESSION).curve["step"]) == list(range(1, 9))
    assert "is of step 5, but the training log ends with step 4" in capsys.readouterr().err
    assert (folder / "eval.parquet").read_bytes() == undisturbed


def test_drafts_of_killed_writers_are_cleared(tmp_path: Path):
    draft_of(tmp_path / "result.json").write_text("half")
    draft_of(tmp_path / "checkpoint").mkdir()
    for name in (".lock", ".hidden", "result.json"):
        (tmp_path / name).write_text("kept")
    remove_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".hidden", "result.json"}


# --- signals ---


def test_the_first_signal_asks_and_a_twin_is_no_second_one():
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals():
        stop_if_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked_to_stop()
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            stop_if_asked()
        assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert not asked_to_stop()


def started(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited for too long"
        time.sleep(0.02)


def lines(folder: Path, pattern: str) -> list[int]:
    return [len(path.read_text().splitlines()) for path in folder.glob(pattern)]


LONG = ("trainer.steps=150", "trainer.checkpoint_seconds=1000", "method=lora")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_step_and_the_run_continues_bit_for_bit(name: str, tiny: tuple[str, ...], tmp_path: Path):
    process = started(*tiny, *LONG, cwd=tmp_path)
    wait_for(lambda: any(count > 20 for count in lines(tmp_path, "outputs/runs/lora*/curve.jsonl")))
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name), err
    assert f"{name}: finishing the current step" in err
    assert f"stopped by {name}; the same command continues" in err
    assert "Traceback" not in err
    assert "none" in out.split("Against the base model")[1], "the table of what there is"
    (folder,) = (tmp_path / "outputs" / "runs").glob("lora*")
    record = read_run(folder)
    assert (record.result["status"], record.result["error"]) == (INTERRUPTED, f"stopped by {name}")
    done = len(record.curve)
    assert 20 < done < 150
    again = started(*tiny, *LONG, cwd=tmp_path)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert f"continues from step {done}" in out
    assert train(*tiny, *LONG, f"outputs={tmp_path / 'undisturbed'}") == 0
    (undisturbed,) = (tmp_path / "undisturbed" / "runs").glob("lora*")
    assert (folder / "eval.parquet").read_bytes() == (undisturbed / "eval.parquet").read_bytes()


@pytest.mark.slow
def test_a_signal_to_the_parent_alone_reaches_its_workers(tiny: tuple[str, ...], tmp_path: Path):
    arguments = ["-m", *tiny, "trainer.steps=150", "method=lora,dora,rslora,bitfit", "workers=2"]
    process = started(*arguments, cwd=tmp_path)
    wait_for(lambda: sum(count > 20 for count in lines(tmp_path, "outputs/sweep-*/*/curve.jsonl")) == 2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert time.monotonic() - began < 30
    assert "Traceback" not in err
    assert "interrupted: " in out
    records = [read_run(path.parent) for path in (tmp_path / "outputs").glob(f"sweep-*/*/{RESULT}")]
    assert sorted(record.result["status"] for record in records) == [COMPLETE, INTERRUPTED, INTERRUPTED]
    process = started(*arguments, cwd=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("continues from step") == 2


# --- several processes ---


def test_threads_that_reuse_one_run_get_in_nobody_s_way(tiny: tuple[str, ...], tmp_path: Path):
    """Each copies a finished run of another group into the same folder, many times over."""
    config = composed(*tiny, "method=none", f"outputs={tmp_path}")
    run_cell(Cell("first", "none", config), SESSION)
    cells = [Cell("second", "none", config), Cell("second", "none", config)]
    with ThreadPoolExecutor(len(cells)) as pool:
        list(pool.map(lambda cell: reuse_finished(cell, SESSION), cells * 40))  # raises what a thread raised
    (folder,) = (tmp_path / "second").glob("none-*")
    assert read_run(folder).complete
    assert damaged_files(folder) == []


def test_the_lock_of_a_folder_outlives_its_replacement(tmp_path: Path):
    folder = tmp_path / "run"
    with exclusive(folder):
        assert folder.is_dir()
        folder.rmdir()
        with pytest.raises(TimeoutError), exclusive(folder, wait=False):
            pass


# --- plans ---


def test_a_sweep_runs_what_was_planned_whatever_is_edited_meanwhile(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """conf/ is edited after the first job: the second one keeps the value with which the sweep began."""
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    (tmp_path / "train.py").write_text((ROOT / "train.py").read_text())
    method = conf / "method" / "rslora.yaml"
    own = hylo.cli.main.run_or_report

    def edits(cell: Cell, session: Session) -> Any:
        text = method.read_text()
        if "rank: 3" not in text:
            method.write_text(text.replace("low_rank:\n", "low_rank:\n  rank: 3\n"))
        return own(cell, session)

    monkeypatch.setattr(hylo.cli.main, "run_or_report", edits)
    arguments = ["-m", *tiny, "method=lora,rslora", "workers=1", f"outputs={tmp_path / 'o'}"]
    monkeypatch.setattr("launch.ROOT", tmp_path)
    assert train(*arguments) == 0
    assert "rank: 3" in method.read_text()
    ranks = [
        read_run(path.parent).result["config"]["method"]["low_rank"]["rank"] for path in records(tmp_path, "*lora*")
    ]
    assert ranks == [8, 8]
    (plan,) = (tmp_path / "o").glob("*/plan.json")
    assert [
        each["config"]["method"]["low_rank"]["rank"] for each in planned(plan).values() if each["config"]["method"]
    ] == [8, 8]


def records(folder: Path, pattern: str) -> list[Path]:
    return sorted((folder / "o").glob(f"*/{pattern}/{RESULT}"))


def planned(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["cells"]


def test_another_plan_is_told(tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["method=none", f"outputs={tmp_path}"]
    assert train(*tiny, *arguments) == 0
    capsys.readouterr()
    assert train(*tiny, *arguments) == 0
    assert "had another plan" not in capsys.readouterr().out
    assert train(*tiny, "data.eval_windows=5", *arguments) == 0
    assert "plan.json had another plan: other settings: none (seed 0) (1 in all)" in capsys.readouterr().out
    (before,) = tmp_path.glob("*/before-plan.json")
    assert planned(before)["none (seed 0)"]["config"]["data"]["eval_windows"] == 6


def test_a_process_that_would_run_other_code_refuses(tiny: tuple[str, ...], tmp_path: Path):
    cell = Cell("runs", "none", composed(*tiny, "method=none", f"outputs={tmp_path}"), planned="0" * 12)
    with pytest.raises(ConfigError, match=r"none: source or input files were edited(.|\n)*start again"):
        run_cell(cell, SESSION)
    assert not list(tmp_path.iterdir())


# --- names, secrets and places ---

NAMES = {
    "../x": "two folders up",
    "a/b": "a folder",
    "/etc/x": "an absolute path",
    ".hidden": "a hidden file",
    "a\nb": "a line end",
    "\u202egpj": "a mark that turns the direction of writing",
    "\U0001f600": "an emoji",
    "x" * 101: "longer than a file name should be",
    "": "nothing",
    "a b": "a space",
}


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_a_name_is_one_path_component(name: str):
    assert [*name_problems("cell", name)]
    assert not [*name_problems("cell", file_name(name) or "x")]


@given(st.text())
def test_every_text_has_a_name(text: str):
    name = file_name(text)
    assert not name or not [*name_problems("cell", name)]
    assert len(name.encode()) <= 400
    assert Path(name).name == name


def test_names_of_studies_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", tmp_path)
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / "study.yaml"
    for cells, said in (("'../../escaped': [method=lora]", "cells"), ("lora: [method=lora]", None)):
        path.write_text(f"question: which\nprotocol: all\ncells:\n  {cells}\n")
        if said is None:
            assert read_study_file("own").cells
        else:
            with pytest.raises(ConfigError, match=r"cells = '\.\./\.\./escaped'"):
                read_study_file("own")
    path.write_text("question: '${oc.env:HOME}'\nprotocol: all\ncells:\n  lora: [method=lora]\n")
    with pytest.raises(ConfigError, match=r"question = '\$\{oc\.env:HOME\}'(.|\n)*no resolver"):
        read_study_file("own")


CALLS = ["${oc.env:HOME}", "${oc.${x}:HOME}", "a ${b.${oc.env:HOME}}", "${hydra:job.name}", "${oc.decode:'1'}"]


@pytest.mark.parametrize("text", CALLS)
def test_no_resolver_is_called(text: str):
    config = OmegaConf.create({"a": [{"b": text}], "x": "env"})
    (said,) = resolver_problems(config)
    assert said.startswith("a[0].b = ")
    assert [*resolver_problems(OmegaConf.create({"a": 1, "b": "${a}", "c": "\\${oc.env:HOME}", "d": "$"}))] == []


def test_no_secret_reaches_a_record(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SECRET", "hunter2")
    for text in ("cell=${oc.env:SECRET}", "cell='${oc.${tracking.name}:SECRET}'", "model.name=${oc.env:SECRET}"):
        assert train(*tiny, "method=none", text, f"outputs={tmp_path}") == 2
    assert "hunter2" not in "".join(capsys.readouterr())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["../../../x/m", "/etc/m", "lora,../m", "[../m]", "'../m'", "..\\m"])
def test_a_choice_does_not_leave_conf(value: str):
    with pytest.raises(ConfigError, match=r"names of files in conf/method/"):
        refuse_paths([f"method={value}"])
    refuse_paths(["data.train_files=[../a.txt]", "outputs=/etc/x", "trainer/optimizer=sgd", "model.folder=~/m"])


def test_a_spreadsheet_runs_no_formula():
    frame = pd.DataFrame({"cell": ["=1+1", "@sum", "+pb", "-x", "lora"], "ppl": [-1.5, 2.0, 3.0, 4.0, 5.0]})
    assert csv(frame).decode().splitlines()[1:] == ["'=1+1,-1.5", "'@sum,2.0", "'+pb,3.0", "'-x,4.0", "lora,5.0"]


def test_a_model_folder_chooses_neither_code_nor_places(tmp_path: Path):
    folder = tmp_path / "model"
    TinyModelConfig(name="tiny").load().save_pretrained(folder, max_shard_size="50KB")
    check_places(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    for place in ("../other.safetensors", "/etc/passwd"):
        path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | {name: place}}))
        with pytest.raises(MissingDependency, match="neither code nor files elsewhere"):
            load_folder(folder)
    path.write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    for key in ("_attn_implementation", "attn_implementation", "experts_implementation"):
        (folder / "config.json").write_text(json.dumps(config | {key: "kernels-community/flash-attn"}))
        with pytest.raises(MissingDependency, match="kernels-community/flash-attn"):
            skeleton_from_folder(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_bytes_in_a_record_are_more_than_a_record_error(content: bytes, tmp_path: Path):
    (tmp_path / RESULT).write_bytes(content)
    with pytest.raises(RecordError):
        read_run(tmp_path)


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_override_is_more_than_a_config_error(key: str, value: str):
    for check in (refuse_paths, refuse_replaced):
        with suppress(ConfigError):
            check([f"{key}={value}", key, value])


# --- elsewhere ---


def test_every_module_can_be_imported_without_what_only_posix_has():
    """As on Windows; what needs them imports them where they are used."""
    code = """
import importlib, pkgutil, sys
import numpy, torch, transformers, matplotlib, peft, datasets, hydra, wandb, trackio  # libraries may use them
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import hylo
names = [each.name for each in pkgutil.walk_packages(hylo.__path__, "hylo.") if not each.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 150
