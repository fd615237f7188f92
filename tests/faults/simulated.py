"""Lost or late messages: the real schedule and conductor in a simulated world, replayed by seed.

Clock, store, workers and messages are simulated. Workers die before or after a commit, or are given up while they
still work and commit later; messages are lost, late, doubled and out of order; drivers die and are launched again;
the store refuses writes; people stop sweeps. ``python -m tests.faults.simulated SEED [COUNT]`` shows seeds again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.faults.card import Budget, Card
from urc_sweep.plan import spec
from urc_sweep.plan.trials import Trial
from urc_sweep.run import conductor as conducting
from urc_sweep.run.conductor import FINISHED, Conductor
from urc_sweep.run.job import fail
from urc_sweep.run.launch import Launch
from urc_sweep.run.schedule import FAILED, MAX_ATTEMPTS
from urc_sweep.store.commits import Record, Store
from urc_sweep.store.tables import Projection

ROUGH_LAUNCHES = 4  # later ones see no more faults and must bring the sweep to its end
REPLAYED_EVERY = 20
MOST_EVENTS = 20_000  # a sweep has some hundreds
ENDED = {"done", "skipped", *FAILED}
BUDGETS = ((None, None), (None, None), (0.002, None), (0.01, None), (None, 1), (None, 4))  # hours, trials
FATES = ("fine",) * 14 + ("failed", "diverged", "oom", "oom", "oom alone", "not evaluated", "flaky")


class Memory(Store):
    """A store in memory: first writer wins; while times are rough it sometimes cannot be used."""

    def __init__(self, trouble: Callable[[], bool]) -> None:
        self.trouble, self.records, self.failed, self.marks = trouble, {}, {}, {}
        self.read_by_driver = False

    def commit(self, commit_id: str, record: Record) -> bool:
        self._usable()
        return self.records.setdefault(commit_id, record) is record

    def committed(self, commit_id: str) -> Record | None:
        if self.read_by_driver:
            self._usable()
        return self.records.get(commit_id)

    def fail(self, trial_id: str, attempt: int, record: Record) -> bool:
        self._usable()
        return self.failed.setdefault((trial_id, attempt), record) is record

    def failures(self, trial_id: str) -> list[Record]:
        return [self.failed[key] for key in sorted(self.failed) if key[0] == trial_id]

    def checkpoint_mark(self, trial_id: str) -> tuple[int, int] | None:
        return self.marks.get(trial_id)

    def _usable(self) -> None:
        if self.trouble():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class View(Projection):
    """The projection of a plan that was never written down."""

    def __init__(self, store: Store, trials: list[Trial]) -> None:
        self.store, self.name, self.trials, self._failures = store, "simulated", trials, {}
        self.by_id = {trial.id: trial for trial in trials}


def draw_plan(rng: random.Random) -> list[Trial]:
    """Return up to twelve trials that need some of those before them; equal keys may share a pack."""
    trials: list[Trial] = []
    for index in range(rng.randint(1, 12)):
        needs = rng.sample([t.id for t in trials], min(len(trials), rng.choice((0, 0, 1, 1, 2, 3))))
        judges = rng.sample([t.id for t in trials], min(len(trials), rng.choice((0, 0, 0, 1))))
        train = {"epochs": rng.randint(1, 3)}
        config = {"stage": rng.choice(("a", "b")), "seed": rng.randrange(2), "train": train, "objective": {}}
        config["needs"] = {need: need for need in needs}
        trials.append(Trial(f"t{index}", config["stage"], config, {j: j for j in judges}, f"evaluation of t{index}"))
    return trials


class World:
    """One simulated sweep, from its first launch to its end. Everything that happens is drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now, self.events, self.log = 0.0, [], []
        self.count, self.faults, self.redone, self.problems = 0, 0, 0, []
        self.trials = draw_plan(self.rng)
        self.by_id = {trial.id: trial for trial in self.trials}
        self.fate = {trial.id: self.rng.choice(FATES) for trial in self.trials}
        self.lanes, self.slots = self.rng.randint(1, 4), self.rng.randint(1, 4)
        self.violence = self.rng.choice((0.0, 0.02, 0.1, 0.3))
        self.rough = True
        self.store = Memory(lambda: self.chance(0.1, "the disk is full"))
        self.won: dict[str, Record] = {}
        self.driver: Driver

    # -- time and chance -------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.now

    def at(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, action, arguments))

    def chance(self, share: float, what: str = "") -> bool:
        """Return whether a fault happens, at a share of this world's violence."""
        struck = self.rough and self.rng.random() < share * self.violence
        if struck and what:
            self.faults += 1
            self.say(what)
        return struck

    def say(self, *words: object) -> None:
        self.log.append(f"{self.now:.6f} " + " ".join(map(str, words)))

    def promise(self, kept: bool, *words: object) -> None:
        if not kept:
            self.problems.append(" ".join(map(str, words)))

    # -- a sweep ---------------------------------------------------------------------------------------------------

    def run(self) -> World:
        """Launch until nothing is missing."""
        conducting.time, clock = self, conducting.time
        try:
            for number in range(ROUGH_LAUNCHES + 3):
                self.rough = number < ROUGH_LAUNCHES
                self.driver = driver = Driver(self, number)
                driver.launch()
                if driver.missing:
                    self.promise(driver.excused, f"launch {number} ended by itself, but {driver.missing} are missing")
                    continue
                self.events.sort()
                while self.events:  # zombies have the last word: they may commit what others waited for
                    self.step()
                if not driver.missing:
                    break
            else:
                self.promise(False, "three launches without a fault did not end the sweep")
        finally:
            conducting.time = clock
        self.judge()
        return self

    def step(self) -> None:
        self.now, _, action, arguments = heapq.heappop(self.events)
        if self.count > MOST_EVENTS:
            raise RuntimeError("no end: events breed events")
        action(*arguments)

    def value(self, trial: Trial) -> str:
        """What training must give: a function of the trial and of the very records it needs."""
        inputs = [trial.id, *(self.value(self.by_id[need]) for need in trial.needs.values())]
        return hashlib.sha256(" ".join(inputs).encode()).hexdigest()

    def judge(self) -> None:
        """What must hold in the end, whatever happened."""
        statuses = View(self.store, self.trials).statuses()
        for commit_id, record in self.won.items():
            self.promise(self.store.committed(commit_id) == record, commit_id, "was acknowledged and is not there")
        for trial in self.trials:
            status, fate, record = statuses[trial.id], self.fate[trial.id], self.store.committed(trial.id)
            self.promise(status in ENDED, trial.id, "ends as", status)
            unmet = any(self.store.committed(need) is None for need in trial.required)
            self.promise(not (status == "skipped" and not unmet), trial.id, "is skipped though all it needs is there")
            self.promise(not record or record["value"] == self.value(trial), trial.id, "has another value")
            if status in FAILED and fate in ("fine", "oom"):
                why = self.store.final_failure(trial.id)["error_type"]
                self.promise(why == "WorkerDied", trial.id, "is fine, but", status, why)
            if fate in ("failed", "diverged", "oom alone"):
                self.promise(status != "done", trial.id, "is done, but can only end as", fate)
        self.say(*statuses.items())

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.log).encode()).hexdigest()


