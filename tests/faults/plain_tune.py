"""The same column for plain Ray Tune, as people use it: checkpoints every epoch, ``Tuner.restore`` after kill -9.

A peer measurement: what is lost, doubled or done again there is counted, and is no problem of ours.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.card import Budget, Card

TRIALS, EPOCHS, TIMEOUT_S, ORPHANS_S = 4, 30, 120.0, 30.0

# Acknowledged: the report has returned, with a checkpoint. The numbers are a function of trial and epoch.
SWEEP = """
import json, os, sys, tempfile, time
import numpy as np
import ray
from ray import tune

root, ack, scratch, trials, epochs = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])

def train(config):
    done, weights = 0, np.zeros(1000)
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            saved = np.load(os.path.join(folder, "state.npz"))
            done, weights = int(saved["epoch"]), saved["weights"]
    for epoch in range(done + 1, epochs + 1):
        weights = np.cos(weights + config["number"] + epoch)
        time.sleep(0.1)
        with tempfile.TemporaryDirectory() as folder:
            np.savez(os.path.join(folder, "state.npz"), epoch=epoch, weights=weights)
            checkpoint = tune.Checkpoint.from_directory(folder)
            tune.report({"epoch": epoch, "loss": float(weights.sum())}, checkpoint=checkpoint)
        with open(ack, "a") as file:
            file.write(json.dumps([config["number"], epoch]) + "\\n")

ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=scratch, log_to_driver=False)
folder = os.path.join(root, "plain")
if tune.Tuner.can_restore(folder):
    tuner = tune.Tuner.restore(folder, train)
else:
    tuner = tune.Tuner(
        train,
        param_space={"number": tune.grid_search(list(range(trials)))},
        run_config=tune.RunConfig(name="plain", storage_path=root, verbose=0),
    )
tuner.fit()
"""


def left_behind(scratch: str) -> list[int]:
    """Return the processes of the cluster in this folder that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if scratch.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def clear(scratch: str, card: Card) -> None:
    """Give a killed driver's cluster its time to go, count who stays, and end those."""
    deadline = time.monotonic() + ORPHANS_S
    while left_behind(scratch) and time.monotonic() < deadline:
        time.sleep(0.5)
    orphans = left_behind(scratch)
    card.orphans += len(orphans)
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)


def acknowledged(ack: Path) -> Counter[tuple[int, int]]:
    """Return how often each (trial, epoch) was acknowledged."""
    return Counter(tuple(json.loads(line)) for line in ack.read_text().splitlines()) if ack.exists() else Counter()


def recorded(root: Path) -> Counter[tuple[int, int]]:
    """Return how often each (trial, epoch) is in Tune's own results, read as its users do."""
    lines = [line for path in root.glob("plain/*/result.json") for line in path.read_text().splitlines()]
    results = [json.loads(line) for line in lines if line.endswith("}")]
    return Counter((result["config"]["number"], result["epoch"]) for result in results)


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Kill one sweep's driver as often as the budget says, restore it each time, then let it end."""
    folder.mkdir(parents=True, exist_ok=True)
    root, ack, rng = folder / "tune", folder / "acknowledged", random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tune-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        command = [sys.executable, "-c", SWEEP, str(root), str(ack), scratch, str(TRIALS), str(EPOCHS)]
        for _ in budget.points():
            before, wait = acknowledged(ack).total(), rng.uniform(0.2, 3.0)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + TIMEOUT_S
            while acknowledged(ack).total() == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(wait)
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            card.injected += 1
            clear(scratch, card)
        try:
            subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            card.problems.append(f"the restored sweep hangs for {TIMEOUT_S:g} s")
        clear(scratch, card)
    said, found = acknowledged(ack), recorded(root)
    card.acknowledged = len(said)
    card.lost = len(said.keys() - found.keys())
    card.doubled = sum(count - 1 for count in found.values())
    card.redone = sum(count - 1 for count in said.values())
    card.runs = 1
    card.identical = int(found == Counter((t, e) for t in range(TRIALS) for e in range(1, EPOCHS + 1)))
