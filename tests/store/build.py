"""Small real stores: trials that ``expand`` made, records with every field a worker writes, in no time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from urc_sweep.plan import spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.trials import Trial, evaluation_inputs
from urc_sweep.store.commits import Store, _seal
from urc_sweep.store.tables import Projection, Publisher

# Six trials: two classifiers, two end-to-end, two universal ones on the second encoder.
TEXT = """
name: tiny
dataset: {name: digits}
model: {name: paper, width: 0.25}
rates: [{dim: 2, levels: 3}]
train: {epochs: 3}
stages:
  end_to_end:
    objective: {distortion: 1.0, classification: [0, 0.01]}
  universal:
    encoders: {classification: 0.01}
    objective: {distortion: 1.0, classification: [0, 0.02]}
"""
STARTED, FINISHED = "2025-01-02T03:04:05.000006+00:00", "2025-01-02T03:05:05+00:00"
MODULES = {"classifier": ("classifier",), "end_to_end": ("encoder", "decoder"), "universal": ("decoder",)}


class Study:
    """One sweep in a store, brought to any state by hand."""

    def __init__(self, root: Path, text: str = TEXT, *overrides: str) -> None:
        self.store = Store(root)
        self.store.create()
        self.sweep = spec.parse(text, overrides=overrides)
        self.name = self.sweep.name
        self.trials = expand(self.sweep)

    def fresh(self) -> Study:
        """The same study seen by a new process: nothing remembered."""
        self.store = Store(self.store.root)
        return self

    def of_stage(self, stage: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.stage == stage]

    # -- what a launch and its workers write ---------------------------------------------------------------------------

    def launch(self) -> Study:
        """Write the plan and, like a launch with nothing to do, the tables."""
        trials = [trial.to_json() for trial in self.trials]
        self.store.save_generation(self.name, {"generation": 0, "launched_at": STARTED, "trials": trials})
        return self.publish()

    def publish(self, running: tuple[str, ...] = (), stopped: bool = False, final: bool | None = None) -> Study:
        """Publish the tables; by default, like a launch, as final ones once every trial has ended."""
        projection = self.projection()
        if final is None:
            final = not {"pending", "running"} & set(projection.statuses(running, stopped).values())
        Publisher(projection).publish(running, stopped, projection.source() if final else "")
        return self

    def projection(self) -> Projection:
        return Projection(self.fresh().store, self.name)

    def train(self, *trials: Trial, sweep: str | None = None) -> Study:
        for trial in trials:
            self.store.commit(trial.id, self.training(trial, sweep))
        return self

    def finish(self, *trials: Trial, sweep: str | None = None) -> Study:
        """Train and evaluate trials, by default all."""
        for trial in trials or self.trials:
            self.train(trial, sweep=sweep)
            self.store.commit(trial.evaluation_id, self.evaluation(trial))
        return self

    def fail(
        self, trial: Trial, status: str = "failed", attempt: int = 1, final: bool = True, epochs: int = 0
    ) -> Study:
        body = {"kind": "failure", "trial_id": trial.id, "trial": trial.to_json(), "status": status, "final": final}
        body |= self.facts(attempt) | {"curve": curve(trial, epochs), "trace": "Traceback ..."}
        body |= {"error_type": "FloatingPointError", "error_message": "loss is nan"}
        assert self.store.fail(trial.id, attempt, body)
        return self

    def facts(self, attempt: int = 1, sweep: str | None = None) -> dict[str, Any]:
        return {
            "sweep": sweep or self.name,
            "attempt": attempt,
            "started_at": STARTED,
            "finished_at": FINISHED,
            "wall_s": 59.5,
            "pack_lanes": 1,
            "device": "cpu",
            "host": "here",
            "code_version": "0.1.0",
            "git_sha": None,
            "torch_version": "2.11.0",
            "writer": "w",
        }

    def training(self, trial: Trial, sweep: str | None = None) -> dict[str, Any]:
        used = {}
        for role, need in trial.needs.items():
            used[role] = self.store.committed(need)["artifacts"][role]
        return self.facts(sweep=sweep) | {
            "kind": "training",
            "id": trial.id,
            "trial": trial.to_json(),
            "artifacts": {role: self.store.put(tensors(trial, role), ".safetensors") for role in MODULES[trial.stage]},
            "used": used,
            "data_sha256": trial.config["dataset"]["sha256"],
            "curve": curve(trial, trial.config["train"]["epochs"]),
        }

    def evaluation(self, trial: Trial) -> dict[str, Any]:
        record = {"kind": "evaluation", "id": trial.evaluation_id, "trial_id": trial.id, "evaluated_at": FINISHED}
        record["inputs"] = evaluation_inputs(trial)
        record["metrics"] = {split: metrics(trial, split) for split in ("test", "validation")}
        if trial.stage != "classifier":
            record["samples_sha256"] = self.store.put(b"PNG of " + trial.id.encode(), ".png")
            record["originals_sha256"] = self.store.put(b"PNG of originals", ".png")
        return record


def tensors(trial: Trial, role: str) -> bytes:
    return safetensors.numpy.save({"weight": np.full(4, int(trial.id[:6], 16), dtype=np.int64), role: np.ones(2)})


def curve(trial: Trial, epochs: int) -> list[list[Any]]:
    """Epoch, split, metric, value, wall_s; values tell trials apart."""
    start = int(trial.id[:4], 16) / 2**16
    return [[e, "train", metric, start / e, e / 2] for e in range(1, epochs + 1) for metric in ("distortion", "loss")]


def metrics(trial: Trial, split: str) -> dict[str, float | None]:
    """A value for the table's own columns, one for the map, and one that could not be computed."""
    base = int(trial.id[4:8], 16) / 2**16 + (split == "validation")
    judged = {"cross_entropy": base + 1, "accuracy": base + 2}
    own = {"mse": base, "psnr_db": base + 3, "mse_kmeans": base + 4, "latent_accuracy": None}
    return judged if trial.stage == "classifier" else judged | own


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a record as a forger would: content changed, checksum right."""
    record = json.loads(path.read_bytes())["record"]
    change(record)
    path.write_bytes(_seal(record))


def flip(path: Path, bit: int | None = None) -> None:
    """Flip one bit of a file, by default in its middle."""
    data = bytearray(path.read_bytes())
    bit = len(data) * 4 if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def in_processes(code: str, count: int, *arguments: str) -> list[Any]:
    """Run ``code`` in processes that start ``work(number)`` at one moment and stay until all have answered.

    ``sys.argv[1:]`` are the arguments; what ``work`` returns is JSON.
    """
    harness = "import json, sys\n{}\nprint(flush=True), input()\n" + (
        "print(json.dumps(work(int(sys.argv[-1]))), flush=True), input()"
    )
    command = [sys.executable, "-c", harness.format(code), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(number)], **pipes) for number in range(count)]
    try:
        for process in processes:
            process.stdout.readline()
        for process in processes:
            print(file=process.stdin, flush=True)
        answers = [json.loads(process.stdout.readline()) for process in processes]
        for process in processes:
            process.communicate("\n")
        return answers
    finally:
        for process in processes:
            process.kill()
            process.wait()
