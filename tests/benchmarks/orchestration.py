"""What a sweep costs beside its training: through Ray and without, and how long a launch takes to its first step.

Everything is real (command line, schedule, Tune, commits with their syncs, tables once a second, report) except that a
worker's training is nothing: each worker process finds a stand-in for ``urc_sweep.run.worker`` that commits one
training and one evaluation record for each trial. It brings no torch; what that costs shows in launch-to-first-step.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from urc_sweep.run.job import Job
    from urc_sweep.store.commits import Store

TRIALS, QUICK, LANES = 1_000, 100, 50
EMPTY = """
name: empty
dataset: {{name: digits}}
model: {{name: paper, width: 0.05}}
rates: [{{dim: 2, levels: 3}}]
train: {{epochs: 1}}
resources: {{cpus: 1, gpus: 0, lanes: {lanes}}}
stages: {{end_to_end: {{objective: {{distortion: 1.0, classification: {weights}}}}}}}
"""
STAND_IN = """
import sys, types

def execute_pack(*arguments):
    from tests.benchmarks.orchestration import empty_pack
    empty_pack(*arguments)

sys.modules["urc_sweep.run.worker"] = types.ModuleType("urc_sweep.run.worker")
sys.modules["urc_sweep.run.worker"].execute_pack = execute_pack
"""
PLAIN_TUNE = """
import os, sys, time
os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
os.environ |= {"RAY_worker_niceness": "0"}
import ray
from ray import tune

ends = []

class Clock(tune.Callback):
    def on_trial_complete(self, iteration, trials, trial, **info):
        ends.append(time.perf_counter())

def nothing(config):
    tune.report({"value": config["number"]})

count, cpus = int(sys.argv[1]), len(os.sched_getaffinity(0))
ray.init("local", num_cpus=cpus, include_dashboard=False, _temp_dir=sys.argv[2], log_to_driver=False)
tune.Tuner(
    tune.with_resources(nothing, {"cpu": 1}),
    param_space={"number": tune.grid_search(list(range(count)))},
    tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=cpus),
    run_config=tune.RunConfig(storage_path=sys.argv[2] + "/tune", verbose=0, callbacks=[Clock()]),
).fit()
print((ends[-1] - ends[0]) / (len(ends) - 1))
"""
FIRST_STEP = """
name: first
dataset: {name: digits}
model: {name: paper, width: 0.05}
rates: [{dim: 2, levels: 3}]
train: {epochs: 1}
stages:
  classifier: {network: stamped}
  end_to_end: {objective: {distortion: 1.0}}
"""
STAMPED = '''
"""The paper's classifier; the moment of its process's first optimizer step is written down."""

import os
import time
from pathlib import Path

from urc_sweep.plan.registry import component


@component("classifier", "stamped", version=1)
def stamped(image, classes):
    """The paper's."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from urc_sweep.learn.models import paper_classifier

    path = Path(os.environ["STAMP"])
    register_optimizer_step_post_hook(lambda *_: path.exists() or path.write_text(str(time.time())))
    return paper_classifier(image, classes)
