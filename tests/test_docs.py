"""The documentation matches the code: methods, their parameter counts, and how to add things."""

import json
import os
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import program
import pytest
from adapters import METHODS, context, method
from launch import ROOT, composed
from test_parameter_counts import gpt2_small

from hylo.adapters.component import BuildContext
from hylo.adapters.model import method_problems

DOCS = ROOT / "docs"
ROWS = re.findall(r"^\| *`(\w+)` *\|.*\| *([\d,]+) *\|$", (DOCS / "methods.md").read_text(), re.MULTILINE)
"""Method and parameter count of each table row."""


def test_every_method_has_one_row():
    """A table in a different format yields no rows here, and fails instead of being skipped."""
    assert sorted(name for name, _ in ROWS) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_documented_parameter_counts(name: str):
    context = BuildContext(gpt2_small(), context_length=1024, seed=0)
    count = sum(config.parameter_count(context) for config in method(name).values())
    assert dict(ROWS)[name] == f"{count:,}"


def test_every_data_set_has_one_row_with_its_protocol_and_test():
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \|.*\| `(test_\w+\.py)` \|$", (DOCS / "data.md").read_text(), re.MULTILINE
    )
    assert sorted(name for name, *_ in rows) == sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml"))
    for name, protocol, test in rows:
        assert composed(f"data={name}").data.protocol.name == protocol
        assert (ROOT / "tests" / test).exists()


PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
COMMANDS = sorted(
    {
        command.partition(" #")[0].strip()
        for page in PAGES
        for pattern in (r"train\.py ([^`\n]*=[^`\n]*)", r"`(method=\w+ [^`]+)`")
        for command in re.findall(pattern, page.read_text().replace("\\\n   ", ""), re.MULTILINE)
    }
)
"""Overrides of every command shown on a page."""


ADDED = "my_method|final_scale|more_landmarks|lion|cloze|jsonl|fresh"
"""Names that pages add."""


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if not re.search(ADDED, command)])
def test_commands_that_the_pages_show_can_run(command: str):
    """Composes each command and checks its method on a model; for sweeps, with the last value of each key."""
    overrides = [text for text in shlex.split(command) if text != "-m"]
    sweep = len(overrides) < len(shlex.split(command))
    last = [re.sub(r"=[^\[]*,", "=", text) if sweep else text for text in overrides]
    config = composed(*last)
    assert list(method_problems(config.components, context("llama"))) == []


@pytest.mark.slow
def test_adding_a_method_as_documented(tiny: tuple[str, ...], tmp_path: Path):
    """Word for word in a copy of the project: each file shown on the page, then each command on a tiny model."""
    copy, (single, contract, (sweep, ablation)) = _followed("add-a-method.md", tmp_path)
    run = partial(_run, copy)

    assert single == ["python train.py model=tiny_llama trainer=smoke method=final_scale"]
    printed = run("train.py", *single[0].split()[2:], *tiny)
    assert re.search(r"parameter count +passed", printed)
    assert "AUDIT FAILED" not in printed

    (chosen,) = re.findall(r'-k (\w+)"', contract[0])
    contracts = [f"tests/test_{name}.py" for name in ("contract", "contract_inference", "audit")]
    passed = run("-m", "pytest", "-q", "-n", "0", "-k", f"{chosen} and llama", *contracts)
    assert int(re.findall(r"(\d+) passed", passed)[0]) >= 15

    assert "final_scale" in run("train.py", *tiny, *sweep.replace("0,1,2", "0").split()[2:])
    assert re.findall(r"\w+=\S+", ablation) == ["ADD=final_scale", "SEEDS=0,1,2"]
    assert re.search(r"^final_scale .*1 ", run("train.py", *tiny, "study=ablation", "add=[final_scale]"), re.MULTILINE)


@pytest.mark.exhaustive
def test_adding_a_tracker_as_documented(tiny: tuple[str, ...], tmp_path: Path):
    copy, (single, contract) = _followed("add-a-tracker.md", tmp_path)
    assert single == ["python train.py model=tiny_llama trainer=smoke tracking=jsonl tracking.every=2"]
    _run(copy, "train.py", *[text for text in tiny if text != "tracking=none"], *single[0].split()[2:])
    files = {path.stem: path.read_text().splitlines() for path in copy.glob("outputs/jsonl/runs/*.jsonl")}
    assert set(files) == {"hylorada-seed0", "none-seed0", "runs-report"}
    begun, *lines = [json.loads(line) for line in files["hylorada-seed0"]]
    assert begun["config"]["tracking"] == {"every": 2}
    assert [line["step"] for line in lines if "step" in line] == [2, 4]
    assert lines[-2]["summary"]["status"] == "complete"
    assert lines[-1] == {"exit_code": 0}
    assert "summary" in [json.loads(line).get("table") for line in files["runs-report"]]

    (chosen,) = re.findall(r'-k (\w+)"', contract[0])
    passed = _run(copy, "-m", "pytest", "-q", "-n", "0", "-k", chosen, "tests/test_trackers.py")
    assert int(re.findall(r"(\d+) passed", passed)[0]) == 3


