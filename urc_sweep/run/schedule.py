"""The schedule: a pure, replayable state machine. Invariant: a trial is handed out to one pack at a time.

A trial is ready when everything it needs is committed; there is no barrier between stages. What others wait for
longest goes first. Packs are cut at dispatch, from ready trials that share a pack key. An event costs what it changes,
not what is planned.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from urc_sweep.plan.trials import Trial, trains_critic

MAX_ATTEMPTS = 3
FAILED = ("failed", "diverged", "oom")
# Millions of multiply-adds per image and forward pass of the paper's networks; training takes three times that.
ENCODER, DECODER, CLASSIFIER = 0.58, 26.95, 0.3
CRITIC_STEP, CRITIC_READ = 262.0, 47.0  # a WGAN-GP step of a critic, and what it adds to one of encoder and decoder
# What each further trial adds to a pack's time on a GPU, as a share of the first's: packs of 8 gain 1.5 to 3 times.
LANE = 0.4


@dataclass(frozen=True)
class Pack:
    """Trials to be trained side by side in one process, by id, and which attempt at them this is."""

    trials: tuple[str, ...]
    attempts: tuple[int, ...]


class Schedule:
    """Which trials are waiting, running, done, failed or skipped, and what to hand out next.

    Packs of a stage have as many trials as ``lanes`` says, where so many are ready; of an ``automatic`` stage that is
    the most, and they have fewer where that ends the sweep sooner, with ``slots`` packs at a time.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        trained: Iterable[str] = (),
        done: Iterable[str] = (),
        failed: Mapping[str, str] | None = None,
        attempted: Mapping[str, int] | None = None,
        lanes: Callable[[str], int] = lambda stage: 1,
        automatic: Container[str] = (),
        slots: int = 1,
    ) -> None:
        self.trials = {trial.id: trial for trial in trials}
        self.lanes, self.automatic, self.slots = lanes, automatic, slots
        self.fitting: dict[str, int] = {}
        self.needs = {trial.id: set(trial.required) for trial in trials}
        self.dependents: dict[str, list[str]] = {trial.id: [] for trial in trials}
        for trial_id, needs in self.needs.items():
            for need in needs:
                self.dependents[need].append(trial_id)
        self.trained = set(trained) | set(done)
        self.state = dict.fromkeys(self.trials, "waiting")
        self.state |= dict.fromkeys(done, "done")
        # Attempts of earlier launches number this launch's, they do not use its attempts up.
        self.attempted = {trial_id: (attempted or {}).get(trial_id, 0) for trial_id in self.trials}
        self.attempts = dict.fromkeys(self.trials, 0)
        self.tries = dict.fromkeys(self.trials, 0)  # attempts since the last one that came further
        self.handed_out = 0  # all attempts of this launch
        self.alone: set[str] = set()
        self.live: dict[Pack, float] = {}  # and when it should end, on a clock that only its like move
        self._clock, self._due, self._due_sum = 0.0, list[float](), 0.0
        self.work = {trial.id: work(trial) for trial in trials}
        self._order = self._rank(trials)
        self._place = {trial_id: place for place, trial_id in enumerate(self._order)}
        self.ready: set[str] = set()
        # Heaps of places; what is in one and not in ``ready`` any more is passed over.
        self._urgent, self._mates = list[int](), dict[str, list[int]]()
        self._count = Counter[str]()  # ready trials that may share a pack, by pack key
        self._ready_work, self._left = 0.0, sum(self.work[t] for t, s in self.state.items() if s == "waiting")
        for trial_id in self._order:
            self._release(trial_id)
        for trial_id, status in (failed or {}).items():
            self.fail(trial_id, status)

    def dispatch(self, most: int | None = None) -> Pack | None:
        """Hand out the most urgent pack, of at most ``most`` trials, or ``None`` if nothing is ready."""
        lead = self._take(self._urgent)
        if lead is None:
            return None
        chosen = [lead]
        if lead not in self.alone:
            mates, count = self._mates[self.trials[lead].pack_key], self._lanes(lead)
            while len(chosen) < min(count, most or count) and (mate := self._take(mates)):
                chosen.append(mate)
        for trial_id in chosen:
            self.attempts[trial_id] += 1
            self.tries[trial_id] += 1
        self.handed_out += len(chosen)
        pack = Pack(tuple(chosen), tuple(self.attempted[t] + self.attempts[t] for t in chosen))
        self.live[pack] = self._clock + self.work[lead] * (1 + LANE * (len(chosen) - 1))
        heappush(self._due, self.live[pack])
        self._due_sum += self.live[pack]
        return pack

    def train(self, trial_id: str) -> None:
        """Note a training commit: dependents may start, the trial's own evaluation may still run."""
        self.trained.add(trial_id)
        for dependent in self.dependents[trial_id]:
            self._release(dependent)

    def finish(self, trial_id: str) -> None:
        """Note an evaluation commit."""
        self.train(trial_id)
        self._move(trial_id, "done")

    def fail(self, trial_id: str, status: str) -> None:
        """Note a final failure; whatever needs this trial is skipped, and so on down."""
        if self.state[trial_id] == "done":
            return
        self._move(trial_id, status)
        if trial_id in self.trained:
            return  # only its evaluation failed: dependents need the training
        for dependent in self.dependents[trial_id]:
            if self.state[dependent] == "waiting":
                self.fail(dependent, "skipped")

    def fits(self, stage: str, lanes: int) -> None:
        """Note for how many trials of a stage a worker's device has memory: the smallest device decides for all."""
        self.fitting[stage] = max(1, min(lanes, self.fitting.get(stage, lanes)))

    def end(self, pack: Pack, further: Container[str] = ()) -> list[str]:
        """Take a pack back. Trials it left unfinished wait again, each alone; return those out of attempts.

        An attempt that came ``further``, to a new checkpoint, uses up none: preemption is no trial's fault.
        """
        self._clock = max(self._clock, self.live.pop(pack, 0.0))
        while self._due and self._due[0] <= self._clock:
            self._due_sum -= heappop(self._due)
        given_up = []
        for trial_id in pack.trials:
            if self.state[trial_id] != "running":
                continue
            self.alone.add(trial_id)  # a crash, or too little memory for the pack
            self._move(trial_id, "waiting")
            if trial_id in further:
                self.tries[trial_id] = 0
            if self.tries[trial_id] >= MAX_ATTEMPTS:
                given_up.append(trial_id)
        return given_up

    @property
    def settled(self) -> bool:
        """Whether nothing is left to hand out, now or later."""
        return not self.live and not self.ready

    def counts(self) -> dict[str, Counter[str]]:
        """Return how many trials of each stage are in each state; ``ready`` and ``blocked`` instead of waiting."""
        table: dict[str, Counter[str]] = {}
        for trial_id, state in self.state.items():
            if state == "waiting":
                state = "ready" if trial_id in self.ready else "blocked"
            table.setdefault(self.trials[trial_id].stage, Counter())[state] += 1
        return table

    def _lanes(self, lead: str) -> int:
        """Return how many trials the pack of ``lead`` should have, which was just taken from those that are ready."""
        stage, own, mates = self.trials[lead].stage, self.work[lead], 1 + self._count[self.trials[lead].pack_key]
        cap = self.lanes(stage)
        cap = max(1, min(cap, self.fitting.get(stage, cap)))
        if cap == 1 or stage not in self.automatic:
            return cap
        # All in units of this trial. No free slot should find nothing to do ...
        share = (1 + self._ready_work / own) / max(1, self.slots - len(self.live))
        # ... and all slots should end together: each has ``time`` to go, in ``waves`` packs of about the same length.
        packs = (1 + self._left / own - mates) / cap + _ceil(mates / cap)
        left = (1 + self._left / own) * LANE + packs * (1 - LANE)
        time = (left + (self._due_sum - self._clock * len(self._due)) / own) / self.slots
        waves = max(1, _ceil(time / (1 + LANE * (cap - 1))))
        lanes = max(1, min(cap, _ceil(share), _ceil(1 + (time / waves - 1) / LANE)))
        return _ceil(mates / _ceil(mates / lanes))  # five and four rather than eight and one

    def _ready(self, trial_id: str) -> bool:
        return self.state[trial_id] == "waiting" and self.needs[trial_id] <= self.trained

    def _release(self, trial_id: str) -> None:
        """Put a trial among those that are ready, once it is."""
        if trial_id in self.ready or not self._ready(trial_id):
            return
        self.ready.add(trial_id)
        self._ready_work += self.work[trial_id]
        heappush(self._urgent, self._place[trial_id])
        if trial_id not in self.alone:
            key = self.trials[trial_id].pack_key
            heappush(self._mates.setdefault(key, []), self._place[trial_id])
            self._count[key] += 1

    def _take(self, heap: list[int]) -> str | None:
        """Return the most urgent ready trial of a heap, running from now on."""
        while heap:
            trial_id = self._order[heappop(heap)]
            # One to be tried alone may still lie among the mates of before.
            if trial_id in self.ready and (heap is self._urgent or trial_id not in self.alone):
                self._move(trial_id, "running")
                return trial_id
        return None

    def _move(self, trial_id: str, state: str) -> None:
        if trial_id in self.ready:
            self.ready.discard(trial_id)
            self._ready_work -= self.work[trial_id]
            self._count[self.trials[trial_id].pack_key] -= trial_id not in self.alone
        self._left += self.work[trial_id] * ((state == "waiting") - (self.state[trial_id] == "waiting"))
        self.state[trial_id] = state
        self._release(trial_id)

    def _rank(self, trials: Sequence[Trial]) -> list[str]:
        """Return ids by the work of the chain that waits for them, longest first, then in plan order."""
        height: dict[str, float] = {}
        for trial in reversed(trials):  # in a plan, needed trials come before those that need them
            below = max((height[dependent] for dependent in self.dependents[trial.id]), default=0.0)
            height[trial.id] = self.work[trial.id] + below
        return sorted(self.trials, key=lambda trial_id: -height[trial_id])


def work(trial: Trial) -> float:
    """Return about how much computing a trial is, in millions of multiply-adds per training image: a relative weight.

    Counted for the paper's networks on MNIST: of 64 images a step is 10.6 GFLOP, with a critic 16.5, one of the critic
    33.6. Other networks and sizes have about these proportions. One forward pass stands for the evaluation.
    """
    epochs, objectives = trial.setting("train", "epochs"), trial.objectives
    if not objectives:
        return float(CLASSIFIER * (3 * epochs + 1))
    encoder, critics = (1 if "encoder" in trial.needs else 3) * ENCODER, sum(map(trains_critic, objectives))
    step = encoder + 3 * DECODER * len(objectives) + CRITIC_READ * critics
    if critics:
        n = trial.setting("protocol", "n_critic")
        step = (step + n * critics * CRITIC_STEP) / (1 + n)
    else:
        step /= trial.setting("protocol", "generator_every")
    return float(epochs * step + ENCODER + DECODER)


def _ceil(x: float) -> int:
    return math.ceil(x - 1e-6)  # sums of work are rounded
