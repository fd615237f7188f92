"""One pack, start to commits, in one process. Every executor runs exactly this.

Order matters: artifacts first, then the training commit that names them (dependents may start), then samples and
the evaluation commit. Whoever commits second finds the name taken and discards: a zombie is harmless.
"""

from __future__ import annotations

import math
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from urc_sweep.errors import DataError, StoreError
from urc_sweep.learn import artifacts, data, evaluate
from urc_sweep.learn.engine import steps_on
from urc_sweep.learn.models import channel_of
from urc_sweep.learn.train import Interrupted, Lane, Outcome, Progress, out_of_memory, train_pack
from urc_sweep.maths.ids import content_id
from urc_sweep.plan import registry
from urc_sweep.plan.trials import Trial, evaluation_inputs
from urc_sweep.run.job import Job, fail, leaving, now, planned
from urc_sweep.store.commits import Record, Store

NETWORK, IMAGE = ".safetensors", ".png"
STOP_POLL_S = 1.0
PROGRESS_S = 2.0

Emit = Callable[[dict[str, Any]], None]


@dataclass
class Shift:
    """One process at work on one pack: its store, data, device, and the networks it has loaded."""

    job: Job
    trials: list[Trial]
    attempts: Mapping[str, int]
    emit: Emit
    store: Store = field(init=False)
    started_at: str = field(init=False)
    _networks: dict[tuple[str, str], tuple[Any, str]] = field(default_factory=dict)
    _said: float = field(default_factory=time.monotonic)
    _stop: bool = False
    _looked: float = 0.0

    def __post_init__(self) -> None:
        self.store = Store(self.job.root)
        self.started_at = now()
        self.device, self.device_name = artifacts.choose_device(self.job.gpus > 0)
        name = self.trials[0].config["dataset"]["name"]
        self.data = data.load(name, dict(self.job.dataset), self.job.source, str(self.device))
        planned = self.trials[0].config["dataset"]["sha256"]
        if len(planned) == len(self.data.sha256) and planned != self.data.sha256:
            raise DataError(f"data set {name}: is not here what it was when the sweep was planned; launch it again")

    def run(self) -> None:
        """Train what is not committed, evaluate what is."""
        todo = [trial for trial in self.trials if self.store.committed(trial.id) is None]
        for trial in self.trials:
            if trial not in todo:
                self.store.drop_checkpoint(trial.id)  # who committed it may have died before
        if todo:
            lead = todo[0]  # one pack key: all need the same
            frozen = [role for role in lead.needs if not role.startswith("init.")]
            loaded = {role: self.network(lead.needs[role], lead.artifact(role)) for role in frozen}
            used = {role: sha256 for role, (_, sha256) in loaded.items()}
            initial = {}
            for role in [role for role in lead.needs if role not in frozen]:
                used[role] = self.stored(lead.needs[role], lead.artifact(role))
                initial[role.removeprefix("init.")] = artifacts.from_bytes(self.store.get(used[role], NETWORK))
            if "checkpoint" in lead.config:
                initial["classifier"] = artifacts.from_bytes(self.store.get(lead.config["checkpoint"], NETWORK))
            steps = steps_on(self.device)
            outcomes = train_pack(
                todo,
                self.data,
                {role: network for role, (network, _) in loaded.items()},
                self.device,
                initial=initial,
                resume=self.checkpoints(todo),
                on_epoch=self.progress,
                on_checkpoint=self.checkpoint,
                checkpoint_seconds=self.job.checkpoint_seconds,
                should_stop=self.should_stop,
                steps=steps,
            )
            if steps.refused:
                self.emit({"event": "uncaptured", "trial": lead.id, "reason": steps.refused})
            trained = sum(outcome.status != "oom" for outcome in outcomes)
            if (fitting := steps.fitting(trained, self.job.gpus)) is not None:
                self.emit({"event": "fits", "stage": lead.stage, "lanes": fitting})
            del steps  # and the memory of its graphs
            for outcome in outcomes:
                self.commit(outcome, used, len(todo))
        for trial in self.trials:
            if self.store.committed(trial.id) is not None and self.store.committed(trial.evaluation_id) is None:
                try:
                    self.evaluate(trial)
                except OSError:
                    raise
                except Exception as error:  # a plugin's metric, a damaged artifact: this trial's own fault
                    refuse(self.store, self.job, trial, self.attempts[trial.id], error, len(self.trials), self.emit)

    # -- training ------------------------------------------------------------------------------------------------

    def network(self, trial_id: str, role: str) -> tuple[Any, str]:
        """Return one network of a committed trial, frozen, and the hash of the very bytes it was loaded from."""
        if (trial_id, role) not in self._networks:
            sha256 = self.stored(trial_id, role)
            record = self.store.committed(trial_id) or {}
            stored = self.store.get(sha256, NETWORK)  # checks the bytes against the hash
            network = artifacts.restore(Trial.from_json(record["trial"]), role, stored, self.data, self.device)
            self._networks[trial_id, role] = network, sha256
        return self._networks[trial_id, role]

    def stored(self, trial_id: str, role: str) -> str:
        """Return the hash of one network of a committed trial."""
        record = self.store.committed(trial_id)
        if record is None:
            raise StoreError(f"trial {trial_id[:12]} is not committed, but its {role} is needed")
        if record["data_sha256"] != self.data.sha256:
            raise StoreError(f"trial {trial_id[:12]} was trained on other data than is here")
        # A frozen network is its parent's artifact: the same hash, the same file.
        return str(record["artifacts"].get(role) or record["used"][role])

    def commit(self, outcome: Outcome, used: Mapping[str, str], lanes: int) -> None:
        """Publish how one lane ended: artifacts and a training commit, or a failure."""
        trial = outcome.trial
        facts = self.facts(trial, outcome, lanes)
        if outcome.status != "trained":
            final = lanes == 1 or outcome.status != "oom"  # alone it may find memory enough
            causes = {key: getattr(outcome, key) for key in ("status", "error_type", "error_message", "trace")}
            fail(self.store, trial, self.attempts[trial.id], **facts, **causes, final=final)
            self.emit({"event": outcome.status, "trial": trial.id})
            return
        stored = {
            role: self.store.put(artifacts.to_bytes(tensors), NETWORK) for role, tensors in outcome.modules.items()
        }
        record = facts | {
            "kind": "training",
            "id": trial.id,
            "trial": trial.to_json(),
            "artifacts": stored,
            "used": dict(used),
            "data_sha256": self.data.sha256,
        }
        self.store.commit(trial.id, record)
        self.store.drop_checkpoint(trial.id)
        self.emit({"event": "trained", "trial": trial.id})

    def facts(self, trial: Trial, outcome: Outcome, lanes: int) -> Record:
        """Return what every record of an attempt holds."""
        return {
            "sweep": self.job.sweep,
            "attempt": self.attempts[trial.id],
            "curve": [[e, split, metric, _finite(value), wall_s] for e, split, metric, value, wall_s in outcome.curve],
            "started_at": self.started_at,
            "finished_at": now(),
            "wall_s": outcome.wall_s,
            "pack_lanes": lanes,
            "device": self.device_name,
            "host": socket.gethostname(),
            "code_version": version("urc-sweep"),
            "git_sha": self.job.git_sha,
            "torch_version": artifacts.torch_version(),
        }

    def checkpoints(self, trials: list[Trial]) -> dict[str, Progress]:
        found = ((trial.id, self.store.load_checkpoint(trial.id)) for trial in trials)
        return {trial_id: artifacts.thaw(*checkpoint) for trial_id, checkpoint in found if checkpoint is not None}

    def checkpoint(self, trial_id: str, progress: Progress) -> None:
        self.store.save_checkpoint(trial_id, *artifacts.freeze(progress))

    def should_stop(self) -> bool:
        """Return whether the sweep, or this process, was asked to stop; looks at the store at most once a second."""
        moment = time.monotonic()
        if moment - self._looked >= STOP_POLL_S:
            self._looked = moment
            if self.store.layout.stop(self.job.sweep).exists():
                self._stop = True
        return self._stop or leaving.is_set()

    def progress(self, lane: Lane) -> None:
        if time.monotonic() - self._said >= PROGRESS_S:
            self._said = time.monotonic()
            self.emit({"event": "epoch", "trial": lane.trial.id, "epoch": lane.epoch, "seconds": lane.seconds})

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, trial: Trial) -> None:
        """Compute and commit the metrics of a committed trial, and its sample images."""
        record: Record = {"kind": "evaluation", "id": trial.evaluation_id, "trial_id": trial.id, "evaluated_at": now()}
        record["inputs"] = evaluation_inputs(trial)
        if content_id("evaluation", record["inputs"]) != trial.evaluation_id:
            raise StoreError("this worker knows other metrics than the launch planned; are its plugins the same?")
        own = (self.store.committed(trial.id) or {})["artifacts"]
        used = {role for role in trial.needs if role in ("encoder", "decoder", "critic")}
        found = {role: self.network(trial.id, role) for role in sorted({*own, *used})}
        networks = {role: network for role, (network, _) in found.items()}
        networks |= {role: self.network(need, "classifier")[0] for role, need in trial.evaluators.items()}
        code_key = " ".join(sha256 for role, (_, sha256) in found.items() if role.startswith("encoder"))
        channel = None if trial.stage == "classifier" else channel_of(trial)
        record["metrics"] = evaluate.evaluate(trial, self.data, networks, channel, code_key)
        if channel is not None and "decoder" in networks:
            originals, reconstructions = evaluate.samples(self.data, networks, channel)
            record["originals_sha256"] = self.store.put(artifacts.strip(originals), IMAGE)
            record["samples_sha256"] = self.store.put(artifacts.strip(reconstructions), IMAGE)
        self.store.commit(trial.evaluation_id, record)
        self.emit({"event": "done", "trial": trial.id})


