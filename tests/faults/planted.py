"""Planted bugs: is the checker any good? Each is a mutation of the product's own code, patched in at run time, and must
be found by ``verify`` or by a check from outside; without it, the same scenario must be clean."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.conftest import small_sweep
from tests.faults.card import Budget, Card
from tests.store import build
from tests.store.build import Study, curve, flip
from urc_sweep.errors import StoreError
from urc_sweep.learn import evaluate, train
from urc_sweep.maths.ids import digest
from urc_sweep.plan import trials as planned
from urc_sweep.run import job, worker
from urc_sweep.run.launch import Launch, Options, request_stop
from urc_sweep.run.schedule import Schedule
from urc_sweep.store import commits, gc, tables
from urc_sweep.store.commits import Store
from urc_sweep.store.layout import Layout
from urc_sweep.store.lease import Lease
from urc_sweep.store.verify import verify

POISON = 0.03
CHECKPOINT_AT = 5  # the step of its first epoch at which a trial is stopped


# -- scenarios: what the product does, and what is seen from outside ---------------------------------------------------


def by_hand(folder: Path) -> list[str]:
    """A store without training: second writer, reader, second launch, foreign checkpoint, rotten weights, garbage."""
    root, wrong = folder / "store", []
    study = Study(root).launch()
    study.finish(*study.trials[:5])
    job.fail(study.store, study.trials[5], 1, **study.facts() | {"curve": curve(study.trials[5], 1)})
    acknowledged = contents(root, "commits", "failures")
    if Store(root).commit(study.trials[0].id, study.training(study.trials[0]) | {"attempt": 9}):
        wrong.append("a second writer won")
    with open(study.store.layout.trials_table(study.name), "rb") as reader:
        before = Path(reader.name).read_bytes()
        study.publish(final=True)
        if reader.read() != before:
            wrong.append("a reader's file changed under it")
    with contextlib.suppress(StoreError), Lease(Store(root), "one"), Lease(Store(root), "two"):
        wrong.append("two launches at once")
    study.store.save_checkpoint(study.trials[5].id, b"tensors", {"epoch": 1})
    shutil.copytree(study.store.layout.checkpoint(study.trials[5].id), study.store.layout.checkpoint("ab" * 32))
    if study.store.load_checkpoint("ab" * 32) is not None:
        wrong.append("the checkpoint of another trial was accepted")
    study.store.drop_checkpoint("ab" * 32)
    rotten, young = (study.store.put(data, ".safetensors") for data in (b"rotten", b"young"))
    path = study.store.layout.artifact(rotten, ".safetensors")
    with contextlib.suppress(StoreError, FileNotFoundError):  # found by its bytes, or stored elsewhere: verify tells
        flip(path)
        study.store.get(rotten, ".safetensors")
        wrong.append("damaged weights were read")
    path.unlink(missing_ok=True)
    for old in root.glob("artifacts/*/*"):
        if old.stem != young:
            os.utime(old, (time.time() - 90_000,) * 2)
    gc.collect(Store(root), 24)
    if not study.store.layout.artifact(young, ".safetensors").exists():
        wrong.append("what a late worker had just written was removed")
    now = contents(root, "commits", "failures")
    return wrong + [f"{path}: lost or changed" for path, data in acknowledged.items() if now.get(path) != data]


def durable(folder: Path) -> list[str]:
    """One commit, call by call: its bytes are on the disk before its name is, and its name before it returns."""
    fsync, link = os.fsync, os.link
    synced, wrong, waiting = set(), [], set()

    def seen_fsync(descriptor: int) -> None:
        fsync(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.add(name)
        waiting.discard(name)

    def seen_link(source: Any, target: Any) -> None:
        if str(Path(source).resolve()) not in synced:
            wrong.append(f"{target}: linked before its bytes were synced")
        link(source, target)
        waiting.add(str(Path(target).resolve().parent))

    study = Study(folder / "store").launch()
    with mock.patch.object(os, "fsync", seen_fsync), mock.patch.object(os, "link", seen_link):
        study.finish()
    study.publish()
    return wrong + [f"{folder}: not synced after a link" for folder in waiting]


def cut_short(folder: Path) -> list[str]:
    """A worker dies before each of its links in turn; whatever is committed, its artifacts are there."""
    wrong, link = [], os.link
    for life in range(1, 9):
        study = Study(folder / f"cut-{life}")
        trial, left = study.trials[0], iter(range(life))
        outcome = train.Outcome(trial, "trained", {"classifier": {"w": torch.ones(2)}}, curve(trial, 3), 1.0)
        shift = object.__new__(worker.Shift)
        shift.store, shift.job, shift.attempts = study.store, job.Job("", "tiny", None), {trial.id: 1}
        shift.emit, shift.started_at, shift.device_name = lambda event: None, build.STARTED, "cpu"
        shift.data = SimpleNamespace(sha256=trial.config["dataset"]["sha256"])

        def mortal(source: Any, target: Any, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            link(source, target)

        with contextlib.suppress(KeyboardInterrupt), mock.patch.object(os, "link", mortal):
            shift.commit(outcome, {}, 1)
        wrong += verify(study.fresh().store)[0]
    return [f"verify: {line}" for line in wrong]


def sweep(folder: Path, weights: str = "[0, 0.01]", **settings: Any) -> tuple[Path, Path]:
    """Return a sweep file of real data and tiny networks, and where its store is to be."""
    text = small_sweep(epochs=2, weights=weights, **settings).replace("width: 0.05", "width: 0.02")
    text = text.replace("heldout_classifier: {", "heldout_classifier: {network: paper, ")
    (folder / "small.yaml").write_text(text)
    return folder / "small.yaml", folder / "store"


def launch(path: Path, store: Path, on_event: Callable[..., None] = lambda event, trial: None) -> int:
    return Launch(str(path), Options(store=str(store), executor="inline"), on_event=on_event).run()


def straight(folder: Path) -> list[str]:
    """A sweep from its start to its end, and once more."""
    launch(*sweep(folder))
    before = contents(folder / "store")
    launch(*sweep(folder))
    wrong = [] if contents(folder / "store") == before else ["launching a finished sweep wrote something"]
    return wrong + differences(folder / "store")


def resumed(folder: Path) -> list[str]:
    """A sweep that is stopped in the middle of its first compressor's first epoch, and launched again."""
    path, root = sweep(folder)
    check, steps = worker.Shift.should_stop, iter(range(10**9))

    def stopping(shift: worker.Shift) -> bool:
        if shift.trials[0].stage == "end_to_end" and next(steps) == CHECKPOINT_AT:
            request_stop(shift.store, "small")
            shift._looked = float("-inf")  # else it looks once a second
        return check(shift)

    with mock.patch.object(worker.Shift, "should_stop", stopping):
        assert launch(path, root) == 130
    acknowledged = contents(root, "commits")
    assert len(list(root.glob("checkpoints/*/state.json"))) == 1
    launch(path, root)
    now = contents(root, "commits")
    lost = [f"{path}: lost or changed" for path, data in acknowledged.items() if now.get(path) != data]
    return lost + differences(root)


