"""What one hostile input is, how it is run, and what must be true of every run."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.hostile.forks import Forks

CPU_S, RSS_MB, TORCH_RSS_MB = 5.0, 500.0, 700.0  # promised: 2 s; the slack is for machines with other work
LONGEST_LINE = 2_000


def nothing(folder: Path) -> None:
    """A case that needs no files."""


@dataclass(frozen=True)
class Case:
    """A command line in a folder that ``build`` filled, and the answer: ``code`` and one line per text of ``says``.

    ``says`` holds, per line on stderr, words that it must contain. ``torch``: cannot be told without torch (a data set
    of one's own). ``writes``: the store may change; it never may outside of it.
    """

    kind: str
    name: str
    argv: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 2
    build: Callable[[Path], None] = nothing
    torch: bool = False
    writes: bool = False
    env: tuple[tuple[str, str], ...] = ()
    shows: str | None = None  # words of stdout, where the input is harmless
    exactly: bool = False
    several: bool = False  # lines, as many as there are problems
    look: Callable[[Path, Ran], list[str]] | None = None

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    cpu_s: float
    rss_mb: float
    changed: list[str]
    heavy: str = ""
    seen: tuple[str, ...] = ()


def run(case: Case, root: Path, forks: Forks | None) -> Ran:
    """Run a case in a fork, or without ``forks`` in a process of its own; everything around it is compared."""
    cwd, kept = root / "around" / "cwd", root / "kept"
    for folder in (cwd, root / "around" / "home", root / "around" / "tmp", kept):
        folder.mkdir(parents=True)
    case.build(cwd)
    env = {"HOME": str(root / "around" / "home"), "TMPDIR": str(root / "around" / "tmp"), "COLUMNS": "200"}
    env |= {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "SECRET": "s3cret", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"MPLCONFIGDIR": str(root / "kept"), **dict(case.env)}
    paths = {name: str(kept / name) for name in ("out", "err", "heavy")}
    for path in paths.values():
        Path(path).touch()
    before = snapshot(root / "around")
    if forks is not None:
        request: dict[str, Any] = {"argv": case.argv, "cwd": str(cwd), "env": env, **paths}
        code, cpu_s, rss_mb = forks.run(request)
    else:
        code, cpu_s, rss_mb = alone(case, cwd, env | {"PYTHONPATH": os.getcwd()}, paths)
    changed = differences(before, snapshot(root / "around"))
    out, err, heavy = ((kept / name).read_bytes().decode("utf-8", "surrogateescape") for name in paths)
    ran = Ran(code, out, err, cpu_s, rss_mb, changed, heavy)
    return ran if case.look is None else replace(ran, seen=tuple(case.look(cwd, ran)))


# In between, because a child is charged for the memory of whoever starts it, and pytest may have torch in its own.
BETWEEN = """
import json, os, sys
child = os.posix_spawn(sys.executable, [sys.executable, "-m", "urc_sweep", *sys.argv[2:]], os.environ)
_, status, usage = os.wait4(child, 0)
answer = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
json.dump(answer, open(sys.argv[1], "w"))
"""


def alone(case: Case, cwd: Path, env: dict[str, str], paths: dict[str, str]) -> tuple[int, float, float]:
    """Run ``python -m urc_sweep``; its CPU seconds are those of everything, imports too."""
    answer = Path(paths["out"]).with_name("answer")
    command = [sys.executable, "-c", BETWEEN, str(answer), *case.argv]
    with open(paths["out"], "wb") as out, open(paths["err"], "wb") as err:
        subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=True)
    code, cpu_s, rss_mb = json.loads(answer.read_text())
    return code, cpu_s, rss_mb


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return what every entry below a folder is; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            size = None if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns, status.st_ino)
            found[os.path.relpath(path, folder)] = (status.st_mode, size)
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def problems(case: Case, ran: Ran, cpu_s: float = CPU_S) -> list[str]:
    """Return what a run did that no hostile input may bring about."""
    lines = ran.err.split("\n")[:-1] if ran.err else []
    found = []
    if ran.code != case.code:
        found.append(f"exit {ran.code}, not {case.code}")
    if "Traceback" in ran.err + (ran.out if case.kind != "terminal" else ""):  # where a store's own is shown
        found.append("a traceback")
    if re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\udc80-\udcff]", ran.err + ran.out
    ):
        found.append("control codes reach the terminal")
    if case.code:
        found += [f"not an error line: {line[:200]}" for line in lines if not re.match(r"urc-sweep: \S", line)]
        found += [f"a line of {len(line)} characters" for line in lines if len(line) > LONGEST_LINE]
        if ran.out:
            found.append(f"on stdout: {ran.out[:200]}")
        if (not lines) if case.several else len(lines) != len(case.says):
            found.append(f"{len(lines)} lines, not {len(case.says)}")
    for words, line in zip(case.says, lines, strict=False):
        if (line != words) if case.exactly else (words not in line):
            found.append(f"{words!r} is not what it says: {line[:400]}")
    if case.shows is not None and case.shows not in ran.out:
        found.append(f"{case.shows!r} is not on stdout: {ran.out[:400]}")
    outside = [name for name in ran.changed if not (case.writes and name.split("/")[:2] == ["cwd", "store"])]
    if outside:
        found.append(f"written: {outside}")
    found += ran.seen
    if ran.cpu_s > cpu_s:
        found.append(f"{ran.cpu_s:.1f} s of CPU")
    if ran.rss_mb > (TORCH_RSS_MB if case.torch else RSS_MB):
        found.append(f"{ran.rss_mb:.0f} MB")
    if ran.heavy and not case.torch:
        found.append(f"imported {ran.heavy} to say no")
    return [*found, ran.err[-1500:]] if found else []
