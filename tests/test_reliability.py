"""The promises of docs/reliability.md on files: damage is noticed, and one fault costs nothing else."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import ROOT, composed

import hylo.cli.main
import hylo.core.cache
import hylo.studies.spec
import hylo.training.loop
from hylo.core.files import draft_of, exclusive, remove_drafts
from hylo.core.sums import SUMS, damaged_files, remove_sums, write_sums
from hylo.data.base import Document
from hylo.data.tokens import tokenize
from hylo.models.tiny import byte_tokenizer
from hylo.runs.cell import Cell
from hylo.runs.reuse import reuse_finished
from hylo.runs.run import run_cell
from hylo.runs.shared import Session
from hylo.runs.store import read_run
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


# --- several processes ---


def test_threads_that_reuse_one_run_get_in_nobody_s_way(tiny: tuple[str, ...], tmp_path: Path):
    """They begin together, round after round: each copies a finished run of another group into one new folder."""
    config = composed(*tiny, "method=none", f"outputs={tmp_path}")
    run_cell(Cell("first", "none", config), SESSION)
    together = threading.Barrier(3)

    def reuse(group: str) -> bool:
        together.wait()
        return reuse_finished(Cell(group, "none", config), SESSION)

    with ThreadPoolExecutor(3) as pool:
        for number in range(25):
            done = list(pool.map(reuse, [f"group{number}"] * 3))  # raises what a thread raised
            assert any(done)
            (folder,) = (tmp_path / f"group{number}").glob("none-*")
            assert read_run(folder).complete
            assert damaged_files(folder) == []
            assert not [path for path in folder.parent.glob(".*") if not path.name.endswith(".owner")]


def test_the_lock_of_a_folder_outlives_its_replacement(tmp_path: Path):
    folder = tmp_path / "run"
    with exclusive(folder):
        assert folder.is_dir()
        folder.rmdir()
        with pytest.raises(TimeoutError), exclusive(folder, wait=False):
            pass


# --- elsewhere ---


def test_every_module_can_be_imported_without_what_only_posix_has():
    """As on Windows; what needs them imports them where they are used."""
    code = """
import importlib.util, pkgutil, sys
import numpy, torch, transformers, matplotlib, peft, datasets, hydra, wandb, trackio  # libraries may use them
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import hylo
names = [each.name for each in pkgutil.walk_packages(hylo.__path__, "hylo.") if not each.name.endswith("__main__")]
if importlib.util.find_spec("lm_eval") is None:  # an extra
    names = [name for name in names if not name.startswith("hylo.evaluation.tasks.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 150
