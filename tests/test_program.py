"""A forked program is what a new Python would be."""

import os
from pathlib import Path

import program
import pytest

CODE = """
import atexit, multiprocessing, os, sys
print(sys.argv[-2:], __name__, os.getcwd(), sorted(os.environ.items()), "hylo" in sys.modules)
print(multiprocessing.parent_process(), [path for path in sys.path[:2]], file=sys.stderr)
atexit.register(print, "at exit")
sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["script", "-m", "-c"])
def test_it_sees_and_returns_the_same(kind: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "work.py").write_text(CODE)
    (tmp_path / "elsewhere").mkdir()
    arguments = {"script": [str(tmp_path / "sub" / "work.py")], "-m": ["-m", "sub.work"], "-c": ["-c", CODE]}[kind]
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
        "PYTHONPATH": str(tmp_path / "elsewhere"), "LC_CTYPE": "C.UTF-8", "ONLY": "this"
    }  # fmt: skip
    forked, new = (program.run(*arguments, "a", "b", cwd=tmp_path, env=env, forked=each) for each in (True, False))
    assert new.returncode == 3, new.stderr
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)


def test_an_error_is_told_and_a_program_without_end_is_killed(tmp_path: Path) -> None:
    done = program.run("-c", "1 / 0", cwd=tmp_path, env={})
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    with pytest.raises(program.subprocess.TimeoutExpired):
        program.run("-c", "import time; time.sleep(60)", cwd=tmp_path, env={}, timeout=0.5)


def test_ranks_meet(tmp_path: Path) -> None:
    code = (
        "import torch.distributed as dist; dist.init_process_group('gloo'); dist.barrier(); "
        "print(f'{dist.get_rank()} of {dist.get_world_size()}\\n', end=''); dist.destroy_process_group()"
    )
    done = program.run("-c", code, cwd=tmp_path, env={}, processes=2)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "0 of 2", "1 of 2"]
