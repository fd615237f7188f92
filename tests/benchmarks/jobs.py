"""A whole small study from the prompt to the last number: naive script, Ray Tune with a process per trial, ours.

Every contender trains the same six end-to-end trials on digits. The first two do nothing else; ours trains two
classifiers before, reads every metric on two splits, publishes tables and writes the report.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

EPOCHS, TRIALS, STEPS_PER_EPOCH = 6, 6, 17
SWEEP = f"""
name: job
dataset: {{name: digits}}
rates: [{{dim: 3, levels: 3}}]
seeds: [0, 1, 2, 3, 4, 5]
train: {{epochs: {EPOCHS}}}
stages:
  end_to_end: {{objective: {{distortion: 1.0, perception: 0.01}}}}
"""


def train_one() -> None:
    """Train one trial with the naive loop."""
    import torch

    from tests.benchmarks.contender import OBJECTIVES, naive

    torch.manual_seed(0)
    steps = naive(OBJECTIVES["RDP"], "end_to_end", torch.device("cpu"))
    for _ in range(EPOCHS * STEPS_PER_EPOCH):
        next(steps)


def script() -> None:
    for _ in range(TRIALS):
        train_one()


def tune() -> None:
    import ray
    from ray import tune as ray_tune

    def trainable(config: dict) -> None:
        train_one()
        ray_tune.report({"done": 1})

    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        ray.init(
            address="local", include_dashboard=False, _temp_dir=scratch, log_to_driver=False, logging_level="error"
        )
        ray_tune.Tuner(
            ray_tune.with_resources(trainable, {"cpu": 1}),
            tune_config=ray_tune.TuneConfig(num_samples=TRIALS),
            run_config=ray_tune.RunConfig(storage_path=os.path.join(scratch, "tune"), verbose=0),
        ).fit()
        ray.shutdown()


def measure(quick: bool) -> Iterator[tuple[str, str]]:
    """Yield the wall-clock seconds of each contender, and how many times as fast as the script ours is."""
    here, found = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.jobs"], {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.yaml").write_text(SWEEP)
        launch = [sys.executable, "-m", "urc_sweep", "launch", f"{folder}/job.yaml", "-q", "--store"]
        commands = {
            "naive script": [*here, "script"],
            "Ray Tune, a process a trial": [*here, "tune"],
            "urc-sweep launch, fp32": [*launch, f"{folder}/fp32"],
            "urc-sweep launch, fp32, one worker": [*launch, f"{folder}/one", "--max-concurrent", "1"],
            "urc-sweep launch, bf16": [*launch, f"{folder}/bf16", "--set", "train.precision=bf16"],
        }
        # Once unmeasured: files are warm for whoever comes first.
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", "import ray.tune, tests.benchmarks.contender"], check=True
        )
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            found[name] = time.perf_counter() - began
            ratio = found["naive script"] / found[name]
            yield f"whole job of {TRIALS} RDP trials: {name}", f"{found[name]:.1f} s, {ratio:.2f}x"


if __name__ == "__main__":
    {"script": script, "tune": tune}[sys.argv[1]]()
