"""Signals: a step ends, the state is saved, and the same command continues with the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT, train

from hylo.core.interruption import Interrupted, asked_to_stop, stop_if_asked, stopping_on_signals
from hylo.runs.layout import COMPLETE, INTERRUPTED, RESULT
from hylo.runs.store import read_run


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


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, time; from hylo.core.interruption import TWICE, stopping_on_signals\n"
        "with stopping_on_signals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(TWICE + 0.1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
    assert done.stderr.count("finishing the current step; once more to end at once") == 1


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
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.exhaustive)])
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
