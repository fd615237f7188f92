"""Between the schedule and whoever executes it. Three methods are the whole contract of an executor:

``suggest`` hands out the next pack, ``on_result`` and ``on_complete`` say that a worker reported or returned. What
really happened is read from the store: dependents are released by commits, never by messages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from urc_sweep.errors import StoreError
from urc_sweep.plan.spec import Budget
from urc_sweep.plan.trials import Trial
from urc_sweep.run.job import fail
from urc_sweep.run.schedule import Pack, Schedule
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import Projection

FINISHED = "FINISHED"


class Conductor:
    """Runs one launch: owns the schedule, listens to workers, knows when to stop."""

    def __init__(
        self,
        projection: Projection,
        schedule: Schedule,
        on_event: Callable[[str, Trial | None], None],
        budget: Budget | None = None,
    ) -> None:
        self.projection, self.schedule, self.on_event = projection, schedule, on_event
        self.store: Store = projection.store
        self.budget = budget or Budget()
        self.began = time.monotonic()
        self.packs: dict[str, Pack] = {}
        self.marks: dict[str, object] = {}  # where the trials that run were when they were handed out
        self.epochs: dict[str, tuple[int, float]] = {}
        self.stopping: str | None = None
        self.lock = threading.RLock()
        self.changes = 0  # raised under the lock: who sees that and then takes the lock sees the whole change
        self.error: Exception | None = None

    def suggest(self, handle: str) -> dict[str, Any] | str | None:
        """Return the next pack's config, ``FINISHED``, or ``None`` while everything left waits for live packs."""
        with self.lock:
            hours, most = self.budget.hours, self.budget.trials
            left = None if most is None else max(0, most - self.schedule.handed_out)
            if hours is not None and time.monotonic() - self.began > hours * 3600:
                self.stop(f"the budget of {hours:g} hours is used up")
            if self.stopping or self.schedule.settled:
                return None if self.schedule.live else FINISHED
            if left == 0 and not self.schedule.live:  # until then those handed out go on to their end
                self.stop(f"the budget of {most} trials is used up")
                return FINISHED
            pack = None if left == 0 else self.schedule.dispatch(left)
            if pack is None:
                return None
            self.packs[handle] = pack
            self.marks |= {trial_id: self.store.checkpoint_mark(trial_id) for trial_id in pack.trials}
            self.changes += 1
            for trial_id in pack.trials:
                self.on_event("started", self.schedule.trials[trial_id])
            stage = self.schedule.trials[pack.trials[0]].stage
            return {"trials": list(pack.trials), "attempts": list(pack.attempts), "stage": stage}

    def on_result(self, handle: str, result: dict[str, Any]) -> None:
        """Note a worker's message."""
        with self.lock:
            if result.get("event") == "environment":
                self.stop(str(result["reason"]))
            elif result.get("event") == "interrupted":  # the worker saw the stop file before this process did
                self.stop("asked to by `urc-sweep stop`")
            elif result.get("event") == "epoch":
                self.epochs[result["trial"]] = (int(result["epoch"]), float(result["seconds"]))
            elif result.get("event") == "uncaptured":
                trial = self.schedule.trials[result["trial"]]
                self.on_event(f"one kernel at a time, no graph ({result['reason']})", trial)
            elif result.get("event") == "fits":
                self.schedule.fits(str(result["stage"]), int(result["lanes"]))
            elif handle in self.packs:
                self._read(self.packs[handle], result.get("trial"))

    def on_complete(self, handle: str, crashed: bool) -> None:
        """Note that a worker returned, or died."""
        with self.lock:
            pack = self.packs.pop(handle, None)
            if pack is None:
                return
            self._read(pack)
            marks = {trial_id: self.marks.pop(trial_id) for trial_id in pack.trials}
            further = {t for t, mark in marks.items() if mark != self.store.checkpoint_mark(t)}
            for trial_id in self.schedule.end(pack, further):
                if not self.stopping:  # else interrupted, not lost: it waits for the next launch
                    self._give_up(self.schedule.trials[trial_id])
            if crashed:
                self.on_event("worker died", self.schedule.trials[pack.trials[0]])

    def stop(self, reason: str) -> None:
        """Hand out nothing more; workers checkpoint and leave once they see the stop file."""
        with self.lock:
            if self.stopping is None:
                self.stopping = reason
                self.on_event(f"stopping ({reason}): workers checkpoint and leave; Ctrl-C again kills", None)

    def running(self) -> list[str]:
        with self.lock:
            return [trial_id for pack in self.packs.values() for trial_id in pack.trials]

    def _give_up(self, trial: Trial) -> None:
        """Record that a trial's workers died too often."""
        attempt = self.schedule.attempted[trial.id] + self.schedule.attempts[trial.id]
        message = "its worker process died repeatedly"
        try:
            fail(self.store, trial, attempt, sweep=self.projection.name, error_type="WorkerDied", error_message=message)
        except (OSError, StoreError) as error:
            self._broken(error)
        self.projection.forget(trial.id)
        self.schedule.fail(trial.id, "failed")
        self.on_event("failed", trial)

    def _broken(self, error: Exception) -> None:
        """Stop at a store that cannot be read or written; an exception in an executor's callback would hang it."""
        self.error = self.error or (error if isinstance(error, StoreError) else StoreError(f"the store: {error}"))
        self.stop(str(error))

    def _read(self, pack: Pack, only: str | None = None) -> None:
        """Bring the schedule up to the commits and failures of one pack, or of the ``only`` trial that is named."""
        self.changes += 1
        asked = [t for t in pack.trials if only in (None, t)]
        running = [self.schedule.trials[t] for t in asked if self.schedule.state[t] == "running"]
        try:
            for trial in running:
                self.projection.forget(trial.id)
                if self.store.committed(trial.id):
                    self.schedule.train(trial.id)
                if self.projection.done(trial):
                    self.schedule.finish(trial.id)
                    self.on_event("done", trial)
                elif failure := self.projection.final_failure(trial.id):
                    self.schedule.fail(trial.id, failure["status"])
                    self.on_event(f"{failure['status']}: {failure['error_type']}: {failure['error_message']}", trial)
        except (OSError, StoreError) as error:
            self._broken(error)
