"""``verify`` against planted damage: it names the file, whatever was done to it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.faults import corruption
from tests.faults.card import Budget, Card
from tests.store.build import TEXT, Study, flip, reseal
from urc_sweep.maths.ids import digest
from urc_sweep.store import tables
from urc_sweep.store.commits import _seal
from urc_sweep.store.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Five finished trials, one that diverged."""
    study = Study(tmp_path_factory.mktemp("whole") / "store")
    return study.finish(*study.trials[:5]).fail(study.trials[5], "diverged", epochs=2).launch()


@pytest.fixture
def study(whole, tmp_path):
    shutil.copytree(whole.store.root, tmp_path / "store")
    return Study(tmp_path / "store")


def problems(study: Study) -> list[str]:
    return verify(study.fresh().store)[0]


def artifact(study, trial, role):
    return study.store.layout.artifact(study.store.committed(trial.id)["artifacts"][role], ".safetensors")


def commit(study, number):
    return study.store.layout.commit(study.trials[number].id)


def evaluation(study, number):
    return study.store.layout.commit(study.trials[number].evaluation_id)


def edit(path, change):
    """Rewrite a table with other rows, the file itself being in order."""
    table = tables.read(path, tables.TRIALS if path.name == "trials.parquet" else tables.CURVES)
    path.write_bytes(tables.to_bytes(change(table).replace_schema_metadata(table.schema.metadata)))
    return path


def with_value(table, row, column, value):
    values = table[column].to_pylist()
    values[row] = value
    index = table.schema.get_field_index(column)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def trials_table(study):
    return study.store.layout.trials_table(study.name)


def curves_part(study):
    return next(study.store.layout.curves(study.name).glob("*.parquet"))


def harmed(path, harm, *arguments):
    harm(path, *arguments)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def moved(path, name):
    target = path.parent.parent / name[:2] / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    return path.rename(target)


def swap_encoder(study):
    other = study.store.committed(study.trials[2].id)["artifacts"]["encoder"]
    return harmed(commit(study, 4), reseal, lambda record: record["used"].update(encoder=other))


def gap(record):
    record["curve"] = [point for point in record["curve"] if point[0] != 2]


def evaluate_nobody(study):
    record = study.store.committed(study.trials[0].evaluation_id) | {"id": "e" * 64, "trial_id": "f" * 64}
    study.store.commit("e" * 64, record)
    return study.store.layout.commit("e" * 64)


def edit_config(study):
    def change(record):
        record["trial"]["config"]["objective"]["classification"]["weight"] = 0.5

    return harmed(commit(study, 2), reseal, change)


def commit_after_publishing(study):
    study.finish(study.trials[5])
    return trials_table(study)


def drop_from_plan(study):
    path = study.store.layout.generation(study.name, 0)
    reseal(path, lambda record: record["trials"].pop(0))
    return path


def extra_row(study):
    return edit(
        trials_table(study), lambda t: pa.concat_tables([t, with_value(t, 0, "trial_id", "d" * 64).slice(0, 1)])
    )


def foreign_failure(study):
    return harmed(study.store.layout.failure(study.trials[5].id, 1), reseal, lambda r: r.update(trial_id="f" * 64))


def stray(study, name):
    path = study.store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    return path


def checkpointed(study):
    """A trial that is not committed, with its checkpoint."""
    study.store.save_checkpoint(study.trials[5].id, b"tensors", {"epoch": 1})
    folder = study.store.layout.checkpoint(study.trials[5].id)
    return folder / "state.json", folder / f"{digest(b'tensors')}.safetensors"


def without_plan(study):
    shutil.rmtree(study.store.layout.sweep(study.name))
    return trials_table(study).parent


def other_spec(study):
    """The sweep file is not the one that the plan names."""
    study.store.layout.spec(study.name).write_text("name: other\n")
    reseal(study.store.layout.generation(study.name, 0), lambda r: r.update(spec_sha256=digest(b"name: tiny\n")))
    return study.store.layout.spec(study.name)


