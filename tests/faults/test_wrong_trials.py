"""Trials that go wrong: out of memory, NaN, exceptions. The worst run of a sweep never stops the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import small_sweep
from tests.run.test_launch import files, results, run
from urc_sweep.run.launch import Launch, Options
from urc_sweep.store.commits import Store
from urc_sweep.store.verify import verify

pytestmark = pytest.mark.campaign  # minutes of real sweeps

HUNGRY = '''
"""Networks that hold much memory and do nothing with it."""

import torch

from urc_sweep.learn.models import Paper
from urc_sweep.plan.registry import component


@component("model", "hungry", version=1)
class Hungry(Paper):
    """The paper's networks with 2 GB of ballast at two dimensions and 40 GB at three."""

    def decoder(self):
        network = super().decoder()
        network.register_buffer("ballast", torch.empty(500_000_000 if self.dim == 2 else 10**10), persistent=False)
        return network
'''
# Everything is imported first, so that the limit is what training may take, wherever it runs.
LIMITED = """
import resource, sys
import torch
from pathlib import Path
from urc_sweep.learn import artifacts, data, evaluate, train
from urc_sweep.run import worker
from urc_sweep.run.launch import Launch, Options

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 6_000 * 2**20,) * 2)
sys.exit(Launch(sys.argv[1], Options(sys.argv[2], executor="inline", plugins=(sys.argv[3],))).run())
"""


def launch(path: str, root: Path, plugin: Path, code: int = 0) -> None:
    """In a process of its own: a plugin stays in the registry of the process that loads it."""
    run("launch", path, "--store", str(root), "--executor", "inline", "--plugin", str(plugin), check=code)


def test_out_of_memory_splits_the_pack_and_alone_ends_as_oom(tmp_path, sweep_file) -> None:
    """A real limit: four lanes of 2 GB do not fit, one does; 40 GB never do."""
    plugin = tmp_path / "hungry.py"
    plugin.write_text(HUNGRY)
    text = small_sweep(epochs=1, weights="[0, 0.003, 0.01, 0.03]", lanes=4).split("  universal:")[0]
    text = text.replace("name: paper", "name: hungry")
    text = text.replace("[{dim: 2, levels: 3}]", "[{dim: 2, levels: 3}, {dim: 3, levels: 2}]")
    path, root = sweep_file(text), tmp_path / "store"
    words = [sys.executable, "-c", LIMITED, path, str(root), str(plugin)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 3, ended.stderr
    frame = pd.read_parquet(root / "trials")
    states = frame.groupby(["stage", "dim"], dropna=False)["status"].agg(set).to_dict()
    assert states["end_to_end", 2] == {"done"}
    assert states["end_to_end", 3] == {"oom"}
    fitted = frame[(frame["stage"] == "end_to_end") & (frame["dim"] == 2)]
    assert (fitted["pack_lanes"] == 1).all()
    assert (fitted["attempt"] == 2).all(), "once in the pack, once alone"
    store = Store(root)
    lost = frame.loc[frame["status"] == "oom", "trial_id"]
    assert [[f["final"] for f in store.failures(trial)] for trial in lost] == [[False, True]] * 4
    assert verify(store)[0] == []
    unlimited = tmp_path / "unlimited"
    only_two = sweep_file(text.replace(", {dim: 3, levels: 2}", ""), name="two.yaml")
    launch(only_two, unlimited, plugin)
    assert results(unlimited).items() <= results(root).items(), "the same bits as with memory enough"


EXPLOSIVE = '''
"""A term that ends in NaN, in an exception, or not at all, by its weight."""

import os

import torch

from urc_sweep.learn.objectives import Term
from urc_sweep.plan.registry import component


@component("term", "explosive", version=1, symbol="lambda_x")
class Explosive(Term):
    """0 for a while."""

    def __init__(self, networks, label=""):
        super().__init__(networks, label)
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        value = batch.x_hat.mean() * 0
        if torch.is_grad_enabled() and self.calls > 20 and os.environ.get("EXPLODE") == "nan":
            value = value * float("nan")
        if torch.is_grad_enabled() and self.calls > 20 and os.environ.get("EXPLODE") == "error":
            raise ArithmeticError("the <b>twentieth</b> step")
        return value
