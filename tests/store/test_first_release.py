"""A store of the first release, committed as plain files (see ``release.py``): whoever comes later opens it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.faults.corruption import RELEASE
from tests.store.release import text_of
from urc_sweep.run.launch import Launch, Options
from urc_sweep.store import query
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import published
from urc_sweep.store.verify import verify

STATUSES = {"small": ["done"] * 4 + ["diverged", "done", "done", "diverged"], "paused": ["done"] * 2 + ["stopped"] * 4}


@pytest.fixture
def root(tmp_path):
    shutil.copytree(RELEASE, tmp_path / "store")
    return tmp_path / "store"


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def urc_sweep(*arguments) -> str:
    command = [sys.executable, "-m", "urc_sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_it_is_whole_and_every_number_is_there(root) -> None:
    assert verify(Store(root)) == ([], "12 commits, 13 artifacts, 2 sweeps")
    for name, statuses in STATUSES.items():
        rows = query.trials(Store(root), name).to_pylist()
        assert [row["status"] for row in rows] == statuses
        trained = [row for row in rows if row["status"] == "done" and row["stage"] != "classifier"]
        assert all(row["mse"] > 0 and row["encoder_sha256"] and row["val_accuracy"] > 0 for row in trained)
    done = query.sql(Store(root), "select count(*) n from unique_trials where status = 'done'")
    assert done.to_pylist() == [{"n": 6}]
    assert query.curves(Store(root)).num_rows > 50


def test_every_command_opens_it(root, tmp_path) -> None:
    told = json.loads(urc_sweep("query", "select max(epochs) n from trials", "--format", "json", "--store", root))
    assert told == [{"n": 3}]
    for command in ("trials", "frontier"):
        assert "end-to-end" in urc_sweep(command, "small", "--store", root) or command == "frontier"
    report = tmp_path / "report.html"
    urc_sweep("report", "small", "--store", root, "-o", report)
    assert report.stat().st_size > 100_000
    assert urc_sweep("verify", "--store", root) == f"{root}: ok: 12 commits, 13 artifacts, 2 sweeps\n"


def test_a_launch_trains_only_what_is_new(root, tmp_path) -> None:
    """If this fails because ids changed on purpose, old results are trained again: say so in the release's notes."""
    path, options = tmp_path / "small.yaml", Options(store=str(root), executor="inline")
    path.write_text(text_of("small"))
    if published(Store(root).layout.trials_table("small")).columns.names == query.trials(Store(root)).column_names[:-1]:
        before = contents(root)
        assert Launch(str(path), options).run() == 3
        assert contents(root) == before, "nothing to do: nothing is written"
    path.write_text(text_of("small").replace("[0, 0.01, 0.03]", "[0, 0.01, 0.02]"))
    records = contents(root / "commits")
    started = []
    launch = Launch(str(path), options, on_event=lambda event, trial: started.append((event, trial and trial.weights)))
    assert launch.run() == 0
    new = [weights["classification"] for event, weights in started if event == "started"]
    assert new == [0.02, 0.02], "an end-to-end and a universal trial"
    assert {path: data for path, data in contents(root / "commits").items() if path in records} == records
    assert verify(Store(root))[0] == []


def test_a_stopped_sweep_goes_on_from_its_checkpoints(root, tmp_path, monkeypatch) -> None:
    loaded = []
    load = Store.load_checkpoint
    monkeypatch.setattr(Store, "load_checkpoint", lambda store, i: loaded.append(load(store, i)) or loaded[-1])
    path = tmp_path / "paused.yaml"
    path.write_text(text_of("paused"))
    assert Launch(str(path), Options(store=str(root), executor="inline")).run() == 0
    assert [state["step"] for _, state in filter(None, loaded)] == [1, 1]
    assert verify(Store(root))[0] == []