@pytest.mark.exhaustive
def test_adding_a_figure_as_documented(tmp_path: Path):
    """Word for word in a copy of the project: the file shown on the page, then its commands."""
    page, copy = (DOCS / "add-a-figure.md").read_text(), tmp_path / "copy"
    for name in ("hylo", "tests", "experiments/tuned_landmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    ((name, content),) = re.findall(r"^`(\S+)`:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert not (copy / name).exists()
    (copy / name).write_text(content)
    report, contract = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    _run(copy, *shlex.split(report)[1:])
    (drawn,) = re.findall(r"`(outputs/\S+\.png)`", page)
    assert (copy / drawn).read_bytes().startswith(b"\x89PNG")
    assert "rslora, seed 2: PPL 24." in (copy / drawn).parents[1].joinpath("report.html").read_text()
    (chosen,) = re.findall(r'-k (\w+)"', contract)
    assert "3 passed" in _run(copy, "-m", "pytest", "-q", "-n", "0", "-k", chosen, "tests/test_study_figures.py")


@pytest.mark.exhaustive
def test_adding_an_optimizer_as_documented(tiny: tuple[str, ...], tmp_path: Path):
    copy, (single, contract, sweeps) = _followed("add-an-optimizer.md", tmp_path)
    run = partial(_run, copy)

    assert single == ["python train.py model=tiny_llama trainer=smoke method=lora trainer/optimizer=lion"]
    assert "lora,trainer.optimizer=lion" in run("train.py", *single[0].split()[2:], *tiny)

    assert contract == ['make test ARGS="-k lion"']
    passed = run("-m", "pytest", "-q", "-n", "0", "-k", "lion", "tests/test_optimizers.py")
    assert int(re.findall(r"(\d+) passed", passed)[0]) >= 2

    rates, both = (line.replace("0,1,2", "0").split()[2:] for line in sweeps)
    assert "trainer.optimizer=lion" not in (printed := run("train.py", *tiny, *rates)), "the same for all rows"
    assert "lora,trainer.learning_rate=5e-05" in printed
    assert re.search(r"^lora,trainer\.optimizer=lion ", run("train.py", *tiny, *both), re.MULTILINE)


@pytest.mark.slow
def test_adding_a_launcher_as_documented(tiny: tuple[str, ...], tmp_path: Path):
    copy, (try_it,) = _followed("add-a-launcher.md", tmp_path)
    said = _run(copy, "train.py", *tiny, *shlex.split(try_it[0])[2:])
    assert "[1/3]" in said
    assert "report: outputs/sweep-" in said


@pytest.mark.slow
def test_adding_a_probe_as_documented(tiny: tuple[str, ...], tmp_path: Path):
    copy, ((single, sweep),) = _followed("add-a-probe.md", tmp_path)
    run = partial(_run, copy)

    assert single == "python train.py model=tiny_llama trainer=smoke method=lora probe=cloze"
    said = "mean log-probability of the last word"
    assert run("train.py", *tiny, *single.split()[2:]).count(said) == 2
    assert said not in run("train.py", *tiny, *single.split()[2:])
    assert said in run("train.py", *tiny, *single.split()[2:], "probe.sentences=2")

    run("train.py", *tiny, *sweep.replace("0,1,2", "0,1").split()[2:])
    (reading,) = re.findall(r"^```python\n(from pathlib.*?)^```$", (DOCS / "add-a-probe.md").read_text(), re.M | re.S)
    counts = {line.split()[0]: line.count("-") for line in run("-c", reading).splitlines()}
    assert counts == {"none": 1, "lora": 2, "rslora": 2}


def _followed(page: str, folder: Path) -> tuple[Path, list[list[str]]]:
    """A copy of the project with the files shown on a page, and the lines of each of its command blocks."""
    text, copy = (DOCS / page).read_text(), folder / "copy"
    for name in ("hylo", "conf", "tests", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    files = re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [Path(name).suffix for name, _ in files] == [".py", ".yaml"]
    for name, content in files:
        assert not (copy / name).exists()
        (copy / name).write_text(content)
    return copy, [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def _run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    forked = program.LINUX and arguments[1] != "pytest"  # which has to be there before the modules that it rewrites
    done = program.run(*arguments, cwd=folder, env=environment, forked=forked)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