class Driver:
    """One launch: asks the conductor as Tune would, starts simulated workers and carries their messages."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        hours, most = world.rng.choice(BUDGETS) if world.rough else (None, None)
        budget = spec.Budget.model_construct(hours=hours, trials=most)
        schedule = self.read()
        self.conductor = Conductor(View(world.store, world.trials), schedule, self.heard, budget)
        self.handles: dict[str, dict[str, Any]] = {}
        self.known_ended = {t for t, state in schedule.state.items() if state in ENDED}
        self.unfinished: set[str] = set()
        self.started, self.finished, self.dead, self.surprised = 0, False, False, False

    def read(self) -> Any:
        """Return the schedule as the launch itself would make it."""
        seen: Any = SimpleNamespace(trials=self.world.trials, store=self.world.store)
        return Launch.schedule(seen, lambda stage: self.world.lanes)

    @property
    def missing(self) -> list[str]:
        return [trial_id for trial_id, state in self.read().state.items() if state == "waiting"]

    @property
    def excused(self) -> bool:
        """Whether something else than the plan ended this launch, or what it had written off was done by a zombie."""
        return self.dead or self.surprised or self.conductor.stopping is not None

    def heard(self, event: str, trial: Trial | None) -> None:
        self.world.say("driver", self.number, event, trial.id if trial else "")

    def launch(self) -> None:
        world, rng = self.world, self.world.rng
        if world.rough and rng.random() < 0.3 * bool(world.violence):
            world.at(rng.uniform(0, 40), self.stop)
        if world.rough and rng.random() < 0.4 * bool(world.violence):
            world.at(rng.uniform(0, 40), self.die)
        self.ask()
        while not self.dead and not (self.finished and not self.handles):
            if not world.events:
                world.promise(False, f"launch {self.number} hangs: nothing will ever happen")
                break
            world.step()
            self.ask()
        self.dead = self.dead or bool(self.handles)

    def ask(self) -> None:
        """Fill free slots, as Tune does after every event."""
        world, store = self.world, self.world.store
        while not self.dead and not self.finished and len(self.handles) < world.slots:
            handle = f"{self.number}.{self.started}"
            config = self.conductor.suggest(handle)
            if config == FINISHED:
                self.finished = True
            if not isinstance(config, dict):
                world.promise(config == FINISHED or bool(self.handles), "told to wait while nothing is live")
                return
            self.started += 1
            world.say("hand out", handle, *config["trials"], *config["attempts"])
            live = [trial_id for other in self.handles.values() for trial_id in other["trials"]]
            for trial_id in config["trials"]:
                needs = world.by_id[trial_id].required
                world.promise(trial_id not in live, trial_id, "is handed out twice at a time (invariant 9)")
                world.promise(all(store.committed(n) for n in needs), trial_id, "starts too early (invariant 7)")
                world.promise(trial_id not in self.known_ended, trial_id, "is handed out though it was seen to end")
                alone = trial_id not in self.unfinished or len(config["trials"]) == 1
                world.promise(alone, trial_id, "came back unfinished, but is not tried again by itself")
            world.promise(self.conductor.schedule.tries[config["trials"][0]] <= MAX_ATTEMPTS, "too many attempts")
            self.handles[handle] = config
            self.work(handle, Worker(self, handle, config).steps())

    # -- workers and messages --------------------------------------------------------------------------------------

    def work(self, handle: str, steps: Iterator[float]) -> None:
        """Let a worker go on to its next step, unless it dies, alone or in the eyes of its driver."""
        world = self.world
        if world.chance(0.5, f"{handle} dies"):
            self.deliver(self.complete, handle, True)
            return
        if world.chance(0.5, f"{handle} is given up, but works on"):
            self.deliver(self.complete, handle, True)
            world.at(world.rng.uniform(0, 60), self.work, handle, steps)
            return
        delay = next(steps, None)
        if delay is None:
            self.deliver(self.complete, handle, False)
        else:
            world.at(delay, self.work, handle, steps)

    def emit(self, handle: str, message: dict[str, Any]) -> None:
        """Send a message, which may be lost."""
        if not self.world.chance(1, f"lost: {message}"):
            self.deliver(self.result, handle, message)

    def deliver(self, action: Callable[..., None], *arguments: Any) -> None:
        """Let something reach the driver: now, late, or twice; in whatever order that gives."""
        world = self.world
        late = world.rng.uniform(0, 30) if world.chance(1, "late") else 0.0
        world.at(late, action, *arguments)
        if world.chance(1, "doubled"):
            world.at(late + world.rng.uniform(0, 30), action, *arguments)

    def result(self, handle: str, message: dict[str, Any]) -> None:
        if not self.dead:
            self.world.say("told", handle, *message.values())
            with self.reading():
                self.conductor.on_result(handle, message)

    def complete(self, handle: str, crashed: bool) -> None:
        if self.dead:
            return
        self.world.say("completed", handle, crashed)
        stopping, given_up = self.conductor.stopping, self.given_up
        with self.reading():
            self.conductor.on_complete(handle, crashed)
        self.world.promise(not stopping or self.given_up == given_up, handle, "was interrupted, not lost: given up")
        for trial_id in self.handles.pop(handle, {"trials": ()})["trials"]:
            done = self.conductor.projection.done(self.world.by_id[trial_id])
            failed = self.world.store.final_failure(trial_id) is not None
            (self.known_ended if done or failed else self.unfinished).add(trial_id)

    @property
    def given_up(self) -> int:
        return sum(record["error_type"] == "WorkerDied" for record in self.world.store.failed.values())

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Let the store be trouble to the conductor alone."""
        self.world.store.read_by_driver = True
        try:
            yield
        finally:
            self.world.store.read_by_driver = False

    def stop(self) -> None:
        if not self.dead and not self.finished:
            self.conductor.stop("asked to")

    def die(self) -> None:
        """Kill the driver; its workers go on, and whoever hears of them is dead."""
        if not self.finished:
            self.world.faults += 1
            self.world.say("driver", self.number, "dies")
            self.dead = True