def give_weights(study):
    """The configuration names a classifier that the sweep brought along, and that is not there."""
    weights = study.store.put(b"weights", ".safetensors")
    path = study.store.layout.generation(study.name, 0)
    reseal(path, lambda r: r["trials"][0]["config"].update(checkpoint=weights))
    study.store.layout.artifact(weights, ".safetensors").unlink()
    return study.store.layout.artifact(weights, ".safetensors")


def unfinished(study):
    """A launch said that it was done, and left a trial out."""
    study.store.layout.failure(study.trials[5].id, 1).unlink()
    return trials_table(study.publish(final=True))


def unjudged(study):
    study.store.layout.commit(study.trials[1].id).unlink()
    return evaluation(study, 2)


def keep(column, value):
    return lambda table: table.filter(pc.not_equal(table[column], value))


DAMAGES = {
    "artifact flipped": lambda s: harmed(artifact(s, s.trials[2], "decoder"), flip),
    "artifact cut": lambda s: harmed(artifact(s, s.trials[0], "classifier"), cut),
    "artifact deleted": lambda s: harmed(artifact(s, s.trials[3], "encoder"), lambda p: p.unlink()),
    "image deleted": lambda s: harmed(next(s.store.root.glob("artifacts/??/*.png")), lambda p: p.unlink()),
    "image flipped": lambda s: harmed(next(s.store.root.glob("artifacts/??/*.png")), flip),
    "commit flipped": lambda s: harmed(commit(s, 1), flip),
    "commit cut": lambda s: harmed(evaluation(s, 1), cut),
    "commit renamed": lambda s: moved(commit(s, 2), "d" * 64),
    "commit under the id of another": lambda s: moved(commit(s, 4), s.trials[5].id),
    "commit of unknown kind": lambda s: harmed(commit(s, 4), reseal, lambda r: r.update(kind="rumour")),
    "encoder swapped": swap_encoder,
    "epoch missing": lambda s: harmed(commit(s, 2), reseal, gap),
    "last epoch missing": lambda s: harmed(commit(s, 2), reseal, lambda r: r.update(curve=r["curve"][:-2])),
    "point doubled in a commit": lambda s: harmed(commit(s, 2), reseal, lambda r: r["curve"].append(r["curve"][0])),
    "configuration edited": edit_config,
    "evaluation of nobody": evaluate_nobody,
    "metric edited in a commit": lambda s: harmed(
        evaluation(s, 2), reseal, lambda r: r["metrics"]["test"].update(mse=0.0)
    ) and trials_table(s),
    "failure flipped": lambda s: harmed(s.store.layout.failure(s.trials[5].id, 1), flip),
    "row edited": lambda s: edit(trials_table(s), lambda t: with_value(t, 2, "mse", 0.0)),
    "id of a network edited": lambda s: edit(trials_table(s), lambda t: with_value(t, 4, "encoder_sha256", "0" * 64)),
    "status edited": lambda s: edit(trials_table(s), lambda t: with_value(t, 5, "status", "done")),
    "row doubled": lambda s: edit(trials_table(s), lambda t: pa.concat_tables([t, t.slice(2, 1)])),
    "row dropped": lambda s: edit(trials_table(s), lambda t: t.slice(0, 5)),
    "table flipped": lambda s: harmed(trials_table(s), flip, 8 * 40),
    "table deleted": lambda s: harmed(trials_table(s), lambda p: p.unlink()),
    "curve value edited": lambda s: edit(curves_part(s), lambda t: with_value(t, 7, "value", -1.0)).parent,
    "curve row dropped": lambda s: edit(curves_part(s), lambda t: t.slice(1)).parent,
    "curve row doubled": lambda s: edit(curves_part(s), lambda t: pa.concat_tables([t, t.slice(3, 1)])).parent,
    "curve of a trial dropped": lambda s: edit(curves_part(s), keep("trial_id", s.trials[5].id)).parent,
    "curve of a stranger": lambda s: edit(curves_part(s), lambda t: with_value(t, 0, "trial_id", "f" * 64)).parent,
    "curves flipped": lambda s: harmed(curves_part(s), flip, 8 * 40),
    "curves deleted": lambda s: harmed(curves_part(s), lambda p: p.unlink()).parent,
    "needed trial not planned": drop_from_plan,
    "row of a trial that is not planned": extra_row,
    "commit in another's folder": lambda s: commit(s, 2).rename(commit(s, 3).parent / commit(s, 2).name),
    "plan flipped": lambda s: harmed(s.store.layout.generation(s.name, 0), flip, 8 * 99),
    "failure of another trial": foreign_failure,
    "trained on other data": lambda s: harmed(commit(s, 2), reseal, lambda r: r.update(data_sha256="0" * 64)),
    "record without its fields": lambda s: harmed(commit(s, 2), reseal, lambda r: r.pop("artifacts")),
    "format flipped": lambda s: harmed(s.store.layout.format, flip, 8 * 25),
    "format of no release": lambda s: harmed(s.store.layout.format, flip, 8 * 11),
    "commit with a space at its end": lambda s: harmed(commit(s, 1), lambda p: p.write_bytes(p.read_bytes() + b" ")),
    "commit that is a list": lambda s: harmed(commit(s, 1), lambda p: p.write_bytes(_seal([1]))),
    "stray commit": lambda s: stray(s, "commits/ab/notes.json"),
    "stray artifact": lambda s: stray(s, f"artifacts/ab/{'cd' * 32}.png"),
    "stray failure": lambda s: stray(s, f"failures/{'ab' * 32}/first.json"),
    "stray checkpoint": lambda s: stray(s, f"checkpoints/{'ab' * 32}/state.pkl"),
    "failure under another number": lambda s: s.store.layout.failure(s.trials[5].id, 1).rename(
        s.store.layout.failure(s.trials[5].id, 2)
    ),
    "epoch missing in a failure": lambda s: harmed(
        s.store.layout.failure(s.trials[5].id, 1), reseal, lambda r: r["curve"].pop(1)
    ),
    "checkpoint flipped": lambda s: harmed(checkpointed(s)[1], flip),
    "checkpoint's state flipped": lambda s: harmed(checkpointed(s)[0], flip),
    "checkpoint without tensors": lambda s: harmed(checkpointed(s)[1], lambda p: p.unlink()),
    "checkpoint of another trial": lambda s: harmed(checkpointed(s)[0], reseal, lambda r: r.update(trial_id="f" * 64)),
    "plan deleted": without_plan,
    "plan of another sweep": lambda s: harmed(
        s.store.layout.generation(s.name, 0), reseal, lambda r: r.update(sweep={"name": "other"})
    ),
    "plan with another configuration": lambda s: harmed(
        s.store.layout.generation(s.name, 0), reseal, lambda r: r["trials"][2]["config"].update(seed=9)
    ),
    "sweep file edited in the store": other_spec,
    "given weights deleted": give_weights,
    "ended sweep with a trial that did not": unfinished,
    "judge not committed": unjudged,
    "evaluation of another trial": lambda s: harmed(
        evaluation(s, 2), reseal, lambda r: r.update(trial_id=s.trials[3].id)
    ),
}  # fmt: skip