'''
ROOT = Path(__file__).resolve().parents[2]


def measure(quick: bool) -> Iterator[tuple[str, str]]:
    """Yield what was measured and its value."""
    count = QUICK if quick else TRIALS
    with tempfile.TemporaryDirectory(prefix="urc-bench-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        commit_ms = local_commit(folder)
        yield "a local commit (write, fsync, link, fsync of the folder)", f"{commit_ms:.1f} ms"
        floor_ms = plain_tune(folder / "tune", count)
        yield f"plain Ray Tune with reused actors, {count:,} functions that report once", f"{floor_ms:.1f} ms per trial"
        for executor in ("ray", "inline"):
            pack_ms, wall_s = empty_sweep(folder / executor, count, 1, executor)
            beside = f", {pack_ms / floor_ms:.2f}x of plain Tune" if executor == "ray" else ""
            what = f"{count:,} empty packs of one trial, {executor}"
            yield what, f"{pack_ms:.1f} ms per pack{beside} (the whole command: {wall_s:.0f} s)"
        for executor in ("ray", "inline"):
            trial_ms, wall_s = empty_sweep(folder / f"{executor}-lanes", count, LANES, executor)
            what = f"{count:,} empty trials in packs of {LANES}, {executor}"
            beside = f"{trial_ms / commit_ms:.2f}x of a commit, each makes two"
            yield what, f"{trial_ms:.1f} ms per trial, {beside} (the whole command: {wall_s:.0f} s)"
        for executor in ("ray", "inline"):
            first_step(folder / f"warm-{executor}", executor)  # the file cache
            times = [first_step(folder / f"first-{executor}-{i}", executor) for i in range(1 if quick else 3)]
            each = ", ".join(f"{seconds:.1f}" for seconds in times)
            yield f"launch to first training step, {executor}", f"{statistics.median(times):.1f} s (median of {each})"


def local_commit(folder: Path) -> float:
    """Return milliseconds of one durable commit, the median of fifty."""
    from urc_sweep.maths.ids import digest
    from urc_sweep.store.commits import Store

    store = Store(folder / "commits")
    store.create()
    names = [digest(str(number).encode()) for number in range(50)]
    return statistics.median(timed(lambda name=name: store.commit(name, {"id": name})) for name in names) * 1e3


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def plain_tune(folder: Path, count: int) -> float:
    """Return milliseconds per trial of a function that reports once: from the first one's end to the last one's."""
    folder.mkdir()
    command = [sys.executable, "-c", PLAIN_TUNE, str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.split()[-1]) * 1e3


def empty_sweep(folder: Path, count: int, lanes: int, executor: str) -> tuple[float, float]:
    """Return milliseconds per trial, from the first one's end to the last one's, and seconds of the whole command."""
    (folder / "stand_in").mkdir(parents=True)
    (folder / "stand_in" / "sitecustomize.py").write_text(STAND_IN)
    weights = [round(1e-5 * (number + 1), 5) for number in range(count)]
    (folder / "empty.yaml").write_text(EMPTY.format(lanes=lanes, weights=weights))
    environment = os.environ | {"PYTHONPATH": f"{folder / 'stand_in'}:{ROOT}"}
    seconds = timed(lambda: launch(folder, "empty.yaml", executor, environment))
    log = (folder / "store/sweeps/empty/driver.log").read_text()
    moments = [datetime.fromisoformat(text) for text in re.findall(r"^(\S+) done end_to_end", log, re.MULTILINE)]
    if len(moments) != count:
        raise RuntimeError(f"{len(moments)} of {count} empty trials are done; see {folder}")
    # A pack's trials end together: the first pack's trials are the start, not part of what is timed.
    return (moments[-1] - moments[lanes - 1]).total_seconds() / (count - lanes) * 1e3, seconds


def first_step(folder: Path, executor: str) -> float:
    """Return seconds from starting the command to the first optimizer step in a worker."""
    folder.mkdir()
    (folder / "first.yaml").write_text(FIRST_STEP)
    (folder / "stamped.py").write_text(STAMPED)
    environment = os.environ | {"STAMP": str(folder / "stamp"), "PYTHONPATH": str(ROOT)}
    began = time.time()
    launch(folder, "first.yaml", executor, environment, "--plugin", "stamped.py")
    return float((folder / "stamp").read_text()) - began


def launch(folder: Path, name: str, executor: str, environment: dict[str, str], *more: str) -> None:
    """Run a launch to its end."""
    command = [sys.executable, "-m", "urc_sweep", "launch", name, "--store", "store", "--executor", executor, *more]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout[-1000:]} {done.stderr[-2000:]}")


# -- in the workers ----------------------------------------------------------------------------------------------------


def empty_pack(
    job: Job, trial_ids: tuple[str, ...], attempts: tuple[int, ...], emit: Callable[[dict[str, Any]], None]
) -> None:
    """Do what ``execute_pack`` does around the training: read the plan, commit twice per trial, say so."""
    from urc_sweep.plan.trials import evaluation_inputs
    from urc_sweep.run.job import now, planned
    from urc_sweep.store.commits import Store

    store = Store(job.root)
    every = planned(store, job.sweep)
    for trial_id, attempt in zip(trial_ids, attempts, strict=True):
        trial = every[trial_id]
        training = {"kind": "training", "id": trial.id, "trial": trial.to_json(), "artifacts": {}, "used": {}}
        training |= {"data_sha256": trial.config["dataset"]["sha256"], "sweep": job.sweep, "attempt": attempt}
        training |= {"curve": [[1, "train", "loss", 0.5, 0.0]], "started_at": now(), "finished_at": now()}
        commit(store, training, emit, "trained", trial.id)
        evaluation = {"kind": "evaluation", "id": trial.evaluation_id, "trial_id": trial.id, "evaluated_at": now()}
        evaluation |= {"inputs": evaluation_inputs(trial), "metrics": {"test": {"mse": 0.5}, "validation": {}}}
        commit(store, evaluation, emit, "done", trial.id)


def commit(
    store: Store, record: dict[str, Any], emit: Callable[[dict[str, Any]], None], event: str, trial_id: str
) -> None:
    store.commit(record["id"], record)
    emit({"event": event, "trial": trial_id})


if __name__ == "__main__":
    for what, value in measure(quick="--quick" in sys.argv):
        print(f"{what:75} {value}", flush=True)
