"""``verify``: what a store's files can show of its promises. Repairs nothing, names file and trial.

Numbers are the invariants of the project's reliability contract. Not covered: what nobody computes with (report,
log), and what only a running launch has (lease, stop file, ``tmp``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from urc_sweep.errors import UrcSweepError
from urc_sweep.maths.ids import content_id, digest
from urc_sweep.plan.trials import Trial, trial_id
from urc_sweep.store import query
from urc_sweep.store.commits import MAX_ARTIFACT_BYTES, Record, Store, bytes_of, read_record
from urc_sweep.store.layout import FORMAT
from urc_sweep.store.lease import holder_of, launching
from urc_sweep.store.tables import Projection, published


def verify(store: Store) -> tuple[list[str], str]:
    """Return every problem as one line, and a sentence on what was checked."""
    layout = store.layout
    problems = _lines(layout.format, _check_format(store))
    files: dict[str, list[Path]] = {}
    for kind in ("commits", "failures", "artifacts", "checkpoints"):
        files[kind], strays = layout.files(kind)
        problems += [f"{path}: does not belong there: nothing in {kind} has this name or form" for path in strays]
    trainings: dict[str, Record] = {}
    for path in files["commits"]:
        problems += _lines(path, _check_commit(store, path, trainings))
    for commit_id, record in trainings.items():
        path = layout.commit(commit_id)
        problems += _lines(path, _check_needs(store, path, record, trainings))
    for path in files["failures"]:
        problems += _lines(path, _check_failure(path))
    for path in files["artifacts"]:
        problems += _lines(path, _check_bytes(path))
    if holder_of(store) is None:  # a running launch replaces checkpoints while we look
        for folder in dict.fromkeys(path.parent for path in files["checkpoints"]):
            problems += _lines(folder, _check_checkpoint(store, folder))
    names, behind = store.sweeps(), list[str]()
    for name in names:
        problems += _lines(f"{layout.root / 'sweeps' / name}", _check_sweep(store, name, behind))
    for path in sorted([*layout.root.glob("trials/*"), *layout.root.glob("curves/*")]):
        if path.name.removeprefix("sweep=") not in names:
            problems.append(f"{path}: tables of a sweep whose plan is missing; `urc-sweep store gc` removes them")
    readable = ["".join(c if c.isprintable() else "?" for c in line) for line in problems]
    checked = f"{len(files['commits'])} commits, {len(files['artifacts'])} artifacts, {len(names)} sweeps"
    if behind:
        checked += f"; tables behind the commits until the next launch: {', '.join(behind)}"
    return list(dict.fromkeys(readable)), checked


def _lines(place: object, found: Iterable[str]) -> list[str]:
    """Return the problems that a check finds, the one that it fails on as the last."""
    lines: list[str] = []
    try:
        lines.extend(found)
    except UrcSweepError as error:
        lines.append(str(error))
    except OSError as error:
        lines.append(f"{error.filename or place}: cannot be read: {error.strerror}")
    except Exception as error:  # a stranger's record can break any assumption there is
        lines.append(f"{place}: not as it was written: {error!r:.200}")
    return lines


def _check_format(store: Store) -> Iterator[str]:
    path = store.layout.format
    known = [json.dumps({"format": n, "made_by": "urc-sweep"}).encode() for n in range(1, FORMAT + 1)]
    if path.read_bytes() not in known:
        yield f"{path}: damaged: it should name the store's format"


def _check_commit(store: Store, path: Path, trainings: dict[str, Record]) -> Iterator[str]:
    """Invariants 3, 4 and 8; adds a whole training to ``trainings``."""
    commit_id = path.stem
    record = store.committed(commit_id) or {}
    kind = record.get("kind")
    if kind == "training":
        config = record["trial"]["config"]
        yield from _check_trial(path, record["trial"], commit_id)
        named = config["dataset"]["sha256"]
        if len(named) == 64 and record["data_sha256"] != named:  # sets named by their archives have no such hash
            yield f"{path}: trial {commit_id[:12]} was trained on other data than it names"
        given = filter(None, [config.get("checkpoint")])  # a classifier's weights that the sweep brought along
        for sha256 in [*record["artifacts"].values(), *given]:
            yield from _check_artifact(store, sha256, ".safetensors", commit_id)
        epochs = Trial.from_json(record["trial"]).setting("train", "epochs")
        yield from _check_curve(path, commit_id, record["curve"], epochs)
        trainings[commit_id] = record
    elif kind == "evaluation":
        trained, inputs = record["trial_id"], record["inputs"]
        if content_id("evaluation", inputs) != commit_id or inputs["trial"] != trained:
            yield f"{path}: is not the evaluation of trial {trained[:12]} that its name says"
        if not store.layout.commit(trained).is_file():
            yield f"{path}: evaluates trial {trained[:12]}, which is not committed (invariant 8)"
        for judge in inputs["evaluators"].values():
            if not store.layout.commit(judge).is_file():
                yield f"{path}: trial {trained[:12]} was judged by {judge[:12]}, which is not committed (invariant 8)"
        for key in ("samples_sha256", "originals_sha256"):
            if record.get(key):
                yield from _check_artifact(store, record[key], ".png", trained)
    else:
        yield f"{path}: of unknown kind {kind!r:.40}"


def _check_trial(path: Path, told: Record, identity: str) -> Iterator[str]:
    if not trial_id(told["config"]) == told["id"] == identity or told["stage"] != told["config"]["stage"]:
        yield f"{path}: trial {identity[:12]} is not the hash of its own configuration"


def _check_curve(path: Path, trial: str, curve: list[list[Any]], epochs: int | None = None) -> Iterator[str]:
    found = [point[0] for point in curve if point[1] == "train" and point[2] == "loss"]
    if found != list(range(1, (len(found) if epochs is None else epochs) + 1)):
        yield f"{path}: trial {trial[:12]}: epochs of its curve are not 1 to the last (invariant 4)"
    if doubled := _doubled(tuple(point[:3]) for point in curve):
        yield f"{path}: trial {trial[:12]}: curve point {doubled} twice (invariant 3)"


def _check_artifact(store: Store, sha256: str, suffix: str, trial: str) -> Iterator[str]:
    if not store.layout.artifact(sha256, suffix).is_file():
        yield f"{store.layout.artifact(sha256, suffix)}: missing, but trial {trial[:12]} refers to it (invariant 8)"


def _check_needs(store: Store, path: Path, record: Record, trainings: dict[str, Record]) -> Iterator[str]:
    """Invariants 6 and 7: the networks a trial used are those its parents committed.

    Times are not compared: clocks jump, and differ between nodes. A hash that the parent's commit names is as good:
    nobody knew it before the parent had been trained, and no later commit can change it.
    """
    trial = Trial.from_json(record["trial"])
    for role, need in trial.needs.items():
        parent = trainings.get(need) or store.committed(need)  # or committed while we looked
        if parent is None:
            yield f"{path}: trial {trial.id[:12]} needs {need[:12]}, which is not committed (invariant 7)"
            continue
        name = trial.artifact(role)
        if record["used"].get(role) != (parent["artifacts"].get(name) or parent["used"].get(name)):
            yield f"{path}: trial {trial.id[:12]} used another {role} than {need[:12]} committed (invariant 6)"


def _check_failure(path: Path) -> Iterator[str]:
    record, trial = read_record(path) or {}, path.parent.name
    if (record["trial_id"], record["attempt"], type(record["final"])) != (trial, int(path.stem), bool):
        yield f"{path}: is not attempt {path.stem} of trial {trial[:12]}"
    yield from _check_trial(path, record["trial"], trial)
    yield from _check_curve(path, trial, record["curve"])


def _check_bytes(path: Path) -> Iterator[str]:
    if digest(bytes_of(path, MAX_ARTIFACT_BYTES)) != path.stem:
        yield f"{path}: damaged: its bytes are not those of its name"


def _check_checkpoint(store: Store, folder: Path) -> Iterator[str]:
    """A checkpoint goes with its trial's commit; one without a state is what a kill left: the trial begins anew."""
    path = folder / "state.json"
    state = None if store.layout.commit(folder.name).is_file() else read_record(path)
    if state is not None:
        if state["trial_id"] != folder.name:
            yield f"{path}: is the checkpoint of trial {state['trial_id'][:12]}"
        yield from _check_bytes(folder / f"{state['tensors']}.safetensors")