def test_a_clean_store_has_no_problems(study):
    found, checked = verify(study.fresh().store)
    assert found == []
    artifacts = len(list(study.store.root.glob("artifacts/??/*")))
    assert checked == f"10 commits, {artifacts} artifacts, 1 sweeps"


def test_two_sweeps_an_empty_one_and_a_stopped_one_are_clean(study):
    Study(study.store.root, TEXT.replace("name: tiny", "name: later", 1)).launch()
    wide = Study(study.store.root, TEXT.replace("name: tiny", "name: wide", 1), "rates.0.dim=3").launch()
    wide.publish(stopped=True)
    assert problems(study) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_file_named(study, damage):
    named = str(DAMAGES[damage](study))
    found = problems(study)
    assert any(named in line for line in found), found
    assert all(len(line.splitlines()) == 1 for line in found)


def test_a_parent_without_commit_is_named_by_each_of_its_children(study):
    parent = study.trials[3]
    study.store.layout.commit(parent.id).unlink()
    found = problems(study)
    child, judged = commit(study, 4), evaluation(study, 3)
    needed = f"trial {study.trials[4].id[:12]} needs {parent.id[:12]}, which is not committed (invariant 7)"
    assert f"{child}: {needed}" in found
    assert f"{judged}: evaluates trial {parent.id[:12]}, which is not committed (invariant 8)" in found


