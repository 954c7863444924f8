"""The benchmark runs and prints every method; what it measures is for reading, not for asserting."""

import runpy
import sys

import pytest
from launch import ROOT


def test_training_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = ROOT / "benchmarks" / "training_step.py"
    sizes = ["--batch-size", "1", "--context-length", "16", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [str(script), "--model", "tiny_llama", *sizes])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    for method in ("lora", "rslora", "dora"):
        (row,) = (line for line in printed.splitlines() if line.startswith(f"\u2502 {method} "))
        numbers = [float(cell) for cell in row.replace(",", "").strip("\u2502").split("\u2502")[1:]]
        assert len(numbers) == 6
        assert min(numbers) >= 0
        assert max(numbers[:2]) > 0
