"""The real command line, hundreds of times: forks of one process that has imported it, each with its own costs.

``python -m tests.hostile.forks [MODULE ...]`` answers one JSON line per request: it forks, and the child becomes
``urc-sweep ARGV`` in the asked-for folder. What a child used is what the kernel says of it (``wait4``): CPU seconds
without the imports, and the largest resident memory with all that was there at the fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOMS = "cli", "run.launch", "show.exchange", "show.grid", "show.progress", "show.report", "show.terminal"
WORKS = tuple(f"urc_sweep.{room}" for room in ROOMS)
HANGS_AFTER_S, SPINS_AFTER_S, MORE_BYTES = 60, 10, 3 * 2**30  # far beyond what is asserted: nets, not limits
HEAVY = ("torch", "ray")


def become(request: dict[str, Any]) -> None:
    """Turn this process into one run of the command line; never returns."""
    code: Any = 1
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        for descriptor, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            opened = os.open(name, os.O_RDWR | (os.O_TRUNC if descriptor else 0))
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(0),
            os.fdopen(1, "w"),
            os.fdopen(2, "w", errors="backslashreplace"),
        )
        sys.argv = ["urc-sweep", *request["argv"]]
        signal.alarm(HANGS_AFTER_S)
        resource.setrlimit(resource.RLIMIT_CPU, (SPINS_AFTER_S, SPINS_AFTER_S))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MORE_BYTES, mapped + MORE_BYTES))
        from urc_sweep.cli import main

        before = set(sys.modules)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        imported = {name for name in set(sys.modules) - before if name in HEAVY}
        Path(request["heavy"]).write_text(" ".join(sorted(imported)))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(modules: list[str]) -> None:
    for module in (*WORKS, *modules):
        importlib.import_module(module)
    from urc_sweep.plan import registry

    registry.known()  # what every run reads first
    gc.freeze()  # what is there stays, so that a collection in a child copies no pages
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            become(json.loads(line))
        _, status, usage = os.wait4(child, 0)
        answer = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Forks:
    """A server as its users see it."""

    def __init__(self, *modules: str) -> None:
        command = [sys.executable, "-m", "tests.hostile.forks", *modules]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def run(self, request: dict[str, Any]) -> tuple[int, float, float]:
        """Return exit code, CPU seconds and the largest resident memory in MB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        code, cpu_s, rss_mb = json.loads(self.process.stdout.readline())
        return code, cpu_s, rss_mb

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    serve(sys.argv[1:])