def test_invariants_are_told_apart(study):
    swap_encoder(study)
    reseal(commit(study, 2), gap)
    child, parent = study.trials[4].id[:12], study.trials[3].id[:12]
    found = problems(study)
    assert f"{commit(study, 4)}: trial {child} used another encoder than {parent} committed (invariant 6)" in found
    epochs = f"trial {study.trials[2].id[:12]}: epochs of its curve are not 1 to the last (invariant 4)"
    assert f"{commit(study, 2)}: {epochs}" in found


def test_tables_that_are_only_old_are_said_to_be_old(study):
    commit_after_publishing(study)
    found, checked = verify(study.fresh().store)
    assert found == []
    assert checked.endswith("; tables behind the commits until the next launch: tiny")


def test_every_damage_of_a_store_is_listed(study):
    planted = [str(DAMAGES[name](study)) for name in ("artifact flipped", "commit flipped", "evaluation of nobody")]
    found = problems(study)
    assert all(any(path in line for line in found) for path in planted)


def test_verify_repairs_nothing_and_exits_4(study):
    path = DAMAGES["artifact flipped"](study)
    files = {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*")}
    command = [sys.executable, "-m", "urc_sweep", "verify", "--store", str(study.store.root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"urc-sweep: {path}: damaged: its bytes are not those of its name\n"
    assert {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*")} == files
    flip(path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{study.store.root}: ok: 10 commits, ")


def test_random_damage_of_a_real_store_is_always_found(tmp_path):
    card = Card("corruption")
    corruption.campaign(card, Budget(60, 600.0), 0, tmp_path)
    assert (card.injected, card.problems) == (60, [])


def test_a_campaign_reports_what_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setattr(corruption, "verify", lambda store: ([], ""))
    card = Card("corruption")
    corruption.campaign(card, Budget(3, 600.0), 0, tmp_path)
    assert len(card.problems) == 3


def test_leftovers_of_a_kill_are_no_damage(study):
    """A checkpoint of a committed trial, one that has no state yet, private files, a plan that was never written."""
    study.store.save_checkpoint(study.trials[0].id, b"tensors", {"epoch": 1})
    flip(study.store.layout.checkpoint(study.trials[0].id) / "state.json")
    checkpointed(study)[0].unlink()
    stray(study, "tmp/0123")
    stray(study, "sweeps/later/spec.yaml")
    assert problems(study) == []


HOSTILE = (None, -1, 1e300, "", "\x1b[2J\n", [], {}, [[]], {"a": {}}, "f" * 64)


def places(value, path=()):
    """Every place in a record, as the keys that lead there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def plant(record, place, value):
    *above, last = place
    for key in above:
        record = record[key]
    if value is None:
        del record[last]
    else:
        record[last] = value


# A setting of protocol and train that is left out is at its default.
TOLD = {"writer", "host", "device", "git_sha", "sweep", "code_version", "torch_version", "launched_at", "evaluated_at"}
TOLD |= {"kind", "protocol", "train", "trace", "epoch", "evaluators", "evaluation_id", "wall_s", "pack_lanes"}
TOLD |= {"started_at", "finished_at"}


def test_no_record_of_a_stranger_breaks_verify(study):
    """Any field of any kind of record, left out or of any other type: lines of one line each; silence only on what
    nobody computes with."""
    chance = random.Random(0)
    state, _ = checkpointed(study)
    failure, plan = study.store.layout.failure(study.trials[5].id, 1), study.store.layout.generation(study.name, 0)
    silent = set()
    for path in (commit(study, 4), evaluation(study, 4), failure, plan, state):
        whole = path.read_bytes()
        for place in chance.sample(every := list(places(json.loads(whole)["record"])), min(len(every), 50)):
            value = chance.choice(HOSTILE)
            reseal(path, lambda record, place=place, value=value: plant(record, place, value))
            found = problems(study)
            assert all(line.isprintable() for line in found)
            silent |= set() if found or path.read_bytes() == whole else {place}
            path.write_bytes(whole)
    assert [place for place in silent if not TOLD & set(place)] == []