def _check_sweep(store: Store, name: str, behind: list[str]) -> Iterator[str]:
    """Invariants 1, 3, 8 and 10: the plan is whole, and tables are what commits, failures and plan say."""
    projection, plan = Projection(store, name), store.layout.generation(name, 0)
    written, spec = projection.generation, store.layout.spec(name)
    if written["generation"] != 0 or written.get("sweep", {"name": name})["name"] != name:
        yield f"{plan}: is the plan of another sweep"
    if launching(store) != name and "spec_sha256" in written and digest(spec.read_bytes()) != written["spec_sha256"]:
        yield f"{spec}: is not the file that was launched"
    if doubled := _doubled(trial.id for trial in projection.trials):
        yield f"{plan}: trial {doubled[:12]} is planned twice (invariant 1)"
    for trial in projection.trials:
        yield from _check_trial(plan, trial.to_json(), trial.id)
        for need in trial.required:
            if need not in projection.by_id:
                yield f"{plan}: trial {trial.id[:12]} needs {need[:12]}, which is not planned (invariant 8)"
        if "checkpoint" in trial.config:
            yield from _check_artifact(store, trial.config["checkpoint"], ".safetensors", trial.id)
    if launching(store) != name:  # else it runs, or was killed: its tables are a second behind
        yield from _check_tables(store, name, projection, behind)
    if launching(store) == name:
        behind.append(name)


