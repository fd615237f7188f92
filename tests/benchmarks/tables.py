"""What a store of 10,000 trials costs to publish, to look at and to report: seconds, and the memory at its peak.

Records are as large as real ones (30 epochs, every metric, a sample image each); they are written here without the
syncs of the commit protocol, whose cost ``orchestration`` measures. Every command is a process of its own, as people
start it: its seconds hold Python's start and the imports.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from urc_sweep.maths.ids import digest
from urc_sweep.plan import spec
from urc_sweep.plan.expand import expand
from urc_sweep.plan.trials import Trial, evaluation_inputs
from urc_sweep.store.commits import Store, _seal
from urc_sweep.store.tables import Projection, Publisher

# Per seed 4 rates x (25 end-to-end trials + 9 frozen encoders x 25 decoders) = 1,000 trials; two classifiers in all.
SWEEP = """
name: many
dataset: {{name: digits}}
model: {{name: paper, width: 0.25}}
rates: [{{dim: 2, levels: 3}}, {{dim: 4, levels: 2}}, {{dim: 3, levels: 3}}, {{dim: 3, levels: 4}}]
seeds: {seeds}
stages:
  end_to_end: {{objective: {{distortion: 1.0, classification: {weights}}}}}
  universal:
    encoders: {{classification: {frozen}}}
    objective: {{distortion: 1.0, classification: {weights}}}
"""
SEEDS, WEIGHTS = 10, [round(0.002 * n, 3) for n in range(25)]
HELD_BACK = 5
IMAGE_BYTES, ARTIFACT = 5_200, digest(b"weights")
MODULES = {"classifier": ("classifier",), "end_to_end": ("encoder", "decoder"), "universal": ("decoder",)}
SQL = "SELECT stage, dim, levels, count(*), min(mse) FROM trials GROUP BY ALL ORDER BY ALL"
CURVES_SQL = "SELECT metric, avg(value) FROM curves WHERE epoch = 30 GROUP BY ALL ORDER BY ALL"


class Ran(NamedTuple):
    """One process: how long it took, its memory at the peak, and what it printed."""

    seconds: float
    peak_mb: float
    stdout: str

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.peak_mb:.0f} MB"


def measure(quick: bool) -> Iterator[tuple[str, str]]:
    """Yield what was measured and its value."""
    with tempfile.TemporaryDirectory(prefix="urc-bench-") as name:
        folder = Path(name)
        root, count = folder / "store", prepare(folder, quick)
        size = f"{count:,} trials"
        yield f"{size}: the same Python and imports, doing nothing", str(run("schema"))

        published = run_python(f"from tests.benchmarks.tables import publish; publish({str(root)!r})")
        first, again = json.loads(published.stdout)
        yield (
            f"{size}: tables from nothing",
            f"{first:.2f} s, {published.peak_mb:.0f} MB (curves and records in memory)",
        )
        yield f"{size}: tables after one more commit (once a second)", f"{again * 1e3:.0f} ms"

        launch = ("launch", str(folder / "many.yaml"), "--store", str(root), "--executor", "inline")
        where = ("many", "--store", str(root))
        yield f"{size}: launch with tables and report to write", str(run(*launch))
        yield f"{size}: launch with nothing to do", str(run(*launch))
        yield f"{size}: status", str(run("status", *where))
        yield f"{size}: query over trials", str(run("query", SQL, *where[1:]))
        yield f"{size}: query over {120 * count:,} rows of curves", str(run("query", CURVES_SQL, *where[1:]))
        page = folder / "report.html"
        report = run("report", *where, "-o", str(page))
        yield f"{size}: report", f"{report}, a file of {page.stat().st_size / 1e6:.1f} MB"


def run(*arguments: str) -> Ran:
    """Run one command of the command line to its end."""
    return run_python("from urc_sweep.cli import main; main()", *arguments)


def run_python(code: str, *arguments: str) -> Ran:
    """Run Python code in a process of its own."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # wait4 took it from subprocess
        out.seek(0), err.seek(0)
        if process.returncode:
            raise RuntimeError(f"{code} {arguments}: {err.read().decode()[-2000:]}")
        return Ran(seconds, usage.ru_maxrss / 1024, out.read().decode())


def prepare(folder: Path, quick: bool) -> int:
    """Write the sweep file and a store of its records, without tables, and return how many trials there are."""
    text = SWEEP.format(seeds=list(range(1 if quick else SEEDS)), weights=WEIGHTS, frozen=WEIGHTS[2:20:2])
    (folder / "many.yaml").write_text(text)
    # In another process: one that is started counts the memory of who starts it as its own.
    return int(run_python(f"from tests.benchmarks.tables import fill; fill({str(folder)!r})").stdout)


