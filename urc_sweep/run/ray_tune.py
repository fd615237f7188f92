"""The executor on Ray: ONE ``Tuner.fit`` whose searcher hands out ready packs. The only module that imports Ray.

Our store is the truth and Ray only executes, so every launch starts a fresh ``Tuner``; what Tune itself writes goes
to a folder outside the store that is removed afterwards.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urc_sweep.errors import ResourceError
from urc_sweep.plan.spec import Resources
from urc_sweep.run import guard
from urc_sweep.run.conductor import FINISHED, Conductor
from urc_sweep.run.job import Job
from urc_sweep.store.lease import process

_ENVIRONMENT = {
    # 5,000 files per 1,000 trials that nobody reads: the tables are ours.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is ours: Tune's handler would end the run without a drain.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
}
_PRIVATE = {
    "RAY_worker_niceness": "0",  # Ray's 15 starves a sweep beside anything else on the machine
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # ours runs on this machine: once lost it stays lost
}

_SCRATCH = "urc-ray-"


@dataclass(frozen=True)
class Cluster:
    """What the cluster offers to packs: CPUs and GPUs node by node, since a pack lives on one."""

    nodes: tuple[tuple[float, float], ...]
    scratch: str = ""

    def slots(self, resources: Resources) -> int:
        """Return how many packs fit at once; ``ResourceError`` if no node can hold one."""
        gpus = self.gpus_of(resources)
        slots = sum(int(min(c // resources.cpus, g / gpus if gpus else c // resources.cpus)) for c, g in self.nodes)
        if slots < 1:
            have = ", ".join(f"{c:g} and {g:g}" for c, g in self.nodes)
            raise ResourceError(f"a pack needs {resources.cpus} CPUs and {gpus:g} GPUs on one node; nodes have {have}")
        return slots

    def at_once(self, needs: Iterable[Resources], limit: int | None) -> int:
        """Return how many packs run at a time, at most."""
        slots = max(map(self.slots, needs))
        return min(slots, limit or slots)

    def gpus_of(self, resources: Resources) -> float:
        """Return the GPUs of one pack: with ``auto`` one where there are any."""
        if resources.gpus == "auto":
            return 1.0 if any(gpus for _, gpus in self.nodes) else 0.0
        return float(resources.gpus)


@contextmanager
def cluster(address: str | None) -> Iterator[Cluster]:
    """Start a private local cluster, or join the one at ``address``; leave no process and no file behind."""
    wanted = _ENVIRONMENT | ({} if address else _PRIVATE)
    os.environ.update({key: value for key, value in wanted.items() if key not in os.environ})
    import ray

    # Not in a TMPDIR of somebody's own: the paths of Ray's sockets must be short.
    _clean(Path("/tmp"))
    prefix = "{}{pid}-{started}-".format(_SCRATCH, **process(os.getpid()))
    scratch = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
    # "local" is said explicitly: a plain init may attach to a cluster that somebody left running.
    cpus, os.environ[guard.MARK] = len(os.sched_getaffinity(0)), scratch
    private = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": scratch}
    watch = guard.start(scratch)
    try:
        try:
            ray.init(**({"address": address} if address else private), log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            place = address or "this machine"
            raise ResourceError(f"Ray: no cluster at {place}: {str(error).splitlines()[0]}") from None
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive), scratch)
    finally:
        ray.shutdown()
        del os.environ[guard.MARK]
        watch.communicate(b"left")


def _clean(folder: Path) -> None:
    """Remove the scratch folders of launches that were killed."""
    for path in folder.glob(f"{_SCRATCH}*-*-*"):
        pid, started = path.name.removeprefix(_SCRATCH).split("-")[:2]
        if pid.isdigit() and str(process(int(pid)).get("started")) != started and path.stat().st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)


def run(
    conductor: Conductor, job: Job, offered: Cluster, resources: Mapping[str, Resources], max_concurrent: int | None
) -> None:
    """Execute the schedule to its end on the cluster that ``cluster`` opened; ``resources`` are a pack's, by stage."""
    from ray import tune
    from ray.tune.search import Searcher
    from ray.tune.trainable import wrap_function

    class PlanSearcher(Searcher):  # type: ignore[misc]
        """Tune's view of the conductor. Without ``save`` a searcher hangs Tune; there is nothing to save."""

        def __init__(self, conductor: Conductor) -> None:
            super().__init__()
            self.conductor = conductor

        def suggest(self, trial_id: str) -> Any:
            suggestion = self.conductor.suggest(trial_id)
            return Searcher.FINISHED if suggestion == FINISHED else suggestion

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            self.conductor.on_result(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            self.conductor.on_complete(trial_id, crashed=error)

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its searcher for a restore that we never do

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError("a launch starts a fresh Tuner; the store is what it goes on from")

    def train_pack(config: dict[str, Any]) -> None:
        from urc_sweep.run.job import leaving
        from urc_sweep.run.worker import execute_pack

        execute_pack(job, tuple(config["trials"]), tuple(config["attempts"]), tune.report)
        if leaving.is_set():
            os._exit(128 + signal.SIGTERM)  # to Tune a worker that died: its trials go on in another one
        tune.report({"event": "returned"})

    class PackTrainable(wrap_function(train_pack)):  # type: ignore[misc]
        """One worker process. Tune trains in a thread of it, and Python handles signals in the main one alone."""

        def setup(self, config: dict[str, Any]) -> None:
            from urc_sweep.run.job import leaving  # the class travels by value, this does not

            signal.signal(signal.SIGTERM, lambda number, frame: leaving.set())
            super().setup(config)

    # Built once: Tune reuses a worker process only for the very same factory.
    reserve = {
        stage: tune.PlacementGroupFactory([{"CPU": need.cpus, "GPU": offered.gpus_of(need)}])
        for stage, need in resources.items()
    }
    tune.Tuner(
        tune.with_resources(PackTrainable, lambda config: reserve[config["stage"]]),
        tune_config=tune.TuneConfig(
            search_alg=PlanSearcher(conductor),
            num_samples=-1,
            max_concurrent_trials=offered.at_once(resources.values(), max_concurrent),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=job.sweep,
            storage_path=f"{offered.scratch}/tune",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    ).fit()