def _check_tables(store: Store, name: str, projection: Projection, behind: list[str]) -> Iterator[str]:
    path = store.layout.trials_table(name)
    table = query.trials(store, name)
    shown = {row["trial_id"]: row for row in table.to_pylist()}
    for stranger in sorted(shown.keys() - projection.by_id.keys()):
        yield f"{path}: trial {stranger[:12]} has a row, but is not planned (invariant 10)"
    if len(shown) != table.num_rows:
        yield f"{path}: a trial has more than one row (invariant 1)"
    told = published(path)
    statuses = projection.statuses(stopped=any(row["status"] == "stopped" for row in shown.values()))
    if told.source not in [projection.source(version) for version in told.versions]:
        was = {identity for identity, row in shown.items() if row["status"] == "done"}
        done = {identity for identity, status in statuses.items() if status == "done"}
        for identity in sorted(was - done):
            yield f"{path}: trial {identity[:12]} is shown as done, but is not committed (invariant 10)"
        # No source: its launch did not come to its end. More is done: another sweep did it.
        if told.source is not None and not done - was:
            yield f"{path}: not what the commits say; launch the sweep again to publish them"
        behind.append(name)
        return
    for identity, status in statuses.items():
        if shown.get(identity, {}).get("status") != status:
            yield f"{path}: trial {identity[:12]} is shown as {shown.get(identity, {}).get('status')}, it is {status}"
        elif status == "pending":
            yield f"{path}: the sweep ended, but trial {identity[:12]} did not (invariant 1)"
    names = frozenset(told.columns.names)
    for row in projection.rows(statuses, names):
        if _comparable(row, names) != _comparable(shown.get(row["trial_id"], {}), names):
            yield f"{path}: row of trial {row['trial_id'][:12]} is not what its commits say (invariant 10)"
    yield from _check_curves(store, name, projection)


def _check_curves(store: Store, name: str, projection: Projection) -> Iterator[str]:
    rows = query.curves(store, name).to_pylist()
    keys = [(row["trial_id"], row["epoch"], row["split"], row["metric"]) for row in rows]
    if doubled := _doubled(keys):
        yield f"{store.layout.curves(name)}: curve point {doubled} twice (invariant 3)"
    found = {key: row["value"] for key, row in zip(keys, rows, strict=True)}
    expected = {
        (trial.id, point[0], point[1], point[2]): point[3]
        for trial in projection.trials
        for point in projection.curve(trial.id)
    }
    for key in sorted(found.keys() ^ expected.keys(), key=str)[:1]:
        yield f"{store.layout.curves(name)}: curve of trial {key[0][:12]} is not its commit's (invariant 10)"
    for key in sorted(k for k in found.keys() & expected.keys() if found[k] != expected[k])[:1]:
        yield f"{store.layout.curves(name)}: value {key[1:]} of trial {key[0][:12]} is not its commit's (invariant 10)"


def _comparable(row: dict[str, Any], columns: frozenset[str]) -> dict[str, Any]:
    plain = {key: row.get(key) for key in columns}
    return plain | {key: dict(plain[key] or {}) for key in columns & {"weights", "metrics"}}


def _doubled(values: Iterable[Any]) -> Any:
    return next((value for value, count in Counter(values).items() if count > 1), None)
