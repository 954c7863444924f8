"""The other Pythons allowed by pyproject.toml: installs from the locks like `make setup`, then checks a run's numbers.

A fresh environment takes gigabytes if torch comes with CUDA, so this only runs for the versions that
HYLO_FRESH_INSTALLS names (3.12,3.13). If an interpreter is missing, the skip reason says so.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from launch import ROOT

COPIED = ("hylo", "conf", "tests", "train.py", "Makefile", "pyproject.toml", "README.md", "LICENSE")


def interpreter(version: str) -> str | None:
    """The path of this Python version. Under pyenv the command exists for all versions but only works for selected
    ones."""
    if not shutil.which(f"python{version}"):
        return None
    code = "import ensurepip, sys; print(sys.executable)"  # without ensurepip there is no venv
    chosen = os.environ | {"PYENV_VERSION": version}
    asked = subprocess.run([f"python{version}", "-c", code], env=chosen, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_installs_and_runs(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    if version not in os.environ.get("HYLO_FRESH_INSTALLS", "").split(","):
        pytest.skip(f"Python {version} is here; HYLO_FRESH_INSTALLS={version} installs everything for it")
    for path in (*(ROOT / name for name in COPIED), *ROOT.glob("requirements*.lock")):
        copy, ignored = tmp_path / path.name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, copy, ignore=ignored) if path.is_dir() else shutil.copy(path, copy)
    left_out = ("MAKE", "MFLAGS", "PYTHON", "VIRTUAL_ENV", "HYLO_CACHE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    assert f"Python {version}." in run("make", "setup", f"PYTHON={python}", "COMPILE=true")
    assert "Against the base model" in run(
        *(".venv/bin/python", "train.py", "model=tiny_llama", "trainer=smoke", "tracking=none", "method=hylorada")
    )
    assert "3 passed" in run(".venv/bin/python", "-m", "pytest", "-q", "-n0", "tests/test_golden.py")
    shutil.rmtree(tmp_path / ".venv")
