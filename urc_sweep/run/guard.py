"""Outlives the driver of a private Ray cluster, whatever ends that, and then ends what is left of the cluster.

Run by its path with only the standard library: who sleeps beside every launch should be small. Ray ends its own
processes when a driver dies, but not all of them when its head died first: agents wait for that head for ever.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "URC_SWEEP_SCRATCH"  # an environment variable that every process of the cluster inherits
GRACE_S = 10.0  # workers may be writing checkpoints


def start(scratch: str) -> subprocess.Popen[bytes]:
    """Start the guard of a scratch folder; it acts once its input ends: closed by us, or by our death."""
    command, no = [sys.executable, "-I", __file__, scratch], subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=no, stderr=no, start_new_session=True)


def left(scratch: str) -> list[int]:
    """Return the processes of the cluster that still live, this one aside."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_of(scratch, entry)]


def _is_of(scratch: str, entry: Path) -> bool:
    """Return whether a process is of the cluster.

    Ray's agents write their title over some of their environment; their open logs tell then. Others may hold a log
    open and are let be: the driver that waits for us, or somebody who reads along.
    """
    with suppress(OSError):
        if int(entry.name) == os.getpid():
            return False
        if f"{MARK}={scratch}".encode() in (entry / "environ").read_bytes().split(b"\0"):
            return True
        titled = (entry / "cmdline").read_bytes().startswith(b"ray::")
        return titled and any(os.readlink(file).startswith(f"{scratch}/") for file in (entry / "fd").iterdir())
    return False


def main(scratch: str) -> None:
    """Wait for the driver's word, or its death; after that no process and no file stays."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to every process of a job: the guard goes last
    deadline = time.monotonic() + (0.0 if sys.stdin.buffer.read() else GRACE_S)
    while left(scratch) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left(scratch):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
