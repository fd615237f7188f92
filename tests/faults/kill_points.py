"""Crash inside a commit: a trial's last steps, struck at every system call that touches the disk.

A nursery process imports everything once and forks a writer per point; strace is attached to the waiting writer, so
that counting begins with its first step. Faults by point: ``kill`` before the call, ``zombie`` (stopped after it, and
woken when somebody else has finished), ``ENOSPC``, ``EIO`` and ``EINTR`` instead of it, and a ``lost`` answer (done,
but reported as failed, as NFS may).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.card import Budget, Card
from tests.store.build import Study
from urc_sweep.maths.ids import digest
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import Lease
from urc_sweep.store.tables import Projection, Publisher
from urc_sweep.store.verify import verify

CHANGES = ("openat", "write", "fsync", "link", "rename", "unlink", "mkdir", "rmdir")
READS = ("read", "newfstatat", "getdents64")
ANSWERS = ("ESTALE", "ENOENT", "EEXIST", "ETIMEDOUT")  # what NFS may say of a call that it has done
TIMEOUT_S = 60.0
# Three trials: two classifiers, and one that the second judges.
SWEEP = """
name: tiny
dataset: {name: digits}
rates: [{dim: 2, levels: 3}]
train: {epochs: 3}
stages:
  end_to_end: {objective: {distortion: 1.0}}
"""


# -- the writer --------------------------------------------------------------------------------------------------------


def write(root: str, ack: str, take_over: str = "", lost: str = "") -> None:
    """Do what a launch and its worker do; acknowledge every step outside the store once it is done."""
    acknowledged = os.open(ack, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(*fact: str | int) -> None:
        os.write(acknowledged, f"{json.dumps(fact)}\n".encode())

    os.read(0, 1)  # until strace is there
    if lost:
        lose_answer(*lost.split())
    study = Study(Path(root), SWEEP)
    store, facts = study.store, study.facts
    study.facts = lambda *arguments, **more: facts(*arguments, **more) | {"writer": os.getpid()}  # as a host or a time
    with Lease(store, study.name, take_over=bool(take_over)):
        plan = {"generation": 0, "launched_at": "", "trials": [trial.to_json() for trial in study.trials]}
        store.save_generation(study.name, plan)
        publisher = Publisher(Projection(store, study.name))
        for trial in study.trials:
            failure = {"kind": "failure", "trial_id": trial.id, "trial": trial.to_json(), "status": "oom"}
            causes = dict.fromkeys(("error_type", "error_message", "trace"), "out of memory")
            store.fail(trial.id, 1, study.facts() | failure | causes | {"final": False, "curve": []})
            say("failure", trial.id)
            if store.committed(trial.id) is None:
                for epoch in (1, 2):
                    store.save_checkpoint(trial.id, b"tensors %d" % epoch * 1000, {"epoch": epoch})
                    say("checkpoint", trial.id, epoch)
                record = study.training(trial)  # puts its artifacts
                store.commit(trial.id, record)
                say("commit", trial.id)
            store.drop_checkpoint(trial.id)
            if store.committed(trial.evaluation_id) is None:
                store.commit(trial.evaluation_id, study.evaluation(trial))
                say("commit", trial.evaluation_id)
            publisher.publish([trial.id])
        publisher.publish(source=publisher.projection.source())
        say("published")


def lose_answer(name: str, which: str, error: str) -> None:
    """Let the n-th call of ``os.NAME`` be done, but raise ``error``."""
    calls, real = [0], getattr(os, name)

    def call(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        calls[0] += 1
        if calls[0] == int(which):
            raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
        return result

    setattr(os, name, call)


def nurse() -> None:
    """Fork a writer for every line of arguments; tell its process id, later how it ended."""
    print("ready", flush=True)
    while line := os.read(0, 65536):  # unbuffered: the byte after the line is the writer's
        arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                write(*arguments)
            except BaseException as error:  # the one line of a failed writer
                print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Nursery:
    """One nursery process: one writer at a time."""

    def __init__(self, log: Path) -> None:
        self.log, self.trace = log, log.with_suffix(".trace")
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.kill_points"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        assert self.process.stdout.readline() == b"ready\n"

    def start(self, arguments: list[str], inject: str | None = None) -> int:
        """Start a writer and return its process id; unless ``inject`` is None, under strace, which records it."""
        self.process.stdin.write(json.dumps(arguments).encode())
        child = int(self.process.stdout.readline())
        self.tracer = None
        if inject is not None:
            calls = inject.split(":")[0] or ",".join((*CHANGES, *READS))
            command = ["strace", "-f", "-y", "-s", "0", "-o", str(self.trace), "-e", f"trace={calls}"]
            command += ["-e", f"inject={inject}"] if inject else []
            self.tracer = subprocess.Popen([*command, "-p", str(child)], stderr=subprocess.PIPE)
            assert b"attached" in self.tracer.stderr.readline()
        self.process.stdin.write(b"\n")
        return child

    def wait_stopped(self, child: int) -> bool:
        """Wait until strace has stopped the writer; return False if it ended without."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if "stopped by SIGSTOP" in self.trace.read_text():
                return True
            if not Path(f"/proc/{child}").exists():
                return False
            time.sleep(0.005)
        raise TimeoutError(f"process {child} neither stops nor ends")

    def end(self) -> int:
        """Wait for the writer and return its exit code."""
        code = int(self.process.stdout.readline())
        if self.tracer is not None:
            self.tracer.communicate()
        return code

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# -- points ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One fault at one call of the writer."""

    fault: str
    call: str
    which: int
    answer: str = ""

    @property
    def inject(self) -> str:
        """What strace is told."""
        effect = {"kill": "signal=KILL", "zombie": "signal=STOP"}.get(self.fault, f"error={self.fault}")
        return f"{self.call}:{effect}:when={self.which}"

    @property
    def lost(self) -> str:
        """What the writer is told."""
        return f"{self.call} {self.which} {self.answer}" if self.answer else ""


