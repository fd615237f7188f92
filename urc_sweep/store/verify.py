"""``verify``: what a store's files can show of its promises. Repairs nothing, names file and trial.

Numbers are the invariants of the project's reliability contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from urc_sweep.errors import StoreError, UrcSweepError
from urc_sweep.maths.ids import content_id, digest
from urc_sweep.plan.trials import Trial, trial_id
from urc_sweep.store import query
from urc_sweep.store.commits import Record, Store
from urc_sweep.store.lease import holder_of
from urc_sweep.store.tables import Projection, published_source


def verify(store: Store) -> tuple[list[str], str]:
    """Return every problem as one line, and a sentence on what was checked."""
    problems: list[str] = []
    trainings: dict[str, Record] = {}
    commits = store.commit_ids()
    for commit_id in commits:
        try:
            record = store.committed(commit_id)
            if record is None:
                (path,) = list(store.layout.commits.glob(f"??/{commit_id}.json"))[:1]
                raise StoreError(f"{path}: in another's folder, where nobody finds it")
            problems += _check_commit(store, commit_id, record)
            if record.get("kind") == "training":
                trainings[commit_id] = record
        except UrcSweepError as error:
            problems.append(str(error))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            trainings.pop(commit_id, None)
            problems.append(f"{store.layout.commit(commit_id)}: not a whole record: {error!r}")
    for commit_id, record in trainings.items():
        problems += _check_parent(store, commit_id, record, trainings)
    artifacts = sorted((store.root / "artifacts").glob("??/*"))
    for path in artifacts:
        if digest(path.read_bytes()) != path.stem:
            problems.append(f"{path}: damaged: its bytes are not those of its name")
    names = store.sweeps()
    for name in names:
        try:
            problems += _check_tables(store, name)
        except UrcSweepError as error:
            problems.append(str(error))
    return problems, f"{len(commits)} commits, {len(artifacts)} artifacts, {len(names)} sweeps"


def _check_commit(store: Store, commit_id: str, record: Record) -> Iterator[str]:
    path = store.layout.commit(commit_id)
    kind = record.get("kind")
    if kind == "training":
        if trial_id(record["trial"]["config"]) != commit_id:
            yield f"{path}: trial {commit_id[:12]} is not the hash of its own configuration"
        named = record["trial"]["config"]["dataset"]["sha256"]
        if len(named) == 64 and record["data_sha256"] != named:  # sets named by their archives have no such hash
            yield f"{path}: trial {commit_id[:12]} was trained on other data than it names"
        for sha256 in record["artifacts"].values():
            yield from _check_artifact(store, sha256, ".safetensors", commit_id)
        epochs = [point[0] for point in record["curve"] if point[1] == "train" and point[2] == "loss"]
        if epochs != list(range(1, Trial.from_json(record["trial"]).setting("train", "epochs") + 1)):
            yield f"{path}: trial {commit_id[:12]}: epochs of its curve are not 1 to the last (invariant 4)"
        if doubled := _doubled((p[0], p[1], p[2]) for p in record["curve"]):
            yield f"{path}: trial {commit_id[:12]}: curve point {doubled} twice (invariant 3)"
    elif kind == "evaluation":
        inputs = record["inputs"]
        if content_id("evaluation", inputs) != commit_id or inputs["trial"] != record["trial_id"]:
            yield f"{path}: is not the evaluation of trial {record['trial_id'][:12]} that its name says"
        if not store.layout.commit(record["trial_id"]).is_file():
            yield f"{path}: evaluates trial {record['trial_id'][:12]}, which is not committed (invariant 8)"
        for key in ("samples_sha256", "originals_sha256"):
            if record.get(key):
                yield from _check_artifact(store, record[key], ".png", record["trial_id"])
    else:
        yield f"{path}: of unknown kind {kind!r}"


def _check_artifact(store: Store, sha256: str, suffix: str, trial: str) -> Iterator[str]:
    if not store.layout.artifact(sha256, suffix).is_file():
        yield f"{store.layout.artifact(sha256, suffix)}: missing, but trial {trial[:12]} refers to it (invariant 8)"


def _check_parent(store: Store, commit_id: str, record: Record, trainings: dict[str, Record]) -> Iterator[str]:
    """Invariants 6 and 7: the networks a trial used are those its parents committed, before it ended."""
    path = store.layout.commit(commit_id)
    for role, need in record["trial"]["config"]["needs"].items():
        parent = trainings.get(need)
        if parent is None:
            yield f"{path}: trial {commit_id[:12]} needs {need[:12]}, which is not committed (invariant 7)"
            continue
        if record["used"].get(role) != parent["artifacts"].get(Trial.from_json(record["trial"]).artifact(role)):
            yield f"{path}: trial {commit_id[:12]} used another {role} than {need[:12]} committed (invariant 6)"


def _check_tables(store: Store, name: str) -> Iterator[str]:
    """Invariants 1, 3 and 10: tables are what commits, failures and plan say."""
    projection = Projection(store, name)
    for trial in projection.trials:
        for record in store.failures(trial.id):
            if record["trial_id"] != trial.id:
                yield f"{store.layout.failure(trial.id, record['attempt'])}: is of trial {record['trial_id'][:12]}"
    for trial in projection.trials:
        for need in trial.required:
            if need not in projection.by_id:
                yield f"sweep {name}: trial {trial.id[:12]} needs {need[:12]}, which is not planned (invariant 8)"
    table = query.trials(store, name)
    path = store.layout.trials_table(name)
    shown = {row["trial_id"]: row for row in table.to_pylist()}
    for stranger in sorted(shown.keys() - projection.by_id.keys()):
        yield f"{path}: trial {stranger[:12]} has a row, but is not planned (invariant 10)"
    if len(shown) != table.num_rows:
        yield f"{path}: a trial has more than one row (invariant 1)"
    if (holder_of(store) or {}).get("sweep") == name:
        return  # running: its tables are a second behind
    if published_source(path) != projection.source():
        yield f"{path}: older than the commits; launch the sweep again to publish them"
        return
    for row in projection.rows({t: shown.get(t, {}).get("status", "") for t in projection.by_id}):
        if _comparable(row) != _comparable(shown.get(row["trial_id"], {})):
            yield f"{path}: row of trial {row['trial_id'][:12]} is not what its commits say (invariant 10)"
    statuses = projection.statuses(stopped=any(row["status"] == "stopped" for row in shown.values()))
    for identity, status in statuses.items():
        if shown.get(identity, {}).get("status") != status:
            yield f"{path}: trial {identity[:12]} is shown as {shown.get(identity, {}).get('status')}, it is {status}"
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


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in row.items() if key != "sweep"}
    return plain | {key: dict(plain.get(key) or {}) for key in ("weights", "metrics")}


def _doubled(values: Any) -> Any:
    return next((value for value, count in Counter(values).items() if count > 1), None)
