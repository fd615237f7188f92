"""Faults against real Ray processes: the whole command line on real digits, struck by a signal, brought to its end.

What was committed when the fault struck is remembered outside the store. Every optimizer step of every process is
counted in a file outside it as well, by a term of weight 0, so that work that is done twice shows.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from tests.conftest import small_sweep
from tests.faults.card import Budget, Card
from tests.run.test_launch import files, results
from urc_sweep.maths.ids import digest
from urc_sweep.store.commits import Store
from urc_sweep.store.verify import verify

EPOCHS, LAUNCHES, GONE_S, LEAVE_S = 12, 8, 30.0, 10.0
COUNTED = '''
"""A term that changes nothing: every step that looks at it is counted outside the store."""

import os

from urc_sweep.learn.objectives import Term
from urc_sweep.plan.registry import component


@component("term", "counted", version=1, symbol="lambda_0")
class Counted(Term):
    """0."""

    def __call__(self, batch):
        descriptor = os.open(os.environ["COUNTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b".")
        os.close(descriptor)
        return batch.x.new_zeros(())
'''


@dataclass
class Bench:
    """One store under test: its sweep, its processes, and what is known of it outside."""

    folder: Path
    executor: str = "ray"
    address: str | None = None
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    acknowledged: dict[str, str] = field(default_factory=dict)
    snapshots: list[str] = field(default_factory=list)  # what a reader could not make sense of

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.root, self.count = self.folder / "store", self.folder / "counted"
        text = small_sweep(epochs=EPOCHS, lanes=1).replace("{distortion: 1.0", "{counted: 0, distortion: 1.0")
        (self.folder / "sweep.yaml").write_text(text)
        (self.folder / "counted.py").write_text(COUNTED)
        self.count.touch()
        self.environment = os.environ | {"FAULT_MARK": self.mark, "COUNTED": str(self.count)}

    def launch(self) -> subprocess.Popen[str]:
        words = [sys.executable, *"-m urc_sweep launch sweep.yaml --store store --plugin counted.py".split()]
        words += ["--executor", self.executor, *(["--address", self.address] if self.address else [])]
        with open(self.folder / "launches.log", "a") as log:
            silent = {"stdout": subprocess.DEVNULL, "stderr": log}
            return subprocess.Popen(words, cwd=self.folder, env=self.environment, start_new_session=True, **silent)

    def processes(self, word: str = "") -> list[int]:
        """Return the living processes of this bench's launches, by a word of their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                own = f"FAULT_MARK={self.mark}".encode() in (entry / "environ").read_bytes()
                if own and word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def workers(self) -> list[int]:
        return self.processes("Trainable")

    def look(self) -> None:
        """Note what is committed, and what somebody who reads the tables now would see."""
        for path in self.root.glob("commits/??/*.json"):
            if path.stem not in self.acknowledged:
                self.acknowledged[path.stem] = digest(path.read_bytes())
        if (self.root / "trials").exists():
            try:
                rows = pd.read_parquet(self.root / "trials")["trial_id"]
                if len(rows) not in (0, 6) or rows.duplicated().any():
                    self.snapshots.append(f"a reader saw {len(rows)} rows")
            except Exception as error:  # whatever a reader may be told
                self.snapshots.append(f"a reader met {type(error).__name__}: {error}")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        end = threading.Event()

        def watch() -> None:
            while not end.wait(0.2):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def wait_for_work(self, driver: subprocess.Popen[str], steps: int) -> bool:
        """Wait until so many steps are done; return whether the launch still runs then."""
        while driver.poll() is None and self.count.stat().st_size < steps:
            time.sleep(0.02)
        return driver.poll() is None

    def ended(self, driver: subprocess.Popen[str], seconds: float = 600) -> int | None:
        """Return the exit code of a launch; one that hangs is killed and has none."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return driver.wait(timeout=seconds)
        driver.kill()
        driver.wait()
        return None

    def finish(self) -> int:
        """Launch until the sweep is done; return how many launches it took, 0 if it never was."""
        for number in range(1, LAUNCHES + 1):
            if self.ended(self.launch()) == 0:
                return number
        return 0

    def end(self) -> list[str]:
        """Return the command lines of the processes that are left ``GONE_S`` after the end, killed."""
        deadline = time.monotonic() + GONE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        names = []
        for pid in left:
            with contextlib.suppress(OSError):
                names.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200])
                os.kill(pid, signal.SIGKILL)
        return names


Strike = Callable[[Bench, "subprocess.Popen[str]", random.Random], list[str]]


def kill_driver(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return []


def kill_everything(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    for pid in bench.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.wait()
    return []


def kill_worker(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    return _strike_worker(bench, driver, rng, signal.SIGKILL)


def term_worker(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    return _strike_worker(bench, driver, rng, signal.SIGTERM)


def _strike_worker(bench: Bench, driver: subprocess.Popen[str], rng: random.Random, number: int) -> list[str]:
    """The launch goes on with another worker and ends by itself."""
    if workers := bench.workers():
        os.kill(rng.choice(workers), number)
    code = bench.ended(driver)
    return [] if code == 0 else [f"the launch ended with {code} instead of going on"]


def term_driver(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    os.kill(driver.pid, signal.SIGTERM)
    return _leaves(bench, driver)


def term_everything(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    """What Slurm does to a job: every process at once."""
    for pid in bench.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return _leaves(bench, driver)


def term_then_kill(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    """A host that gives less time than it promised."""
    os.kill(driver.pid, signal.SIGTERM)
    time.sleep(rng.uniform(0, 3))
    return kill_everything(bench, driver, rng)


def _leaves(bench: Bench, driver: subprocess.Popen[str]) -> list[str]:
    began = time.monotonic()
    code = bench.ended(driver, 120)
    took = time.monotonic() - began
    wrong = [] if code in (0, 130) else [f"exit code {code} after SIGTERM"]
    return wrong if took < LEAVE_S + 1 else [*wrong, f"SIGTERM took {took:.1f} s"]


def kill_head(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    for pid in bench.processes("gcs_server"):
        os.kill(pid, signal.SIGKILL)
    return [] if bench.ended(driver, 240) is not None else ["the driver outlived its head"]


def kill_node(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    """The only node: the driver cannot go on, whoever launches again can."""
    for pid in bench.processes("raylet/raylet"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(timeout=90)
        return []
    os.kill(driver.pid, signal.SIGTERM)
    return _leaves(bench, driver)


def zombie(bench: Bench, driver: subprocess.Popen[str], rng: random.Random) -> list[str]:
    """A worker sleeps through its launch's death and the whole next launch, then wakes up."""
    asleep = bench.workers()[:1]
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    kill_driver(bench, driver, rng)
    launches = bench.finish()
    before = results(bench.root)
    for pid in asleep:
        with contextlib.suppress(ProcessLookupError):  # its raylet may have taken it along
            os.kill(pid, signal.SIGCONT)
    bench.end()
    wrong = [] if launches else ["no launch finished beside a sleeping worker"]
    return wrong if results(bench.root) == before else [*wrong, "a worker that woke up changed results"]