def packed(folder: Path) -> list[str]:
    """Two lanes side by side, one of which diverges."""
    losses = train.CompressorLane.losses

    def poisoned(lane: train.CompressorLane, inputs: train.Inputs) -> dict[str, torch.Tensor]:
        factor = float("nan") if lane.trial.weights["classification"] == POISON else 1.0
        return {name: value * factor for name, value in losses(lane, inputs).items()}

    with mock.patch.object(train.CompressorLane, "losses", poisoned):
        launch(*sweep(folder, weights=f"[0.01, {POISON}]", lanes=2))
    return differences(folder / "store")


# -- checks from outside -----------------------------------------------------------------------------------------------


def contents(root: Path, *folders: str) -> dict[Path, bytes]:
    """Every file, or those of some folders, by name."""
    every = [path for name in folders or (".",) for path in (root / name).rglob("*")]
    return {path: path.read_bytes() for path in every if path.is_file()}


def numbers(root: Path) -> dict[str, Any]:
    """What must not depend on circumstances: weights by hash, curves without their clock, metrics."""
    store = Store(root)
    records = [store.committed(commit_id) or {} for commit_id in store.commit_ids()]
    return {
        record["id"]: record["metrics"]
        if record["kind"] == "evaluation"
        else (record["artifacts"], record["used"], [point[:4] for point in record["curve"]])
        for record in records
    }


@functools.cache
def undisturbed() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        assert launch(*sweep(Path(folder))) == 0
        return numbers(Path(folder) / "store")


def differences(root: Path) -> list[str]:
    """Compare all trials that the undisturbed run has, too."""
    found = numbers(root)
    plan, wanted = Store(root).generation("small")["trials"], undisturbed()
    ids = {identity for trial in plan for identity in (trial["id"], trial["evaluation_id"])} & wanted.keys()
    return [f"{i}: not what an undisturbed run has" for i in sorted(ids) if found.get(i) != wanted[i]]


# -- the bugs ----------------------------------------------------------------------------------------------------------


def instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], Any]:
    """A patch that puts ``make(original)`` in place of an attribute."""
    return lambda: mock.patch.object(owner, name, make(getattr(owner, name)))


def commit_then_artifacts(original: Any) -> Any:
    def commit(shift: worker.Shift, outcome: train.Outcome, used: Any, lanes: int) -> None:
        late: list[tuple[bytes, str]] = []
        put = shift.store.put

        def put_later(data: bytes, suffix: str) -> str:
            late.append((data, suffix))
            return digest(data)

        with mock.patch.object(shift.store, "put", put_later):
            original(shift, outcome, used, lanes)
        for data, suffix in late:
            put(data, suffix)

    return commit