class Worker:
    """What a worker does to the store, in the order in which it does it; every yield is a moment to die in."""

    def __init__(self, driver: Driver, handle: str, config: dict[str, Any]) -> None:
        self.driver, self.world, self.store, self.handle = driver, driver.world, driver.world.store, handle
        self.trials = [self.world.by_id[trial_id] for trial_id in config["trials"]]
        self.attempts = dict(zip(config["trials"], config["attempts"], strict=True))

    def steps(self) -> Iterator[float]:
        try:
            yield from self.shift()
        except OSError as error:
            self.emit("environment", reason=str(error))
        except Interrupted:
            self.emit("interrupted")

    def shift(self) -> Iterator[float]:
        rng = self.world.rng
        todo = [trial for trial in self.trials if self.store.committed(trial.id) is None]
        for trial in todo:
            yield rng.uniform(1, 10)
            if rng.random() < 0.3:
                self.store.marks[trial.id] = (0, self.world.count)
            self.emit("epoch", trial=trial.id, epoch=1, seconds=1.0)
            if self.driver.conductor.stopping and not self.driver.dead:
                raise Interrupted
        for trial in todo:
            yield rng.uniform(0, 1)
            self.train(trial, len(todo))
        for trial in self.trials:
            yield rng.uniform(0, 2)
            if self.store.committed(trial.id) and not self.store.committed(trial.evaluation_id):
                self.evaluate(trial)

    def train(self, trial: Trial, lanes: int) -> None:
        fate, record = self.world.fate[trial.id], {"value": self.world.value(trial), "writer": self.handle}
        if fate == "flaky" and self.world.rng.random() < 0.5:
            self.fail(trial, "failed")
        elif fate in ("failed", "diverged"):
            self.fail(trial, fate)
        elif fate == "oom alone" or (fate == "oom" and lanes > 1):
            self.fail(trial, "oom", final=lanes == 1)
        else:
            self.commit(trial.id, record)
            self.emit("trained", trial=trial.id)

    def evaluate(self, trial: Trial) -> None:
        if self.world.fate[trial.id] == "not evaluated":
            self.fail(trial, "failed")
            return
        self.commit(trial.evaluation_id, {"writer": self.handle})
        self.emit("done", trial=trial.id)

    def commit(self, commit_id: str, record: Record) -> None:
        won = self.store.commit(commit_id, record)
        self.world.driver.surprised |= won and self.handle not in self.world.driver.handles
        self.world.say(self.handle, "commits" if won else "loses", commit_id)
        if won:
            self.world.promise(commit_id not in self.world.won, commit_id, "was won twice")
            self.world.won[commit_id] = record
        else:
            self.world.redone += 1

    def fail(self, trial: Trial, status: str, final: bool = True) -> None:
        fail(self.store, trial, self.attempts[trial.id], status=status, final=final, error_type="Simulated")
        self.emit(status, trial=trial.id)

    def emit(self, event: str, **facts: Any) -> None:
        self.driver.emit(self.handle, {"event": event, **facts})