'''


@pytest.mark.parametrize(("how", "status"), [("nan", "diverged"), ("error", "failed")])
def test_lanes_go_wrong_and_their_mates_have_the_same_bits(how, status, tmp_path, sweep_file, monkeypatch) -> None:
    """At weight 0 the term is only read, so that two lanes of four explode."""
    plugin = tmp_path / "explosive.py"
    plugin.write_text(EXPLOSIVE)
    text = small_sweep(epochs=3, lanes=4).split("  universal:")[0]
    text = text.replace("classification: [0, 0.01]", "classification: [0, 0.01], explosive: [0, 1.0e-9]")
    path = sweep_file(text)

    launch(path, tmp_path / "good", plugin)
    monkeypatch.setenv("EXPLODE", how)
    launch(path, tmp_path / "bad", plugin, code=3)
    frame = pd.read_parquet(tmp_path / "bad" / "trials").query("stage == 'end_to_end'")
    weights = frame["weights"].map(lambda pairs: dict(pairs)["explosive"])
    assert set(frame.loc[weights > 0, "status"]) == {status}
    assert set(frame.loc[weights == 0, "status"]) == {"done"}
    assert frame.loc[weights > 0, "mse"].isna().all(), "no metric of a trial that is not done"
    good, bad = results(tmp_path / "good"), results(tmp_path / "bad")
    assert bad.items() <= good.items()
    assert len(bad) == len(good) - 4, "two trials, each trained and evaluated"
    assert verify(Store(tmp_path / "bad"))[0] == []
    lost = frame.loc[weights > 0, "trial_id"].iloc[0]
    shown = run("show", lost[:12], "--store", str(tmp_path / "bad")).stdout
    assert status in shown
    if how == "error":
        assert "in __call__" in shown, "the traceback"
        assert "ArithmeticError: the <b>twentieth</b> step" in shown
        page = tmp_path / "page.html"
        run("report", "--store", str(tmp_path / "bad"), "-o", str(page))
        told = page.read_text()
        assert "in __call__" in told
        assert "ArithmeticError: the &lt;b&gt;twentieth&lt;/b&gt; step" in told
    # Opened again and without its cause it trains.
    monkeypatch.delenv("EXPLODE")
    assert "reopened 2 trials" in run("retry", "--store", str(tmp_path / "bad")).stdout
    launch(path, tmp_path / "bad", plugin)
    assert results(tmp_path / "bad") == good


def test_a_budget_of_trials_ends_each_launch_and_the_next_one_goes_on(tmp_path, sweep_file) -> None:
    path, root = sweep_file(small_sweep() + "budget: {trials: 4}\n"), tmp_path / "store"
    options = Options(str(root), executor="inline")
    first = Launch(path, options)
    assert first.run() == 130
    assert first.stopped == "the budget of 4 trials is used up"
    counts = pd.read_parquet(root / "trials")["status"].value_counts().to_dict()
    assert counts == {"done": 4, "stopped": 2}
    assert verify(Store(root))[0] == []
    before = results(root)
    assert Launch(path, options).run() == 0
    assert before.items() <= results(root).items()
    assert set(pd.read_parquet(root / "trials")["status"]) == {"done"}


def test_a_budget_of_hours_checkpoints_and_the_next_launch_goes_on(tmp_path, sweep_file) -> None:
    root, options = tmp_path / "store", Options(str(tmp_path / "store"), executor="inline")
    short = sweep_file(small_sweep(epochs=16) + "budget: {hours: 0.0005}\n")  # 1.8 s
    launch = Launch(short, options)
    assert launch.run() == 130
    assert launch.stopped == "the budget of 0.0005 hours is used up"
    done = (pd.read_parquet(root / "trials")["status"] == "done").sum()
    assert done < 6
    full = sweep_file(small_sweep(epochs=16), name="full.yaml")
    assert Launch(full, options).run() == 0
    straight = Options(str(tmp_path / "straight"), executor="inline")
    assert Launch(full, straight).run() == 0
    assert results(root) == results(tmp_path / "straight")


def test_reproduce_finds_the_same_bits_and_says_so_if_not(tmp_path, sweep_file) -> None:
    path, root = sweep_file(), tmp_path / "store"
    assert Launch(path, Options(str(root), executor="inline")).run() == 0
    frame = pd.read_parquet(root / "trials")
    universal = frame.loc[frame["stage"] == "universal", "trial_id"].iloc[0]
    before = files(root)
    answer = run("reproduce", universal[:12], "--store", str(root)).stdout
    assert "reproduced: the same bits: networks, metrics, curve" in answer
    assert files(root) == before, "nothing in the store changes"
    store = Store(root)
    record = store.committed(universal) | {"artifacts": store.committed(frame["trial_id"].iloc[2])["artifacts"]}
    store.layout.commit(universal).unlink()
    store.commit(universal, record)
    answer = run("reproduce", universal[:12], "--store", str(root), check=1)
    assert f"{universal[:12]}: NOT reproduced: networks differ" in answer.stdout
    forged = record | {"torch_version": "1.0"}
    store.layout.commit(universal).unlink()
    store.commit(universal, forged)
    answer = run("reproduce", universal[:12], "--store", str(root))
    assert "instead of 1.0; largest relative difference 0" in answer.stdout
    assert "names no trials" in run("reproduce", "ffffffffffff", "--store", str(root), check=2).stderr