def overwrite(original: Any) -> Any:
    def link(store: Store, path: Path, data: bytes) -> bool:
        store.replace(path, data)
        return True

    return link


def in_place(original: Any) -> Any:
    def replace(store: Store, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return replace


def unsynced(original: Any) -> Any:
    def write_private(store: Store, data: bytes) -> Path:
        with mock.patch.object(os, "fsync"):
            return original(store, data)

    return write_private


def under_wrong_hash(original: Any) -> Any:
    def put(store: Store, data: bytes, suffix: str) -> str:
        sha256 = digest(data + b"\n")
        store.link(store.layout.artifact(sha256, suffix), data)
        return sha256

    return put


def unchecked(original: Any) -> Any:
    return lambda store, sha256, suffix: store.layout.artifact(sha256, suffix).read_bytes()


def any_checkpoint(original: Any) -> Any:
    def load(store: Store, trial_id: str) -> Any:
        state = commits.read_record(store.layout.checkpoint(trial_id) / "state.json")
        return state and (b"", state)

    return load


def another_encoder(original: Any) -> Any:
    def stored(shift: worker.Shift, trial_id: str, role: str) -> str:
        ids = [i for i in shift.store.commit_ids() if "encoder" in shift.store.committed(i).get("artifacts", {})]
        other = next((i for i in ids if i != trial_id), trial_id)
        return original(shift, other if role == "encoder" and shift.trials[0].stage == "universal" else trial_id, role)

    return stored


def without_epoch_1(original: Any) -> Any:
    def read(lane: train.Lane, epoch: int, split: str) -> None:
        original(lane, epoch, split)
        lane.curve = [point for point in lane.curve if point[0] != 1]

    return read


def forgets(what: str) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def load(lane: train.Lane, progress: train.Progress) -> None:
            original(lane, progress)
            if what == "sums":
                lane.sums = {}
            for adam in lane.optimizers.values() if what == "optimizer" else ():
                adam.state.clear()

        return load

    return make


def fails_with_its_mate(original: Any) -> Any:
    def finish_epoch(run: Any, lane: train.Lane, epoch: int) -> None:
        original(run, lane, epoch)
        if lane.ended is None and any(mate.ended is not None for mate in run.lanes):
            lane.end("diverged", message="a lane of this pack diverged")

    return finish_epoch


def cut_by_its_mate(original: Any) -> Any:
    """Once a lane has ended, the others lose an image of every batch."""

    def step(run: Any, active: list[train.Lane], *batch: Any) -> None:
        less = [None if part is None else part[:-1] for part in batch]
        original(run, active, *(less if len(active) < len(run.lanes) else batch))

    return step


def impatient(original: Any) -> Any:
    """Nobody waits for what it needs."""

    def begin(schedule: Schedule, trials: Any, **known: Any) -> None:
        schedule._ready = lambda trial_id: schedule.state[trial_id] == "waiting"
        schedule._rank = lambda trials: [trial.id for trial in reversed(trials)]
        original(schedule, trials, **known)

    return begin


def splits_swapped(original: Any) -> Any:
    def evaluated(*arguments: Any) -> Any:
        metrics = original(*arguments)
        return {"test": metrics["validation"], "validation": metrics["test"]}

    return evaluated


def never_final(original: Any) -> Any:
    return lambda store, trial, attempt, /, **record: original(store, trial, attempt, **record | {"final": False})


def without_a_weight(original: Any) -> Any:
    def kept(value: Any, defaults: Any) -> Any:
        terms = {term: entry for term, entry in value.get("objective", {}).items() if term != "distortion"}
        return original({**value, "objective": terms}, defaults)

    return kept


def without_last_row(original: Any) -> Any:
    return lambda projection, *arguments: original(projection, *arguments)[:-1]


def stale(original: Any) -> Any:
    """Rows are computed once and then published for ever."""
    first: list[Any] = []

    def rows(projection: tables.Projection, *arguments: Any) -> Any:
        first.append(original(projection, *arguments))
        return first[0]

    return rows


def forgetful(original: Any) -> Any:
    return lambda schedule, trials, **known: original(schedule, trials, **known | {"trained": (), "done": ()})


def takes_commits(original: Any) -> Any:
    return lambda store, before: [*original(store, before), *list(store.layout.commits.rglob("*.json"))[:1]]


def blind_to_images(original: Any) -> Any:
    def references(paths: list[Path]) -> set[str]:
        images = {path.stem for path in paths[0].parents[2].glob("artifacts/*/*.png")}
        return original(paths) - images

    return references


Bug = tuple[str, Callable[[], Any], Callable[..., list[str]]]
# Where it must be found, the mutation, and the smallest scenario that shows it.
BUGS: dict[str, Bug] = {
    "bytes are not synced": ("harness", instead(Store, "write_private", unsynced), durable),
    "folders are not synced": ("harness", instead(commits, "_sync_directory", lambda _: lambda path: None), durable),
    "commit before its artifacts": ("verify", instead(worker.Shift, "commit", commit_then_artifacts), cut_short),
    "second writer overwrites": ("harness", instead(Store, "link", overwrite), by_hand),
    "tables are written in place": ("harness", instead(Store, "replace", in_place), by_hand),
    "artifact under a wrong hash": ("verify", instead(Store, "put", under_wrong_hash), by_hand),
    "weights are not checked": ("harness", instead(Store, "get", unchecked), by_hand),
    "checkpoint of another trial": ("harness", instead(Store, "load_checkpoint", any_checkpoint), by_hand),
    "curve row doubled": (
        "verify",
        instead(tables, "curve_table", lambda made: lambda trial, points: made(trial, [*points[:1], *points])),
        by_hand,
    ),
    "curve row lost": (
        "verify",
        instead(tables, "curve_table", lambda made: lambda trial, points: made(trial, points[1:])),
        by_hand,
    ),
    "publisher loses a row": ("verify", instead(tables.Projection, "rows", without_last_row), by_hand),
    "publisher shows an old status": ("verify", instead(tables.Projection, "rows", stale), by_hand),
    "failure is never final": ("verify", instead(job, "fail", never_final), by_hand),
    "id without a weight": ("verify", instead(planned, "without", without_a_weight), by_hand),
    "plan without a dependency": (
        "verify",
        instead(build, "expand", lambda made: lambda sweep: made(sweep)[1:]),
        by_hand,
    ),
    "lease ignored": ("harness", instead(Lease, "_dead", lambda _: lambda lease, holder: True), by_hand),
    "gc removes what is referenced": ("verify", instead(gc, "_references", blind_to_images), by_hand),
    "gc removes what is young": (
        "harness",
        instead(gc, "garbage", lambda made: lambda store, before: made(store, float("inf"))),
        by_hand,
    ),
    "gc removes a commit": ("harness", instead(gc, "garbage", takes_commits), by_hand),
    "ids of another store's layout": (
        "verify",
        instead(Layout, "commit", lambda _: lambda layout, i: layout.commits / i[-2:] / f"{i}.json"),
        by_hand,
    ),
    "encoder of another trial": ("verify", instead(worker.Shift, "stored", another_encoder), straight),
    "epoch dropped": ("verify", instead(train.Lane, "read", without_epoch_1), straight),
    "splits swapped": ("harness", instead(evaluate, "evaluate", splits_swapped), straight),
    "child before its parent": ("harness", instead(Schedule, "__init__", impatient), straight),
    "finished trials run again": ("harness", instead(Schedule, "__init__", forgetful), straight),
    "resume forgets the optimizer": ("harness", instead(train.Lane, "load", forgets("optimizer")), resumed),
    "resume forgets the running sums": ("harness", instead(train.Lane, "load", forgets("sums")), resumed),
    "a lane fails with its mate": ("harness", instead(train._Run, "finish_epoch", fails_with_its_mate), packed),
    "a lane is disturbed by its mate": ("harness", instead(train._Run, "step", cut_by_its_mate), packed),
}  # fmt: skip


def found_in(scenario: Callable[..., list[str]], folder: Path, bug: str = "") -> dict[str, list[str]]:
    """Run a scenario, with a bug or without, and return what each of the two checkers says."""
    folder.mkdir(parents=True)
    undisturbed()
    with BUGS[bug][1]() if bug else contextlib.nullcontext():
        try:
            lines = scenario(folder)
        except Exception as error:  # a bug that stops everything is found, too
            if not bug:
                raise
            lines = [f"{type(error).__name__}: {error}"]
    said = [line.removeprefix("verify: ") for line in lines if line.startswith("verify: ")]
    if (folder / "store").exists():
        said += verify(Store(folder / "store"))[0]
    return {"verify": said, "harness": [line for line in lines if not line.startswith("verify: ")]}


def campaign(card: Card, budget: Budget, seed: int, folder: Path) -> None:
    """Plant every bug once."""
    clean: set[Any] = set()
    for number, (name, (where, _, scenario)) in zip(budget.points(), BUGS.items(), strict=False):
        if scenario not in clean:
            clean.add(scenario)
            for line in itertools.chain(*found_in(scenario, folder / f"clean-{number}").values()):
                card.problems.append(f"{scenario.__name__} without a bug: {line}")
        card.injected += 1
        if not found_in(scenario, folder / f"bug-{number}", name)[where]:
            card.problems.append(f"{name}: not found by {where}")
