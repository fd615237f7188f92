"""Two launches, one store: eight at once, again and again, after every kind of previous holder.

Most rounds race eight processes with a real lease and a few real commits; every tenth races eight command lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import small_sweep
from tests.faults.card import Budget, Card
from tests.store.build import in_processes
from urc_sweep.maths.ids import digest
from urc_sweep.store.commits import Store

AT_ONCE, REFUSED_WITHIN_S, REAL_EVERY = 8, 5.0, 10
CLI = [sys.executable, "-m", "urc_sweep"]
PREVIOUS = ("nobody", "dead", "alive", "dead elsewhere", "alive elsewhere")
ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]

# Take the lease or be refused; commit in both cases, as a late worker would. The mark tells of two holders at once.
WORK = """
import os, time
from pathlib import Path
from urc_sweep.errors import StoreError
from urc_sweep.maths.ids import digest
from urc_sweep.store import lease
from urc_sweep.store.commits import Store
def work(number):
    root, mark, heartbeat, expiry = sys.argv[1:5]
    lease.HEARTBEAT_S, lease.EXPIRY_S = float(heartbeat), float(expiry)
    store, began, answer = Store(root), time.monotonic(), {"pid": os.getpid(), "overlap": False}
    def commit():
        names = [digest(b"%d" % n) for n in range(5)]
        return [name for name in names if store.commit(name, {"id": name, "kind": "test", "by": [number] * 999})]
    try:
        with lease.Lease(store, f"s{number}") as held:
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                answer["overlap"] = True
            answer["won"] = commit()
            time.sleep(0.5)
            answer["overlap"] |= held.lost.is_set()
            Path(mark).unlink(missing_ok=True)
    except StoreError as error:
        answer |= {"refused": str(error), "seconds": time.monotonic() - began, "won": commit()}
    return answer
"""
HOLD = """
import sys
from urc_sweep.store import lease
from urc_sweep.store.commits import Store
lease.HEARTBEAT_S = 0.1
with lease.Lease(Store(sys.argv[1]), "theirs"):
    print("held", flush=True)
    input()
"""


@contextlib.contextmanager
def holder(root: Path, previous: str) -> Iterator[int]:
    """Run a process that holds the lease, here or on a host of another name; a dead one is killed while it does."""
    command = [*(ELSEWHERE if "elsewhere" in previous else []), sys.executable, "-c", HOLD, str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        if "dead" in previous:
            process.kill()
            process.wait()
        yield process.pid
    finally:
        if process.poll() is None:
            process.communicate(b"\n")


def race(folder: Path, previous: str, card: Card) -> Iterator[str]:
    """Race eight processes for one store; yield every promise that was broken."""
    root = folder / "store"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(root)
    store.create()
    expiry = "1.5" if previous == "dead elsewhere" else "60"
    arguments = str(root), str(folder / "mark"), "0.1", expiry
    (folder / "mark").unlink(missing_ok=True)
    before = contextlib.nullcontext(0) if previous == "nobody" else holder(root, previous)
    with before as pid:
        answers = in_processes(WORK, AT_ONCE, *arguments)
    card.injected += 1
    holders = {f"process {a['pid']} on" for a in answers if "refused" not in a}
    if previous.startswith("alive"):
        if holders:
            yield f"{sorted(holders)} took the lease of a living holder"
        holders = {f"process {pid} on"}
    if not holders:
        yield "nobody got the lease"
    for answer in answers:
        if answer["overlap"]:
            yield "two held the lease at one time"
        if "refused" in answer and not any(name in answer["refused"] for name in holders):
            yield f"a refusal names another than {sorted(holders)}: {answer['refused']}"
        limit = REFUSED_WITHIN_S + (float(expiry) if previous == "dead elsewhere" else 0)
        if answer.get("seconds", 0) > limit:
            yield f"a refusal took {answer['seconds']:.1f} s"
    won = [name for answer in answers for name in answer["won"]]
    card.acknowledged += len(won)
    card.doubled += len(won) - len(set(won))
    for name in (digest(b"%d" % n) for n in range(5)):
        winner = [number for number, answer in enumerate(answers) if name in answer["won"]]
        if winner * 999 != (Store(root).committed(name) or {}).get("by"):
            card.lost += 1
            yield f"commit {name[:12]} was won by {winner}, but is another's or gone"
    yield from remains(root)


def remains(root: Path) -> Iterator[str]:
    """Yield what a round should not leave behind. A killed holder may leave what it was writing."""
    if (root / "lease.json").exists():
        yield "the lease is still there"
    if claims := list((root / "tmp").glob("claim-*")):
        yield f"claims are left: {claims}"


@dataclass
class Times:
    """How long command lines took to be refused."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{name} median {statistics.median(values):.2f} s, max {max(values):.2f} s"
            for name, values in (("wall", self.wall), ("CPU", self.cpu))
            if values
        ]
        return f"{len(self.wall)} launches refused: {'; '.join(parts)}"


def race_commands(folder: Path, card: Card, times: Times) -> Iterator[str]:
    """Race eight real launches of one sweep; yield every promise that was broken."""
    from urc_sweep.store.verify import verify

    root, path = folder / "real", folder / "sweep.yaml"
    shutil.rmtree(root, ignore_errors=True)
    path.write_text(small_sweep(epochs=2, weights="[0.01]"))
    command = [*CLI, "launch", str(path), "--store", str(root), "--executor", "inline", "-q"]
    limit = REFUSED_WITHIN_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others work here, too
    began, started = time.monotonic(), {}
    for number in range(AT_ONCE):
        with open(folder / f"{number}.err", "wb") as errors:
            process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        started[process.pid] = (number, process)
    ended = {}
    while len(ended) < AT_ONCE:
        pid, status, usage = os.wait4(-1, 0)  # tells the CPU time of each
        if pid in started:
            number, process = started[pid]
            process.returncode = os.waitstatus_to_exitcode(status)
            said = (folder / f"{number}.err").read_text()
            ended[pid] = (process.returncode, said, time.monotonic() - began, usage.ru_utime + usage.ru_stime)
    card.injected += 1
    winners = [pid for pid, (code, *_) in ended.items() if code == 0]
    if len(winners) != 1:
        yield f"{len(winners)} of {AT_ONCE} launches ran"
    for code, said, wall, cpu in (end for pid, end in ended.items() if pid not in winners):
        times.wall.append(wall)
        times.cpu.append(cpu)
        named = re.search(r"in use by sweep 'small', process (\d+) on", said)
        if code != 4 or said.count("\n") != 1 or not named or int(named[1]) not in winners:
            yield f"a refused launch ends with {code}: {said!r}"
        if max(wall / limit, cpu / REFUSED_WITHIN_S) > 1:
            yield f"a launch was refused after {wall:.1f} s ({cpu:.1f} s of CPU)"
    yield from verify(Store(root))[0]
    yield from remains(root)


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Race round after round; what went before is drawn by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    times = Times()
    for number in budget.points():
        if number % REAL_EVERY == REAL_EVERY - 1:
            problems, name = list(race_commands(folder, card, times)), "command lines"
        else:
            name = PREVIOUS[(seed + number) % len(PREVIOUS)]
            problems = list(race(folder, name, card))
        card.runs += 1
        card.identical += not problems
        card.problems += [f"round {number}, {name} before: {problem}" for problem in problems]
    if times.wall:
        print(times, file=sys.stderr)
