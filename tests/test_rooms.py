"""The packages of the code: which may import which, and what each works without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT

WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(f"{{name}} must not be imported")

sys.meta_path.insert(0, Refuse())
"""
ADAPT = """
from transformers import LlamaConfig, LlamaForCausalLM
from hylo import HyLoRADAConfig, HyLoRADAModel

sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
base = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=64))
print(sum(tensor.numel() for tensor in HyLoRADAModel(base, HyLoRADAConfig(lora_rank=2)).parameters()))
"""


def _lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _python(code: str, *without: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WITHOUT.format(names=set(without)) + code]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_rooms_import_only_rooms_below_them():
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("core/errors.py", "from hylo.data.base import Split", "hylo.core is not allowed to import hylo.data"),
        ("analysis/pairs.py", "import torch", "hylo.analysis is not allowed to import torch"),
        ("adapters/bias.py", "import hydra", "hylo.adapters is not allowed to import hydra"),
        ("runs/cell.py", "import matplotlib", "hylo.runs is not allowed to import matplotlib"),
    ],
)
def test_an_import_upwards_is_found(file: str, line: str, said: str, tmp_path: Path):
    shutil.copytree(ROOT / "hylo", tmp_path / "hylo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "hylo" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = _lint(tmp_path)
    assert done.returncode == 1
    assert said in done.stdout


def test_the_root_holds_little():
    assert len([path for path in (ROOT / "hylo").glob("*.py") if path.name != "__init__.py"]) <= 3


def test_the_python_api_works_without_hydra():
    done = _python(ADAPT, "hydra")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_reports_are_made_without_torch():
    done = _python("import hylo.report, hylo.report.__main__, hylo.publish", "torch", "transformers", "hydra")
    assert done.returncode == 0, done.stderr
