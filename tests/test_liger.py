"""Liger's kernels as candidates for layers and loss: the same numbers as the reference kernels."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from launch import ROOT

from hylo.kernels import liger


def test_without_a_gpu_they_are_no_candidate():
    assert not liger.usable(torch.device("cpu"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("liger_kernel", reason="the extra hylo[liger] is not installed")
    pytest.importorskip("triton", reason="the extra hylo[liger] is not installed")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    settings = os.environ | {"PYTHONPATH": path}
    if not torch.cuda.is_available():
        settings["TRITON_INTERPRET"] = "1"
    command = [sys.executable, str(ROOT / "tests" / "liger.py"), str(tmp_path_factory.mktemp("choices"))]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_layers_and_loss_are_those_of_the_reference(report: dict[str, Any]):
    """For SwiGLU and GEGLU, norms with and without a shift. GPT-2 has neither, so only its loss is Liger's."""
    found = {key: each for key, each in report.items() if isinstance(each, dict)}
    assert len(found) == 8
    for key, each in found.items():
        if not key.startswith("gpt2"):
            assert each["by Liger"] == ["ffn by Liger", "norm by Liger"], key
            assert each["kernels"] == {"layers": "Liger's", "loss": "Liger's"}, key
        assert each["losses"] < 1e-4, key
        assert each["gradients"] < 1e-4 * each["size"], key
    assert report["gpt2 lora"]["kernels"]["loss"] == "Liger's"
    assert report["gpt2 lora"]["kernels"]["layers"] != "Liger's"


def test_an_activation_without_a_kernel_keeps_its_ffn(report: dict[str, int]):
    """GELU without its approximation by tanh, from which it differs by less than rounding in bfloat16."""
    assert report["FFNs with another activation"] == 0


def test_the_loss_with_softcap_and_bias(report: dict[str, float]):
    """And with a different weight of each token in the gradient, and targets that are ignored."""
    found = {key: each for key, each in report.items() if key.startswith("loss")}
    assert len(found) == 4
    assert max(found.values()) < 1e-5