def points(lines: list[str], root: Path) -> list[Point]:
    """Return every fault at every call of an undisturbed writer's trace that touches the store."""
    counts: Counter[str] = Counter()
    found = []
    for line in lines:
        if not (match := re.match(r"\d+ +(\w+)\((.*)", line)):
            continue
        call, rest = match.groups()
        counts[call] += 1
        if str(root) not in rest or " = -1 " in rest:  # what fails leaves the disk as it was
            continue
        at = call, counts[call]
        changes = call in CHANGES and (call != "openat" or "O_CREAT" in rest)
        if changes:
            found += [Point(fault, *at) for fault in ("kill", "zombie", "ENOSPC")]
        if changes or call in ("openat", "read", "getdents64"):
            found += [Point("EIO", *at)]
        if call in ("openat", "write", "fsync"):
            found += [Point("EINTR", *at)]
        if call in ("link", "unlink", "mkdir", "rename"):
            name = {"rename": "replace"}.get(call, call)
            found += [Point("lost", name, counts[call], answer) for answer in ANSWERS]
    return found


def undurable(lines: list[str], ack: Path) -> list[str]:
    """Return each name that was acknowledged before its bytes and its folder were forced to disk.

    A killed process loses nothing that the kernel has: what only a power cut would show is read from the trace.
    """
    problems, dirty, names = [], set(), set()
    for line in lines:
        paths = re.findall(r'[<"](/[^>"]*)[>"]', line)
        if not (match := re.match(r"\d+ +(\w+)\(", line)) or not paths or " = -1 " in line:
            continue
        call = match[1]
        if call == "write" and paths[0] == str(ack):
            problems += [f"{name} is acknowledged, but its folder is not synced" for name in sorted(names)]
            names.clear()
        elif call == "write":
            dirty.add(paths[0])
        elif call == "fsync":
            dirty.discard(paths[0])
            names = {name for name in names if os.path.dirname(name) != paths[0]}
        elif call in ("link", "rename"):
            if paths[0] in dirty:
                problems.append(f"{paths[1]} is published, but its bytes are not synced")
            names.add(paths[1])
        elif call == "mkdir":
            names.add(paths[0])
    return problems


# -- what must hold ----------------------------------------------------------------------------------------------------


def tree(root: Path) -> dict[str, str]:
    """Return the digest of every file outside tmp/, by its name in the store; of a table that of its rows."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "tmp")
    return {str(path.relative_to(root)): digest(content(path)) for path in paths}


def content(path: Path) -> bytes:
    """Return what two runs have in common: a table's rows in any order, a record without the name of its writer."""
    data = path.read_bytes()
    if path.suffix == ".json":
        with contextlib.suppress(ValueError):  # half a record is different from every other
            sealed = json.loads(data)
            sealed.get("record", {}).pop("writer", None)
            return json.dumps(sealed.get("record", sealed)).encode()
    if path.suffix != ".parquet":
        return data
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return "\n".join(sorted(map(str, file.read().to_pylist()))).encode()


def truth(root: Path) -> dict[Path, bytes]:
    """Return the bytes of every file that nobody may ever change."""
    return {path: path.read_bytes() for kind in TRUTH for path in root.glob(f"{kind}*/*")}


