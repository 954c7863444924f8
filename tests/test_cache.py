"""The cache: entries are complete, created once, and found by content. Also the bounds of settings."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hylo.core.cache import cache_folder, cached_folder, file_hash, text_hash
from hylo.core.schema import bound_problems, bounded

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test only."""
    monkeypatch.setenv("HYLO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """A separate process with hylo's cache."""
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


# --- the cache on disk ---


def writing(text: str) -> Callable[[Path], None]:
    """Creates an entry with one file."""

    def make(draft: Path) -> None:
        (draft / "part").write_text(text)

    return make


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HYLO_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("HYLO_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "hylo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "hylo"


def test_an_entry_is_made_once(cache: Path):
    made: list[Path] = []

    def make(draft: Path) -> None:
        made.append(draft)
        (draft / "part").write_text("whole")

    assert cached_folder("kind/entry", make) == cached_folder("kind/entry", make) == cache / "kind" / "entry"
    assert (cache / "kind" / "entry" / "part").read_text() == "whole"
    assert len(made) == 1
    assert os.listdir(cache / "kind") == ["entry"]


def test_a_failure_leaves_nothing(cache: Path):
    def fail(draft: Path) -> None:
        (draft / "part").write_text("ha")
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        cached_folder("kind/entry", fail)
    assert os.listdir(cache / "kind") == []


KILLED = """
import os, signal
from hylo.core.cache import cached_folder

def make(draft):
    (draft / "part").write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)

cached_folder("kind/entry", make)
"""


def test_a_killed_process_leaves_no_half_entry(cache: Path):
    """No code runs after the kill, so cleanup on exit would not help."""
    process = python(KILLED)
    process.communicate(timeout=60)
    assert process.returncode < 0
    assert not (cache / "kind" / "entry").exists()
    folder = cached_folder("kind/entry", writing("whole"))
    assert (folder / "part").read_text() == "whole"


def test_the_draft_of_a_killed_process_with_our_id_is_not_in_the_way(cache: Path):
    """In a container, the same command gets the same process id on every start."""
    (cache / "kind" / f".entry.{os.getpid()}").mkdir(parents=True)
    folder = cached_folder("kind/entry", writing("whole"))
    assert (folder / "part").read_text() == "whole"


AT_ONCE = """
import os, sys, time
from pathlib import Path
from hylo.core.cache import cached_folder

me, other, meeting = sys.argv[1], sys.argv[2], Path(sys.argv[3])

def meet(point):
    (meeting / f"{point}-{me}").touch()
    for _ in range(20_000):
        if (meeting / f"{point}-{other}").exists():
            return
        time.sleep(0.002)
    raise TimeoutError(f"{me} waits for {other} in vain")

def make(draft):
    (draft / "part").write_text(f"whole, by {me}")
    meet("drafted")

folder = cached_folder("kind/entry", make)
with (folder / "part").open() as file:
    meet("returned")
    same = os.fstat(file.fileno()).st_ino == (folder / "part").stat().st_ino
    print(file.read(), same, sorted(os.listdir(folder.parent)))
"""


def test_two_processes_make_the_same_entry_at_once(cache: Path, tmp_path: Path):
    """Both write drafts before either is done. Replacing the first entry with the second would remove the folder while
    another process reads it, or fail if both check before either moves."""
    processes = [python(AT_ONCE, *names, str(tmp_path)) for names in (("a", "b"), ("b", "a"))]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0] == printed[1]
    assert printed[0].strip() in [f"whole, by {name} True ['entry']" for name in "ab"]


def test_an_entry_that_appears_meanwhile_stays():
    """The same in one process, so that the order is deterministic."""

    def slow(draft: Path) -> None:
        (draft / "part").write_text("second")
        cached_folder("kind/entry", writing("first"))

    assert (cached_folder("kind/entry", slow) / "part").read_text() == "first"


# --- hashes ---


def test_text_hash_knows_where_parts_end():
    every = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ()]
    assert len({text_hash(*parts) for parts in every}) == len(every)
    assert text_hash("é") == text_hash("é".encode())


