"""``store gc`` removes what nothing references, and only that."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from tests.faults.corruption import RELEASE
from tests.store.build import TEXT, Study, flip
from urc_sweep.errors import StoreError
from urc_sweep.store.commits import Store
from urc_sweep.store.gc import collect
from urc_sweep.store.lease import Lease
from urc_sweep.store.verify import verify

DAY = 24 * 3600


@pytest.fixture
def study(tmp_path):
    study = Study(tmp_path / "store")
    return study.finish(*study.trials[:5]).fail(study.trials[5], "diverged", epochs=2).launch()


def files(study):
    return {path for path in study.store.root.rglob("*") if path.is_file()}


def age(path, seconds=2 * DAY):
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def written(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left over")
    return path


def litter(study):
    """One of everything that nothing references: name, and the files."""
    store, trials = study.store, study.trials
    store.save_checkpoint(trials[0].id, b"of a committed trial", {"epoch": 1})
    store.save_checkpoint("ab" * 32, b"of a trial that no sweep plans", {"epoch": 1})
    orphan = store.layout.artifact(store.put(b"of a lost race", ".safetensors"), ".safetensors")
    return [
        orphan,
        written(store.root / "tmp" / "0123"),
        *store.layout.checkpoint(trials[0].id).iterdir(),
        *store.layout.checkpoint("ab" * 32).iterdir(),
        written(store.root / "trials" / "sweep=gone" / "trials.parquet"),
        written(store.root / "curves" / "sweep=gone" / "part-00000.parquet"),
    ]


def test_nothing_of_a_whole_store_is_garbage(study):
    study.store.save_checkpoint(study.trials[5].id, b"of a trial that waits for a retry", {"epoch": 1})
    before = files(study)
    assert collect(study.fresh().store, 0) == []
    assert files(study) == before


def test_all_litter_goes_and_nothing_else(study):
    before, left = files(study), litter(study)
    sizes = {path: path.stat().st_size for path in left}
    assert set(left) == files(study) - before
    assert collect(study.fresh().store, 0, dry_run=True)
    assert set(left) <= files(study)
    assert dict(collect(study.fresh().store, 0)) == sizes
    assert files(study) == before
    assert not (study.store.root / "trials" / "sweep=gone").exists()
    assert verify(study.fresh().store)[0] == []
    assert collect(study.store, 0) == []


@pytest.mark.parametrize("seed", range(10))
def test_only_what_is_old_enough_goes(study, seed):
    """Any part of the litter may be young: a late worker has written it and not named it yet."""
    chance, left = random.Random(seed), litter(study)
    old = {age(path) for path in left if chance.random() < 0.5}
    assert {path for path, _ in collect(study.fresh().store, 24)} == old
    assert files(study) >= set(left) - old
    assert not old & files(study)


@pytest.mark.parametrize("seed", range(10))
def test_what_a_random_plan_commits_and_failures_name_stays(tmp_path, seed):
    chance = random.Random(seed)
    study = Study(tmp_path / "store")
    done = study.trials[: chance.randrange(6)]
    study.finish(*done) if done else None
    if len(done) < 6 and chance.random() < 0.5:
        study.fail(study.trials[len(done)], "failed")
    for trial in study.trials[len(done) :]:
        if chance.random() < 0.5:
            study.store.save_checkpoint(trial.id, b"in training", {"epoch": 1})
    study.launch().publish(stopped=True)
    whole, left = files(study), litter(study) if done else []
    collect(study.fresh().store, 0)
    assert files(study) == whole - set(left)
    assert verify(study.fresh().store)[0] == []


def test_an_artifact_that_only_a_plan_names_stays(study):
    """The weights of a classifier that a sweep brings along are there before anything is committed."""
    text = TEXT.replace("name: tiny", "name: given", 1)
    study.store.put(b"weights", ".safetensors")
    given = Study(study.store.root, text)
    plan = [trial.to_json() for trial in given.trials]
    sha256 = given.store.put(b"weights", ".safetensors")
    plan[0]["config"] = dict(plan[0]["config"], checkpoint=sha256)
    given.store.save_generation("given", {"generation": 0, "launched_at": "", "trials": plan})
    assert collect(given.fresh().store, 0) == []


def test_bytes_that_are_put_again_are_young_again(study):
    path = study.store.layout.artifact(study.store.put(b"the same weights", ".safetensors"), ".safetensors")
    age(path)
    study.store.put(b"the same weights", ".safetensors")
    assert collect(study.fresh().store, 24) == []
    age(path)
    assert [found for found, _ in collect(study.fresh().store, 24)] == [path]


@pytest.mark.parametrize("kind", ["commit", "failure", "plan", "stray"])
def test_with_a_damaged_record_nothing_is_removed(study, kind):
    """Nobody knows what it references."""
    litter(study)
    layout = study.store.layout
    path = {
        "commit": layout.commit(study.trials[0].id),
        "failure": layout.failure(study.trials[5].id, 1),
        "plan": layout.generation(study.name, 0),
        "stray": written(layout.commits / "ab" / "commit.json.bak") if kind == "stray" else None,
    }[kind]
    if kind != "stray":
        flip(path)
    before = files(study)
    with pytest.raises(StoreError, match=str(path)):
        collect(study.fresh().store, 0)
    assert files(study) == before


def test_while_a_launch_runs_it_refuses(study):
    litter(study)
    with Lease(study.store, "tiny"):
        before = files(study)
        with pytest.raises(StoreError, match="is in use by sweep 'tiny'"):
            collect(study.fresh().store, 0)
        assert files(study) == before


def test_the_command_says_what_it_would_do_and_does_it(tmp_path):
    root = tmp_path / "store"
    shutil.copytree(RELEASE, root)
    store = Store(root)
    orphan = store.layout.artifact(store.put(b"a lost race", ".png"), ".png")
    age(orphan)
    young = store.layout.artifact(store.put(b"another", ".png"), ".png")
    command = [sys.executable, "-m", "urc_sweep", "store", "gc", "--store", str(root)]
    said = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    assert said.stdout == f"{orphan}\nwould remove 1 files, 11 bytes\n"
    assert orphan.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("removed 1 files, 11 bytes\n", "")
    assert (orphan.exists(), young.exists(), list(root.glob("lease*"))) == (False, True, [])
    assert verify(Store(root))[0] == []
