"""What a command costs: `python -m benchmarks.cost MODULE ARGUMENT...` runs a module as `python -m MODULE` does.

The last line it prints is JSON: CPU seconds of the process (all threads, imports included; not wall time, which depends
on what else the machine does) and its peak resident memory. It imports nothing that would count.
"""

import json
import re
import resource
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def cost(module: str, *arguments: str, folder: Path) -> dict[str, Any]:
    """What a module cost that was run in a new process, from a working folder: cpu_seconds and peak_bytes.

    Raises:
        RuntimeError: it ended with another exit code than 0; the message has its output.
    """
    command = [sys.executable, "-m", "benchmarks.cost", module, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes() -> int:
    """Peak resident memory of this process; on Linux its own, without that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    """Run the module of the command line and print what it cost; returns its exit code."""
    module, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    print(json.dumps({"cpu_seconds": time.process_time(), "peak_bytes": peak_bytes()}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