def test_file_hash_is_of_the_content(tmp_path: Path, cache: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert file_hash(path) == digest == file_hash(path)
    assert len(os.listdir(cache / "hashes")) == 1
    path.write_bytes(b"abcd")
    assert file_hash(path) != digest


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path: Path):
    """`cp -p`, rsync and archives preserve modification times: by size and time alone, different weights would be taken
    for the original ones."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = path.stat()
    first = file_hash(path)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # timestamps have a resolution of some milliseconds
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert file_hash(path) != first


# --- bounds of settings ---


@dataclass(kw_only=True)
class Inner:
    rate: float = bounded(0.5, gt=0, lt=1)
    free: float = 1.0


@dataclass(kw_only=True)
class Outer:
    rank: int = bounded(8, ge=1, le=64)
    limit: int | None = bounded(None, ge=1)
    steps: int = bounded(ge=1)
    switch: bool = True
    label: str = "nan"
    inner: Inner = field(default_factory=Inner)
    slots: dict[str, Any] = field(default_factory=dict)
    rates: list[Any] = field(default_factory=list)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": 1},
        {"rank": 64},
        {"limit": 1},
        {"switch": False},
        {"inner": Inner(rate=1e-300, free=-1e308)},
        {"slots": {"a": Inner(), "b": None, "c": "text"}, "rates": [1, 0.5, "text", None]},
    ],
    ids=str,
)
def test_within_bounds(settings: dict[str, Any]):
    assert list(bound_problems(Outer(steps=1, **settings))) == []


@pytest.mark.parametrize(
    ("settings", "start", "allowed", "fix"),
    [
        ({"rank": 0}, "rank = 0", "a number >= 1 and <= 64", "rank=8 (the default)"),
        ({"rank": 65}, "rank = 65", "a number >= 1 and <= 64", "rank=8 (the default)"),
        ({"limit": 0}, "limit = 0", "a number >= 1", "a value in range"),
        ({"steps": -3}, "steps = -3", "a number >= 1", "a value in range"),
        ({"inner": Inner(rate=0.0)}, "inner.rate = 0.0", "a number > 0 and < 1", "inner.rate=0.5 (the default)"),
        ({"inner": Inner(rate=1.0)}, "inner.rate = 1.0", "a number > 0 and < 1", "inner.rate=0.5 (the default)"),
        ({"inner": Inner(rate=NAN)}, "inner.rate = nan", "a number > 0 and < 1", "inner.rate=0.5 (the default)"),
        ({"inner": Inner(free=NAN)}, "inner.free = nan", "a finite number", "inner.free=1.0 (the default)"),
        ({"inner": Inner(free=-INF)}, "inner.free = -inf", "a finite number", "inner.free=1.0 (the default)"),
        ({"slots": {"a": Inner(rate=INF)}}, "slots.a.rate = inf", "a number > 0 and < 1", "slots.a.rate=0.5"),
        ({"slots": {"a": {"b": Inner(rate=2)}}}, "slots.a.b.rate = 2", "a number > 0 and < 1", "slots.a.b.rate=0.5"),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_out_of_bounds(settings: dict[str, Any], start: str, allowed: str, fix: str):
    values: dict[str, Any] = {"steps": 1} | settings
    (found,) = bound_problems(Outer(**values))
    assert found.startswith(f"{start}\n")
    assert f"allowed: {allowed}\n" in found
    assert f"fix:     {fix}" in found


def test_every_problem_is_told():
    settings = Outer(rank=0, steps=0, inner=Inner(rate=7), slots={"a": Inner(free=NAN), "b": Inner(rate=-1)})
    starts = [found.split(" = ")[0] for found in bound_problems({"trainer": settings})]
    keys = ("rank", "steps", "inner.rate", "slots.a.free", "slots.b.rate")
    assert starts == [f"trainer.{key}" for key in keys]


@pytest.mark.parametrize(
    "settings",
    [{"slots": {"a": NAN}}, {"slots": {"a": {"b": INF}}}, {"rates": [0.1, NAN]}, {"rates": [Inner(), Inner(rate=2.0)]}],
    ids=str,
)
def test_numbers_in_dicts_and_lists(settings: dict[str, Any]):
    """NaN, infinite and out-of-range numbers are also found when nested in dataclasses, dicts and lists."""
    assert len(list(bound_problems(Outer(steps=1, **settings)))) == 1
