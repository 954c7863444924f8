"""Edits of a copy of the project: which of them change a run's fingerprint."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import program
import pytest
from launch import ROOT

from hylo.core.registry import name_of, register, registered
from hylo.core.sources import reached, source_hash
from hylo.runs.fingerprint import RUN, WATCHES

ALL = {"none", "lora", "landmark_pa", "bitfit"}
EDITS: dict[str, tuple[str, Callable[[str], str], set[str]]] = {
    "default targets": ("models/targets.py", lambda text: text.replace('"q_proj"', '"k_proj"', 1), ALL),
    "windows": ("data/windows.py", lambda text: f"{text}\nSTRIDE = 2\n", ALL),
    "loss": ("kernels/linear_cross_entropy.py", lambda text: text.replace("WORDS = 256, 4096", "WORDS = 256, 64"), ALL),
    "training step": ("training/step.py", lambda text: text.replace("[seed, 2, step", "[seed, 3, step"), ALL),
    "which windows": ("runs/shared.py", lambda text: text.replace("data.eval_windows)", "None)"), ALL),
    "random weights": ("models/tiny.py", lambda text: f"{text}\nSCALE = 2\n", ALL),
    "texts": ("data/sources/text_files.py", lambda text: f"{text}\nLIMIT = 2\n", ALL),
    "a component": ("adapters/bias.py", lambda text: f"{text}\nSCALE = 2\n", {"bitfit"}),
    "what components share": (
        "adapters/landmarks/mixture.py",
        lambda text: f"{text}\nSCALE = 2\n",
        {"landmark_pa"},
    ),
    "the optimizer": (
        "training/optimizers/adamw.py",
        lambda text: f"{text}\nSCALE = 2\n",
        {"lora", "landmark_pa", "bitfit"},
    ),
    "what optimizers share": ("training/optimizers/base.py", lambda text: f"{text}\nSCALE = 2\n", ALL),
    "an unused optimizer": ("training/optimizers/sgd.py", lambda text: f"{text}\nSCALE = 2\n", set()),
    "a probe": ("evaluation/probes/kv.py", lambda text: f"{text}\nSCALE = 2\n", set()),
    "a comment": ("training/step.py", lambda text: f"# A comment.\n{text}", set()),
    "a docstring": (
        "adapters/low_rank.py",
        lambda text: re.sub(r'^"""', '"""Otherwise. ', text, count=1),
        set(),
    ),
    "layout": ("data/windows.py", lambda text: text.replace("\n\n\n", "\n\n\n\n\n"), set()),
    "an unused component": ("adapters/landmarks/attention.py", lambda text: f"{text}\nSCALE = 2\n", set()),
    "a report": ("report/tables/caption.py", lambda text: f"{text}\nSCALE = 2\n", set()),
    "analysis": ("analysis/contrasts.py", lambda text: f"{text}\nSCALE = 2\n", set()),
    "the command line": ("cli/main.py", lambda text: f"{text}\nSCALE = 2\n", set()),
    "a tracker": ("tracking/base.py", lambda text: f"{text}\nSCALE = 2\n", set()),
}

FINGERPRINTS = """
import json, sys
from hydra import initialize_config_dir
from hylo.cli.main import compose
from hylo.core import sources
from hylo.runs.fingerprint import fingerprint
from hylo.runs.shared import Session

folder, edits, overrides = json.loads(sys.argv[1])

with initialize_config_dir(f"{folder}/conf", version_base="1.3"):
    configs = {name: compose([*overrides, f"method={name}"])[0] for name in ("none", "lora", "landmark_pa", "bitfit")}

def fingerprints():
    sources.read.cache_clear()
    session = Session()
    return {name: fingerprint(config, session) for name, config in configs.items()}

found = {"": fingerprints()}
for name, (path, edited) in edits.items():
    before = open(path).read()
    open(path, "w").write(edited)
    found[name] = fingerprints()
    open(path, "w").write(before)
print(json.dumps(found))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the code and configs."""
    for name in ("hylo", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _fingerprints(
    project: Path, edits: dict[str, tuple[str, str]], overrides: tuple[str, ...]
) -> dict[str, dict[str, str]]:
    given = json.dumps([str(project), edits, overrides])
    env = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = program.run("-c", FINGERPRINTS, given, cwd=project, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_edits_of_the_source(project: Path, tiny: tuple[str, ...]):
    texts = {
        name: (str(project / "hylo" / path), edit((project / "hylo" / path).read_text()))
        for name, (path, edit, _) in EDITS.items()
    }
    assert [name for name, (path, edited) in texts.items() if edited == Path(path).read_text()] == []
    found = _fingerprints(project, texts, tiny)
    changed = {name: {method for method, each in found[name].items() if each != found[""][method]} for name in EDITS}
    assert changed == {name: methods for name, (_, _, methods) in EDITS.items()}


@pytest.mark.slow
def test_moved_files_are_the_same_code(project: Path, tiny: tuple[str, ...]):
    """A module used by every run and a component, each moved to another folder under another name."""
    before = _fingerprints(project, {}, tiny)
    moves = {"training.step": "training.inner.one_step", "adapters.bias": "adapters.simple.offset"}
    for old, new in moves.items():
        source, target = (project / "hylo" / f"{name.replace('.', '/')}.py" for name in (old, new))
        target.parent.mkdir()
        (target.parent / "__init__.py").touch()
        source.rename(target)
        for file in (project / "hylo").rglob("*.py"):
            file.write_text(file.read_text().replace(f"hylo.{old} import", f"hylo.{new} import"))
    assert _fingerprints(project, {}, tiny) == before


def test_everything_that_a_run_imports_is_in_it():
    modules = reached([RUN], without=WATCHES)
    assert {"hylo.models.architecture", "hylo.models.base", "hylo.kernels.compiled", "hylo.runs.shared"} <= modules
    assert {name.split(".")[1] for name in modules}.isdisjoint({"report", "analysis", "studies", "cli", "tracking"})


def test_everything_that_asks_is_in_the_fingerprint_of_a_probe():
    modules = reached(["hylo.evaluation.probes.kv"], without=WATCHES)
    asking = {f"hylo.evaluation.probes.{name}" for name in ("base", "measure", "score")}
    assert asking | {"hylo.data.kv.words", "hylo.data.kv.text"} <= modules
    assert "hylo.evaluation.probes.kv" not in reached([RUN], without=WATCHES)


def test_a_module_without_a_source():
    with pytest.raises(ModuleNotFoundError, match=r"no source of the module hylo\.absent"):
        source_hash(["hylo.absent"])


def test_relative_imports_and_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a component defined outside this project."""
    package = tmp_path / "mine"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("from .helper import help_out\n")
    (package / "inner" / "helper.py").write_text("def help_out():\n    from .. import other\n")
    (package / "other.py").write_text("import json\nfrom hylo.core import errors\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert reached(["mine.inner"]) == {"mine.inner", "mine.inner.helper", "mine.other"}


def test_a_name_is_given_once():
    (name, cls) = next(iter(registered("component").items()))
    assert name_of("component", cls) == name
    register("component", name)(cls)
    with pytest.raises(
        ValueError, match=rf"component '{name}' is registered twice, by hylo\..* and by .*Other; rename"
    ):

        @register("component", name)
        class Other:
            pass

    with pytest.raises(KeyError, match="Path is not registered as component"):
        name_of("component", Path)