def publish(root: str) -> None:
    """Print seconds to publish tables that are not there, and the median of doing it again after one more commit."""
    began = time.perf_counter()
    projection = Projection(Store(root), "many")
    publisher = Publisher(projection)
    publisher.publish()
    took = [time.perf_counter() - began]
    for trial in projection.trials[-HELD_BACK:]:
        commit(projection.store, trial)
        began = time.perf_counter()
        publisher.publish()
        took.append(time.perf_counter() - began)
    print(json.dumps([took[0], statistics.median(took[1:])]))


# -- a store as a long study leaves it ---------------------------------------------------------------------------------


def fill(folder: str) -> None:
    """Write the plan, and the records of all trials but the last few; print how many trials there are."""
    store, trials = Store(Path(folder, "store")), expand(spec.load(str(Path(folder, "many.yaml"))))
    store.create()
    plan = {"generation": 0, "sequence": 1, "launched_at": "2026-01-02T03:04:05+00:00", "command": "launch many.yaml"}
    store.save_generation("many", plan | {"trials": [trial.to_json() for trial in trials]})
    for trial in trials[:-HELD_BACK]:
        commit(store, trial)
    print(len(trials))


def commit(store: Store, trial: Trial) -> None:
    """Write what a worker would, but unsynced."""
    rng = random.Random(trial.id)
    for record in (training(trial, rng), evaluation(store, trial, rng)):
        path = store.layout.commit(record["id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_seal(record))


def training(trial: Trial, rng: random.Random) -> dict[str, Any]:
    terms = [*trial.terms, "loss"] if trial.terms else ["accuracy", "loss"]
    moments = [(e, split) for e in range(1, 31) for split in ("train", *(("validation",) if e % 3 == 0 else ()))]
    return {
        "kind": "training",
        "id": trial.id,
        "trial": trial.to_json(),
        "artifacts": dict.fromkeys(MODULES[trial.stage], ARTIFACT),
        "used": dict.fromkeys(trial.needs, ARTIFACT),
        "data_sha256": trial.config["dataset"]["sha256"],
        "sweep": "many",
        "attempt": 1,
        "curve": [[e, split, term, rng.random() / e, e / 3] for e, split in moments for term in terms],
        "started_at": "2026-01-02T03:04:05.000006+00:00",
        "finished_at": "2026-01-02T03:05:05.000006+00:00",
        "wall_s": 10 + rng.random(),
        "pack_lanes": 1,
        "device": "cpu",
        "host": "bench",
        "code_version": "0.1.0",
        "git_sha": None,
        "torch_version": "2.11.0",
    }


def evaluation(store: Store, trial: Trial, rng: random.Random) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": "evaluation", "id": trial.evaluation_id, "trial_id": trial.id}
    record |= {"evaluated_at": "2026-01-02T03:05:06+00:00", "inputs": evaluation_inputs(trial)}
    record["metrics"] = {split: metrics(trial, rng) for split in ("test", "validation")}
    if trial.stage != "classifier":
        images = {"samples_sha256": rng.randbytes(IMAGE_BYTES), "originals_sha256": bytes(IMAGE_BYTES)}
        for name, data in images.items():
            path = store.layout.artifact(record.setdefault(name, digest(data)), ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return record


def metrics(trial: Trial, rng: random.Random) -> dict[str, float]:
    """Return plausible numbers: more weight on classification costs distortion, a frozen encoder costs some of both."""
    if trial.stage == "classifier":
        return {"accuracy": 0.97, "accuracy_se": 0.008, "cross_entropy": 0.1, "cross_entropy_se": 0.03}
    weight, bits = trial.weights["classification"], trial.rate_bits
    cost = 0.002 * (trial.stage == "universal")
    mse = 0.046 * math.exp(-bits / 8) + 0.1 * weight + cost + 0.0005 * rng.random()
    entropy = 2.3 * math.exp(-bits / 3 - 40 * weight) + 50 * cost + 0.05 * rng.random()
    own = {"mse": mse, "psnr_db": -10 * math.log10(mse), "ssim": 0.5 + 5 * (0.05 - mse), "sliced_w2": 0.1 + mse}
    own |= {"cross_entropy": entropy, "accuracy": math.exp(-entropy), "heldout_cross_entropy": entropy + 0.1}
    own |= {"heldout_accuracy": math.exp(-entropy - 0.1), "mse_centroid": 0.9 * mse, "latent_accuracy": 0.6}
    own |= {"index_entropy_bits": 0.9 * bits, "latent_label_entropy": 2 * math.exp(-bits / 3), "label_entropy": 2.302}
    own |= {"mse_kmeans": 0.7 * mse, "mse_rate0": 0.06, "sliced_w2_floor": 0.04}
    return own | {f"{name}_se": 0.01 * rng.random() for name in ("mse", "ssim", "accuracy", "cross_entropy")}


if __name__ == "__main__":
    for what, value in measure(quick="--quick" in sys.argv):
        print(f"{what:75} {value}", flush=True)
