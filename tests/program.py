"""Runs Python programs in processes of their own that do not import the libraries again.

A new Python needs six seconds for torch and transformers; a copy of a process that has imported them and nothing of
hylo (`forkserver` of multiprocessing) needs none. What a program sees otherwise is as in a new process: arguments,
folder, environment, path and streams. Variables that libraries read on import are those of the test session.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import process
from multiprocessing.context import ForkServerContext
from pathlib import Path

LIBRARIES = [
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "accelerate",
    "hydra.main",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "matplotlib.pyplot",
]
LINUX = sys.platform == "linux"
"""Elsewhere a copy of a process that has loaded the system's libraries may crash, or cannot be made."""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def run(
    *arguments: str, cwd: Path, env: Mapping[str, str], processes: int = 1, forked: bool = LINUX, timeout: float = 600
) -> "subprocess.CompletedProcess[str]":
    """What `python <arguments>` does and prints; several processes are ranks of one run, as torchrun starts them.

    Args:
        arguments: a script, `-m` and a module, or `-c` and code, and its own arguments.
        cwd: the working folder.
        env: all environment variables.
        processes: number of ranks; the exit code is the highest.
        forked: False: a new Python or torchrun, just as a user starts it.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: a process has not ended by then, and was killed.
    """
    if not forked:
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(several if processes > 1 else []), *arguments]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        ranks = [{**env, **rank} for rank in _ranks(processes)]
        started = [_context().Process(target=_program, args=(arguments, str(cwd), rank, streams)) for rank in ranks]
        for each in started:
            each.start()
        until = time.monotonic() + timeout
        for each in started:
            each.join(max(0, until - time.monotonic()))
        late = [each for each in started if each.exitcode is None]
        for each in late:
            each.kill()
            each.join()
        out, err = (path.read_text() if path.exists() else "" for path in streams)
    if late:
        raise subprocess.TimeoutExpired(arguments, timeout, out, err)
    return subprocess.CompletedProcess(arguments, max((each.exitcode or 0 for each in started), key=abs), out, err)


def _ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each process in its environment; nothing to a single one."""
    if processes == 1:
        return [{}]
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    same = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = ({"RANK": rank, "LOCAL_RANK": rank, **same} for rank in range(processes))
    return [{name: str(value) for name, value in rank.items()} for rank in ranks]


def _program(arguments: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[Path]) -> None:
    """Becomes the program: never returns to the test."""
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    process._parent_process = None  # type: ignore[attr-defined]  # not a worker, but a program of its own
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind = arguments[0] if arguments[0] in ("-m", "-c") else ""
    first = {"-m": cwd, "-c": ""}.get(kind, str(Path(arguments[0]).parent.absolute()))
    sys.argv[:] = arguments if not kind else [kind, *arguments[2:]]  # runpy replaces the first of a module
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    try:
        if kind == "-m":
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