class Interrupted(Exception):
    """The sweep was asked to stop."""


def replay(seed: int) -> World:
    """Run the world of one seed; an exception is a broken promise like any other."""
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        world.problems.append(f"{type(error).__name__}: {error}")
    return world


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Run world after world; run some again in another process, whose hashes of strings differ."""
    digests = {}
    for number in budget.points():
        world = replay(seed + number)
        if number % REPLAYED_EVERY == 0:
            digests[seed + number] = world.digest
        card.injected += world.faults
        card.acknowledged += len(world.won)
        card.redone += world.redone
        card.runs += 1
        card.identical += not world.problems
        card.problems += [f"python -m tests.faults.simulated {seed + number}: {line}" for line in world.problems]
    command = [sys.executable, "-m", "tests.faults.simulated", str(seed), str(len(digests)), str(REPLAYED_EVERY)]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    for (number, digest), found in zip(digests.items(), again, strict=True):
        if digest != found:
            card.problems.append(f"seed {number} runs otherwise when it is replayed")


if __name__ == "__main__":
    first, *rest = map(int, sys.argv[1:])
    if not rest:
        shown = replay(first)
        print(*shown.log, *shown.problems, sep="\n")
    else:
        for shown_seed in range(first, first + rest[0] * rest[1], rest[1]):
            print(replay(shown_seed).digest)
