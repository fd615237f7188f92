"""The schedule: a pure, replayable state machine. Invariant: a trial is handed out to one pack at a time.

A trial is ready when everything it needs is committed; there is no barrier between stages. What others wait for
longest goes first. Packs are cut at dispatch, from ready trials that share a pack key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from urc_sweep.plan.trials import Trial

MAX_ATTEMPTS = 3
FAILED = ("failed", "diverged", "oom")


@dataclass(frozen=True)
class Pack:
    """Trials to be trained side by side in one process, by id, and which attempt at them this is."""

    trials: tuple[str, ...]
    attempts: tuple[int, ...]


class Schedule:
    """Which trials are waiting, running, done, failed or skipped, and what to hand out next."""

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        trained: Iterable[str] = (),
        done: Iterable[str] = (),
        failed: Mapping[str, str] | None = None,
        attempted: Mapping[str, int] | None = None,
        lanes: Callable[[str], int] = lambda stage: 1,
    ) -> None:
        self.trials = {trial.id: trial for trial in trials}
        self.lanes = lanes
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
        self.alone: set[str] = set()
        self.live: set[Pack] = set()
        self._order = self._rank(trials)
        for trial_id, status in (failed or {}).items():
            self.fail(trial_id, status)

    def dispatch(self, most: int | None = None) -> Pack | None:
        """Hand out the most urgent pack, of at most ``most`` trials, or ``None`` if nothing is ready."""
        ready = [trial_id for trial_id in self._order if self._ready(trial_id)]
        if not ready:
            return None
        lead = self.trials[ready[0]]
        mates = [t for t in ready if self.trials[t].pack_key == lead.pack_key and t not in self.alone]
        chosen = [lead.id] if lead.id in self.alone else mates[: max(1, self.lanes(lead.stage))][:most]
        for trial_id in chosen:
            self.state[trial_id] = "running"
            self.attempts[trial_id] += 1
            self.tries[trial_id] += 1
        pack = Pack(tuple(chosen), tuple(self.attempted[t] + self.attempts[t] for t in chosen))
        self.live.add(pack)
        return pack

    def train(self, trial_id: str) -> None:
        """Note a training commit: dependents may start, the trial's own evaluation may still run."""
        self.trained.add(trial_id)

    def finish(self, trial_id: str) -> None:
        """Note an evaluation commit."""
        self.train(trial_id)
        self.state[trial_id] = "done"

    def fail(self, trial_id: str, status: str) -> None:
        """Note a final failure; whatever needs this trial is skipped, and so on down."""
        if self.state[trial_id] == "done":
            return
        self.state[trial_id] = status
        if trial_id in self.trained:
            return  # only its evaluation failed: dependents need the training
        for dependent in self.dependents[trial_id]:
            if self.state[dependent] == "waiting":
                self.fail(dependent, "skipped")

    def end(self, pack: Pack, further: Container[str] = ()) -> list[str]:
        """Take a pack back. Trials it left unfinished wait again, each alone; return those out of attempts.

        An attempt that came ``further``, to a new checkpoint, uses up none: preemption is no trial's fault.
        """
        self.live.discard(pack)
        given_up = []
        for trial_id in pack.trials:
            if self.state[trial_id] != "running":
                continue
            self.state[trial_id] = "waiting"
            self.alone.add(trial_id)  # a crash, or too little memory for the pack
            if trial_id in further:
                self.tries[trial_id] = 0
            if self.tries[trial_id] >= MAX_ATTEMPTS:
                given_up.append(trial_id)
        return given_up

    @property
    def settled(self) -> bool:
        """Whether nothing is left to hand out, now or later."""
        return not self.live and not any(self._ready(trial_id) for trial_id in self._order)

    def counts(self) -> dict[str, Counter[str]]:
        """Return how many trials of each stage are in each state; ``ready`` and ``blocked`` instead of waiting."""
        table: dict[str, Counter[str]] = {}
        for trial_id, state in self.state.items():
            if state == "waiting":
                state = "ready" if self._ready(trial_id) else "blocked"
            table.setdefault(self.trials[trial_id].stage, Counter())[state] += 1
        return table

    def _ready(self, trial_id: str) -> bool:
        return self.state[trial_id] == "waiting" and self.needs[trial_id] <= self.trained

    def _rank(self, trials: Sequence[Trial]) -> list[str]:
        """Return ids by the length of the chain that waits for them, longest first, then in plan order."""
        height: dict[str, float] = {}
        for trial in reversed(trials):  # in a plan, needed trials come before those that need them
            below = max((height[dependent] for dependent in self.dependents[trial.id]), default=0.0)
            height[trial.id] = trial.setting("train", "epochs") + below
        return sorted(self.trials, key=lambda trial_id: -height[trial_id])