STRIKES: dict[str, Strike] = {
    "driver kill -9": kill_driver,
    "worker kill -9": kill_worker,
    "driver SIGTERM": term_driver,
    "worker SIGTERM": term_worker,
    "every process SIGTERM": term_everything,
    "SIGTERM, then kill -9": term_then_kill,
    "every process kill -9": kill_everything,
    "head lost": kill_head,
    "node lost": kill_node,
    "zombie worker": zombie,
}


@dataclass
class Undisturbed:
    """The same sweep without a fault."""

    results: dict[str, tuple]
    steps: int

    @classmethod
    def run(cls, folder: Path) -> Undisturbed:
        bench = Bench(folder, executor="inline")
        assert bench.launch().wait() == 0, (folder / "launches.log").read_text()
        return cls(results(bench.root), bench.count.stat().st_size)

    def judge(self, bench: Bench, card: Card, place: str) -> None:
        """Compare a bench that was brought to its end with this one."""
        final = results(bench.root)
        now = {path.stem: digest(path.read_bytes()) for path in bench.root.glob("commits/??/*.json")}
        card.acknowledged += len(bench.acknowledged)
        card.lost += sum(now.get(name) != was for name, was in bench.acknowledged.items())
        frame = pd.read_parquet(bench.root / "trials")
        card.doubled += int(frame["trial_id"].duplicated().sum())
        card.runs += 1
        card.identical += final == self.results
        card.redone += round((bench.count.stat().st_size - self.steps) / self.steps * 4 * EPOCHS)
        card.problems += [f"{place}: {problem}" for problem in (*verify(Store(bench.root))[0], *bench.snapshots)]
        if set(frame["status"]) != {"done"}:
            card.problems.append(f"{place}: statuses {set(frame['status'])}")
        before = files(bench.root)
        if bench.launch().wait() != 0 or files(bench.root) != before:
            card.problems.append(f"{place}: launching the finished sweep again wrote something")


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Strike at random moments, each kind in turn; every run is brought to its end and compared."""
    undisturbed = Undisturbed.run(folder / "undisturbed")
    for number in budget.points():
        rng = random.Random(f"{seed} {number}")
        name = list(STRIKES)[(seed + number) % len(STRIKES)]
        place = f"{name}, seed {seed}, number {number}"
        bench = Bench(folder / f"ray-{number}")
        driver = bench.launch()
        with bench.watched():
            if bench.wait_for_work(driver, rng.randrange(1, undisturbed.steps * 9 // 10)):
                card.injected += 1
            card.problems += [f"{place}: {problem}" for problem in STRIKES[name](bench, driver, rng)]
            if not bench.finish():
                card.problems.append(f"{place}: not finished after {LAUNCHES} launches")
        undisturbed.judge(bench, card, place)
        left = bench.end()
        card.orphans += len(left)
        card.problems += [f"{place}: left behind: {name}" for name in left]