def execute_pack(job: Job, trial_ids: tuple[str, ...], attempts: tuple[int, ...], emit: Emit) -> None:
    """Bring the trials of one pack to their commits, or record why not. Raises only what is not a trial's own fault."""
    store = Store(job.root)
    every = planned(store, job.sweep)
    trials = [every[trial_id] for trial_id in trial_ids]
    numbers = dict(zip(trial_ids, attempts, strict=True))
    try:
        registry.load_plugins(job.plugins)
        Shift(job, trials, numbers, emit).run()
    except Interrupted:
        if not leaving.is_set():  # else this process alone leaves, the sweep goes on
            emit({"event": "interrupted"})
    except (OSError, DataError) as error:  # a full disk, other data: no trial's fault; the launch stops, to be resumed
        emit({"event": "environment", "reason": f"{type(error).__name__}: {error}"})
    except Exception as error:  # what one pack cannot do must not stop the others
        for trial in trials:
            if store.committed(trial.id) is None:
                refuse(store, job, trial, numbers[trial.id], error, len(trials), emit)


def refuse(store: Store, job: Job, trial: Trial, attempt: int, error: Exception, lanes: int, emit: Emit) -> None:
    """Record that a trial cannot be trained, or not evaluated, and why."""
    cause: Record = {"error_type": type(error).__name__, "error_message": str(error)}
    cause["trace"] = "".join(traceback.format_exception(error))
    if out_of_memory(error):
        cause |= {"status": "oom", "final": lanes == 1}  # alone it may find memory enough
    fail(store, trial, attempt, sweep=job.sweep, host=socket.gethostname(), **cause)
    emit({"event": cause.get("status", "failed"), "trial": trial.id})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