TRUTH = ("commits/", "failures/", "artifacts/")
UNFINISHED = ("does not exist", "no table")


class Scene:
    """An undisturbed run, and the two nurseries whose writers are compared with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.first, self.second = Nursery(folder / "first.log"), Nursery(folder / "second.log")
        root, ack = folder / "undisturbed", folder / "ack"
        self.first.start([str(root), str(ack)], "")
        assert self.first.end() == 0, (folder / "first.log").read_text()
        lines = self.first.trace.read_text().splitlines()
        broken = verify(Store(root))[0]
        assert not broken, broken
        self.points, self.undurable, self.reference = points(lines, root), undurable(lines, ack), tree(root)

    def close(self) -> None:
        self.first.close()
        self.second.close()

    def strike(self, point: Point, card: Card) -> list[str]:
        """Inject one fault, let a second writer finish, and return every promise that was broken."""
        root, ack = self.folder / "store", self.folder / "acknowledged"
        shutil.rmtree(root, ignore_errors=True)
        ack.unlink(missing_ok=True)
        errors = self.first.log.stat().st_size
        child = self.first.start([str(root), str(ack), "", point.lost], None if point.answer else point.inject)
        stopped = point.fault == "zombie" and self.first.wait_stopped(child)
        code = 0 if stopped else self.first.end()
        card.injected += 1
        problems, before = self.after_fault(root, ack, card), truth(root)
        if point.fault not in ("kill", "zombie"):
            said = self.first.log.read_bytes()[errors:].decode()
            allowed = ((0, 0),) if (point.fault, point.call) == ("lost", "link") else ((0, 0), (1, 1))
            problems += [f"said {said!r}, exit {code}"] if (code, said.count("\n")) not in allowed else []
        self.second.start([str(root), str(ack), "take over" if stopped else ""])
        if self.second.end() != 0:
            problems.append(f"the next launch failed: {self.second.log.read_text().splitlines()[-1]}")
        if stopped:
            before = truth(root)
            os.kill(child, signal.SIGCONT)
            self.first.end()
        after = truth(root)
        problems += [f"{path.name} was changed" for path, data in before.items() if after.get(path) != data]
        return [*problems, *self.after_all(root, card)]

    def after_fault(self, root: Path, ack: Path, card: Card) -> list[str]:
        """What a reader finds at the moment of the fault: all that was acknowledged, and nothing half-written."""
        problems, store, found = [], Store(root), tree(root)
        whole = [name for name in found if name.startswith(TRUTH)]
        problems += [f"{name} is half-written" for name in whole if self.differs(name, found)]
        facts = [json.loads(line) for line in ack.read_bytes().decode().splitlines()] if ack.exists() else []
        committed = {fact[1] for fact in facts if fact[0] == "commit"}
        for identity in committed:
            card.acknowledged += 1
            if self.differs(str(store.layout.commit(identity).relative_to(root)), found):
                card.lost += 1
                problems.append(f"commit {identity[:12]} was acknowledged and is gone")
        for _, identity, epoch in [fact for fact in facts if fact[0] == "checkpoint"]:
            kept = store.load_checkpoint(identity)
            if not store.committed(identity) and (kept is None or kept[1]["epoch"] < epoch):
                problems.append(f"checkpoint {epoch} of {identity[:12]} was acknowledged and is gone")
        if store.check():
            problems += [line for line in verify(store)[0] if not any(word in line for word in UNFINISHED)]
        return problems

    def after_all(self, root: Path, card: Card) -> list[str]:
        """What is there once somebody has finished: an undisturbed run's files, and none beside them."""
        found = tree(root)
        problems = [f"{name} is not an undisturbed run's" for name in self.reference if self.differs(name, found)]
        problems += [f"{name} is left over" for name in found.keys() - self.reference.keys()]
        problems += verify(Store(root))[0]
        card.runs += 1
        card.identical += not problems
        return problems

    def differs(self, name: str, found: dict[str, str]) -> bool:
        return found.get(name) != self.reference.get(name)


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Strike points in the order of the seed: all of them before any twice."""
    if shutil.which("strace") is None:
        card.problems.append("strace is not installed")
        return
    scene = Scene(folder)
    try:
        card.problems += [f"without a fault: {problem}" for problem in scene.undurable]
        order = list(scene.points)
        random.Random(seed).shuffle(order)
        for number in budget.points():
            point = order[number % len(order)]
            card.problems += [f"{point}: {problem}" for problem in scene.strike(point, card)]
    finally:
        scene.close()


if __name__ == "__main__":
    nurse()
