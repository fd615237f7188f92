"""The tables: projections of commits, whole at any instant, openable by everybody, damage never read."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.store.build import TEXT, Study, curve, flip, metrics, reseal
from urc_sweep.errors import SpecError, StoreError
from urc_sweep.store import query, tables
from urc_sweep.store.tables import CURVES, METRICS, TRIALS, Projection, Publisher, published
from urc_sweep.store.verify import verify


def published_source(path):
    """What a table says that it was made from, ``None`` if it cannot be read."""
    with contextlib.suppress(StoreError):
        return published(path).source
    return None


DESIGN = """
trial_id stage parent_id classifier_id heldout_classifier_id encoder_sha256 decoder_sha256 samples_sha256 dataset model
width protocol precision dim levels rate_bits seed lambda_d lambda_c lambda_p parent_lambda_c parent_lambda_p status
error_type error_message attempt epochs mse psnr_db ssim cross_entropy accuracy heldout_cross_entropy heldout_accuracy
critic_gap fresh_critic_gap sliced_w2 index_entropy_bits mse_centroid latent_label_entropy latent_accuracy mse_se
started_at finished_at wall_s device host pack_lanes config_json code_version git_sha torch_version cached_from weights
metrics
"""


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "store").launch()


def rows(study: Study) -> dict[str, dict]:
    """The published rows by trial id."""
    return {row["trial_id"]: row for row in query.trials(study.fresh().store, study.name).to_pylist()}


def points(study: Study) -> list[tuple]:
    """The published curve points, sorted."""
    return sorted(tuple(row.values()) for row in query.curves(study.fresh().store, study.name).to_pylist())


def expected_points(study: Study, *trials) -> list[tuple]:
    return sorted((t.id, *point, study.name) for t in trials for point in curve(t, 3))


def parts(study: Study):
    return sorted(study.store.layout.curves(study.name).glob("*.parquet"))


# -- rows --------------------------------------------------------------------------------------------------------------


def test_columns_are_the_designs():
    own = {"originals_sha256", "variant"}
    assert set(DESIGN.split()) | {f"val_{name}" for name in METRICS} | own == set(TRIALS.names)
    assert CURVES.names == ["trial_id", "epoch", "split", "metric", "value", "wall_s"]
    assert "sweep" not in TRIALS.names + CURVES.names, "the path key; pandas refuses a column of that name"
    assert {TRIALS.field(name).type for name in ("started_at", "finished_at")} == {pa.timestamp("us", tz="UTC")}
    assert TRIALS.field("rate_bits").metadata == {b"unit": b"bits"}


def test_the_row_of_a_universal_trial_by_hand(study):
    study.finish().publish()
    trial, parent = study.of_stage("universal")[1], study.of_stage("end_to_end")[1]
    judge, heldout = study.of_stage("classifier")
    committed, training = study.store.committed, study.store.committed(trial.id)
    test, validation = metrics(trial, "test"), metrics(trial, "validation")
    expected = dict.fromkeys(TRIALS.names) | {
        "trial_id": trial.id, "stage": "universal", "parent_id": parent.id, "status": "done",
        "classifier_id": judge.id, "heldout_classifier_id": heldout.id,
        "encoder_sha256": committed(parent.id)["artifacts"]["encoder"],
        "decoder_sha256": training["artifacts"]["decoder"],
        "samples_sha256": committed(trial.evaluation_id)["samples_sha256"],
        "originals_sha256": committed(trial.evaluation_id)["originals_sha256"],
        "dataset": "digits", "model": "paper", "width": 0.25, "protocol": "sound", "variant": "", "precision": "fp32",
        "dim": 2, "levels": 3, "rate_bits": 2 * np.log2(3), "seed": 0,
        "lambda_d": 1.0, "lambda_c": 0.02, "lambda_p": None, "parent_lambda_c": 0.01, "parent_lambda_p": None,
        "attempt": 1, "epochs": 3, "wall_s": 59.5, "device": "cpu", "host": "here", "pack_lanes": 1,
        "code_version": "0.1.0", "git_sha": None, "torch_version": "2.11.0", "cached_from": None,
        "started_at": datetime(2025, 1, 2, 3, 4, 5, 6, UTC),
        "finished_at": datetime(2025, 1, 2, 3, 5, 5, 0, UTC),
        "config_json": json.dumps(trial.config, sort_keys=True),
        **{key: test[key] for key in ("mse", "psnr_db", "cross_entropy", "accuracy")},
        **{f"val_{key}": validation[key] for key in ("mse", "psnr_db", "cross_entropy", "accuracy")},
        "weights": [("classification", 0.02), ("distortion", 1.0)],
        "metrics": [("mse_kmeans", test["mse_kmeans"]), ("val_mse_kmeans", validation["mse_kmeans"])],
        "sweep": "tiny",
    }  # fmt: skip
    assert rows(study)[trial.id] == expected


def test_the_rows_of_the_other_stages(study):
    study.finish().publish()
    judge, joint = study.of_stage("classifier")[0], study.of_stage("end_to_end")[0]
    row = rows(study)[judge.id]
    assert {
        key: row[key] for key in ("stage", "model", "dim", "lambda_d", "parent_id", "classifier_id", "weights")
    } == {
        **dict.fromkeys(("dim", "lambda_d", "parent_id", "classifier_id")),
        "stage": "classifier",
        "model": "paper",
        "weights": [],
    }
    assert (row["accuracy"], row["mse"]) == (metrics(judge, "test")["accuracy"], None)
    row = rows(study)[joint.id]
    artifacts = study.store.committed(joint.id)["artifacts"]
    assert (row["encoder_sha256"], row["decoder_sha256"]) == (artifacts["encoder"], artifacts["decoder"])
    assert (row["lambda_c"], row["parent_lambda_c"], row["parent_id"]) == (0.0, None, None)


def test_every_status(study):
    """Classifier done, held-out one trained but not evaluated, the rest in all other states."""
    judge, heldout, plain, constrained, first, second = study.trials
    study.finish(judge).train(heldout)
    study.fail(plain, "diverged", epochs=2).fail(constrained, "failed", attempt=1, final=False)
    study.publish(running=(heldout.id,))
    status = {trial_id: row["status"] for trial_id, row in rows(study).items()}
    assert list(status.values()) == ["done", "running", "diverged", "pending", "pending", "pending"]
    study.fail(constrained, "oom", attempt=2)
    study.publish(stopped=True)
    found = rows(study)
    status = [found[trial.id]["status"] for trial in study.trials]
    assert status == ["done", "stopped", "diverged", "oom", "skipped", "skipped"]
    row = found[plain.id]
    assert (row["error_type"], row["error_message"]) == ("FloatingPointError", "loss is nan")
    assert (row["attempt"], row["mse"], row["decoder_sha256"], row["wall_s"]) == (1, None, None, 59.5)
    assert found[constrained.id]["attempt"] == 2
    assert {row["attempt"] for row in (found[first.id], found[second.id])} == {None}
    assert found[heldout.id]["finished_at"] is not None, "its training is committed"
    in_curves = {point[0] for point in points(study)}
    assert in_curves == {judge.id, heldout.id, plain.id}, "a diverged trial's curve is worth a look"


def test_a_trial_that_was_trained_but_could_not_be_evaluated_says_why(study):
    trial = study.trials[0]
    study.train(trial).fail(trial, "failed").publish()
    row = rows(study)[trial.id]
    assert (row["status"], row["finished_at"] is None) == ("failed", False)
    assert (row["error_type"], row["error_message"]) == ("FloatingPointError", "loss is nan")


def test_a_failure_of_a_needed_trial_skips_all_that_follows(study):
    heldout = study.trials[1]
    study.fail(heldout, "failed").publish()
    assert [row["status"] for row in rows(study).values()] == ["pending", "failed", *["skipped"] * 4]


def test_a_trial_trained_by_an_earlier_sweep_says_so(study):
    study.finish(study.trials[0], sweep="before").finish(study.trials[1]).publish()
    assert [row["cached_from"] for row in rows(study).values()] == ["before", *[None] * 5]


# -- projections -------------------------------------------------------------------------------------------------------


def test_tables_rebuilt_from_commits_are_the_published_ones(study):
    study.finish(*study.trials[:4]).fail(study.trials[4], "diverged", epochs=1).publish()
    before = rows(study), points(study)
    assert len(before[1]) == 4 * 6 + 2
    shutil.rmtree(study.store.root / "trials")
    shutil.rmtree(study.store.root / "curves")
    study.publish()
    assert (rows(study), points(study)) == before


def test_a_launch_makes_only_the_rows_anew_that_changed(study, monkeypatch):
    made, row = [], Projection._row
    publisher = Publisher(study.launch().projection())
    judges, (first, second), (third, fourth) = map(study.of_stage, ("classifier", "end_to_end", "universal"))
    monkeypatch.setattr(Projection, "_row", lambda own, trial, *rest: made.append(trial) or row(own, trial, *rest))

    def published_again(*changed, **how):
        publisher.publish(**how)
        assert made == list(changed)
        table = pq.read_table(publisher.store.layout.trials_table(study.name), partitioning=None)
        every = study.projection()
        expected = every.rows(every.statuses(**how))
        assert table.equals(pa.Table.from_pylist(expected, TRIALS))
        made.clear()

    published_again(*study.trials)
    published_again()
    study.finish(*judges)
    published_again(*judges)
    published_again(first, second, running=(first.id, second.id))
    study.train(first)
    published_again(first, running=(first.id, second.id))  # trained, not yet evaluated
    study.fail(second, final=False)
    published_again(running=(first.id, second.id))
    study.fail(second, status="diverged", attempt=2)
    publisher.projection.forget(second.id)
    published_again(second, running=(first.id, second.id))
    study.finish(first)
    published_again(first, second, third, fourth)  # both decoders need the diverged encoder
    published_again(stopped=True)


def test_the_source_of_a_table_changes_with_what_it_is_made_from(study):
    path, seen = study.publish(final=True).store.layout.trials_table(study.name), []
    for change in (
        lambda: None,
        lambda: study.train(study.trials[0]),
        lambda: study.finish(study.trials[0]),
        lambda: study.fail(study.trials[1], final=False),
        lambda: study.fail(study.trials[1], attempt=2),
    ):
        change()
        seen.append(study.projection().source())
        assert (published_source(path) == seen[-1]) == (len(seen) == 1)
    assert len(set(seen)) == 5
    study.publish()
    assert published_source(path) == study.projection().source() == seen[-1]
    study.publish(final=False)
    assert published_source(path) is None, "while it runs, a table claims nothing"
    assert published_source(path.parent / "none.parquet") is None
    path.write_bytes(b"PAR1")
    assert published_source(path) is None


def test_parts_are_sealed_and_no_row_is_in_two(study, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_PART", 6)
    publisher, sealed = Publisher(study.projection()), {}
    for number, trial in enumerate(study.trials, 1):
        study.finish(trial)
        publisher.store = publisher.projection.store = study.store
        publisher.publish()
        assert points(study) == expected_points(study, *study.trials[:number])
        for path in parts(study)[:-1]:
            assert sealed.setdefault(path, path.stat().st_ino) == path.stat().st_ino, "a sealed part was written again"
    assert [path.name for path in parts(study)] == [f"part-{n:05d}.parquet" for n in range(6)]
    inodes = [path.stat().st_ino for path in parts(study)]
    study.publish()
    assert [path.stat().st_ino for path in parts(study)] == inodes, "a new launch adopts whole parts as they are"


def test_a_restart_goes_on_where_the_last_launch_stopped(study, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_PART", 12)
    for number, trial in enumerate(study.trials, 1):
        study.finish(trial).publish()
        assert points(study) == expected_points(study, *study.trials[:number])
    assert len(parts(study)) == 3


def test_trials_that_an_edit_dropped_leave_both_tables(study, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_PART", 6)
    study.finish().publish()
    smaller = Study(study.store.root, TEXT, "stages.universal.objective.classification=[0.02]").launch()
    kept = [trial for trial in study.trials if trial.id in {t.id for t in smaller.trials}]
    assert len(kept) == 5
    assert set(rows(smaller)) == {trial.id for trial in kept}
    assert points(smaller) == expected_points(smaller, *kept)
    study.launch()
    assert points(study) == expected_points(study, *study.trials), "and come back without training"


def test_a_damaged_part_is_made_again(study, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_PART", 6)
    for trial in study.trials:
        study.finish(trial).publish()
    flip(parts(study)[2], 8 * 40)  # in the first page
    with pytest.raises(StoreError, match="damaged"):
        points(study)
    study.publish()
    assert points(study) == expected_points(study, *study.trials)


def test_a_reopened_trial_has_one_curve_its_last(study):
    diverged = study.trials[0]
    study.fail(diverged, "diverged", epochs=2).publish()
    assert len(points(study)) == 4
    study.fail(diverged, "reopened", attempt=2, final=False).publish()
    assert points(study) == []
    study.finish(diverged).publish()
    assert points(study) == expected_points(study, diverged)


def test_a_curve_that_another_sweep_completed_is_published_whole(study):
    """It failed in this sweep, was reopened and trained by another one, and this sweep is launched again."""
    diverged = study.trials[0]
    study.fail(diverged, "diverged", epochs=2).publish()
    study.fail(diverged, "reopened", attempt=2, final=False).finish(diverged, sweep="other").publish(stopped=True)
    assert points(study) == expected_points(study, diverged)
    assert verify(study.fresh().store)[0] == []


# -- readers -----------------------------------------------------------------------------------------------------------


def test_everybody_opens_the_tables_of_an_empty_sweep(study):
    empty = Study(study.store.root, TEXT.replace("name: tiny", "name: later", 1)).launch()
    for table, schema, count in (("trials", TRIALS, 12), ("curves", CURVES, 0)):
        root = empty.store.root / table
        names = {*schema.names, "sweep"}
        frame = pd.read_parquet(root)
        assert (set(frame.columns), len(frame)) == (names, count)
        lazy = pl.scan_parquet(root)
        assert (set(lazy.collect_schema().names()), lazy.collect().height) == (names, count)
        found = duckdb.sql(f"from '{root}/**/*.parquet'")
        assert (set(found.columns), len(found.fetchall())) == (names, count)
    frame = pd.read_parquet(study.store.root / "trials")
    assert sorted(frame["sweep"].astype(str).unique()) == ["later", "tiny"]
    assert list(frame["status"].unique()) == ["pending"]
    (types,) = {str(pl.scan_parquet(study.store.root / "trials").collect_schema()["sweep"])}
    assert types == "String"


def test_everybody_reads_the_same_rows(study):
    study.finish().publish()
    root = study.store.root
    wanted = sorted((t.id, metrics(t, "test")["cross_entropy"]) for t in study.trials)
    columns = ["trial_id", "cross_entropy"]
    assert sorted(pd.read_parquet(root / "trials")[columns].itertuples(index=False, name=None)) == wanted
    assert sorted(pl.read_parquet(root / "trials").select(columns).rows()) == wanted
    assert sorted(duckdb.sql(f"select trial_id, cross_entropy from '{root}/trials/**/*.parquet'").fetchall()) == wanted
    assert pl.read_parquet(root / "curves").height == len(pd.read_parquet(root / "curves")) == 36


@pytest.mark.parametrize("name", ["epoch", "infinity", "inf", "true", "false"])
def test_a_name_that_a_reader_would_take_for_something_else_is_refused(tmp_path, name):
    try:
        root = Study(tmp_path / "store", TEXT.replace("name: tiny", f"name: '{name}'", 1)).launch().store.root
    except SpecError:
        return
    assert pl.read_parquet(root / "trials")["sweep"].unique().to_list() == [name]
    assert duckdb.sql(f"select distinct sweep from '{root}/trials/**/*.parquet'").fetchall() == [(name,)]


@pytest.mark.parametrize("name", ["nan", "null", "none", "today", "now", "e1", "j2000", "a.b-c_d"])
def test_other_names_are_words_to_every_reader(tmp_path, name):
    root = Study(tmp_path / "store", TEXT.replace("name: tiny", f"name: '{name}'", 1)).launch().store.root
    assert pd.read_parquet(root / "trials")["sweep"].astype(str).unique().tolist() == [name]
    assert pl.read_parquet(root / "trials")["sweep"].unique().to_list() == [name]
    assert duckdb.sql(f"select distinct sweep from '{root}/trials/**/*.parquet'").fetchall() == [(name,)]


READER = """
import json, pathlib, sys
import pandas as pd
root, seen, reads, wrong = pathlib.Path(sys.argv[1]), 0, 0, []
print("ready", flush=True)
while not (root / "end").exists() or reads < 20:
    try:
        trials, curves = pd.read_parquet(root / "trials"), pd.read_parquet(root / "curves")
    except Exception as error:
        wrong.append(repr(error))
        break
    if len(trials) != 8 or trials["trial_id"].nunique() != 8:
        wrong.append(f"{len(trials)} rows of trials")
    key = ["trial_id", "epoch", "split", "metric"]
    if curves.duplicated(key).any():
        wrong.append("a point twice")
    if not curves.groupby("trial_id", observed=True).size().eq(6).all():
        wrong.append("half a curve")
    if len(curves) < seen:
        wrong.append("points were lost")
    seen, reads = len(curves), reads + 1
print(json.dumps({"wrong": wrong[:5], "reads": reads, "seen": seen}))
"""


def test_a_reader_in_the_middle_of_a_file_goes_on_with_the_old_one(study):
    """Files are replaced, never written in place: what is open stays whole."""
    study.finish(study.trials[0]).publish()
    paths = [study.store.layout.trials_table(study.name), *parts(study)]
    before = [path.read_bytes() for path in paths]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open(path, "rb")) for path in paths]
        study.finish(study.trials[1]).publish()
        assert [file.read() for file in opened] == before
    assert all(path.read_bytes() != old for path, old in zip(paths, before, strict=True))


def test_readers_see_a_valid_snapshot_at_any_instant(tmp_path, monkeypatch):
    study = Study(tmp_path / "store", TEXT, "stages.universal.objective.classification=[0, 0.02, 0.03, 0.04]").launch()
    root = study.store.root
    monkeypatch.setattr(tables, "ROWS_PER_PART", 12)
    publisher = Publisher(study.projection())
    reader = subprocess.Popen([sys.executable, "-c", READER, str(root)], stdout=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == "ready\n"
    for number in range(200):
        if number % 25 == 0:
            study.finish(study.trials[number // 25])
            publisher.store = publisher.projection.store = study.store
        publisher.publish(running=(study.trials[-1].id,) if number % 2 else ())
    (root / "end").touch()
    answer = json.loads(reader.communicate(timeout=60)[0])
    assert answer["wrong"] == []
    assert answer["seen"] == 8 * 6
    assert len(parts(study)) == 4


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def part(study):
    study.finish(study.trials[0]).publish()
    (path,) = parts(study)
    return path


def test_a_truncated_table_is_damaged(part):
    whole = part.read_bytes()
    for length in (0, 3, 4, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        part.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=f"{part}: damaged table"):
            tables.read(part, CURVES)
    part.unlink()
    with pytest.raises(StoreError, match="does not exist"):
        tables.read(part, CURVES)


# -- older releases ----------------------------------------------------------------------------------------------------


def aged(path, schema, *dropped):
    """Make a table what a release without these columns, and without a seal, wrote of the same commits."""
    table = tables.read(path, schema).drop_columns(list(dropped))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture
def old(study, monkeypatch):
    """A finished sweep of a release that had neither seals nor ``ssim``, nor walls in its curves."""
    study.finish(*study.trials[:5]).fail(study.trials[5], "diverged", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "SCHEMA_VERSION", 2)
        patch.setattr(Projection.source, "__defaults__", (2,))
        study.publish()
    aged(study.store.layout.trials_table(study.name), TRIALS, "ssim")
    aged(parts(study)[0], CURVES, "wall_s")
    return study


def test_an_old_store_is_whole_and_its_later_columns_are_empty(old):
    assert verify(old.fresh().store)[0] == []
    found = query.trials(old.store, old.name)
    assert found.drop_columns(["sweep"]).schema.equals(TRIALS)
    assert found["ssim"].null_count == found.num_rows == 6
    assert found["accuracy"].null_count == 1
    assert {row["wall_s"] for row in query.curves(old.store, old.name).to_pylist()} == {None}


def test_damage_to_an_old_store_is_found(old):
    path = old.store.layout.trials_table(old.name)
    table = pq.read_table(path, partitioning=None)
    values = table["accuracy"].to_pylist()
    index = table.schema.get_field_index("accuracy")
    values[0] = 0.5
    pq.write_table(table.set_column(index, "accuracy", pa.array(values)), path)
    (line,) = verify(old.fresh().store)[0]
    assert line.startswith(f"{path}: row of trial {old.trials[0].id[:12]} is not what its commits say")


def test_a_launch_publishes_an_old_store_anew(old):
    path = old.store.layout.trials_table(old.name)
    assert published_source(path) != old.projection().source()
    old.publish()
    assert published_source(path) == old.projection().source()
    assert tables.published(path).columns.names == TRIALS.names
    assert None not in {row["wall_s"] for row in query.curves(old.store, old.name).to_pylist()}
    assert verify(old.fresh().store)[0] == []


def test_a_metric_that_became_a_column_was_in_the_map_before(study):
    study.finish().publish()
    statuses = study.projection().statuses()
    trial = study.of_stage("end_to_end")[0]
    for columns, where in ((frozenset(TRIALS.names), False), (frozenset(TRIALS.names) - {"psnr_db"}, True)):
        rows = {row["trial_id"]: row for row in study.projection().rows(statuses, columns)}
        assert ("psnr_db" in dict(rows[trial.id]["metrics"])) is where


@pytest.mark.parametrize("change", ["unknown column", "other type", "column twice"])
def test_an_old_table_of_other_columns_is_refused(study, change):
    path = study.store.layout.trials_table(study.name)
    table = pq.read_table(path, partitioning=None).drop_columns(["ssim"])
    table = {
        "unknown column": lambda: table.append_column("mood", table["stage"]),
        "other type": lambda: table.set_column(0, "trial_id", pa.array(range(table.num_rows))),
        "column twice": lambda: table.append_column("stage", table["stage"]),
    }[change]()
    pq.write_table(table, path)
    with pytest.raises(StoreError, match="columns are not those of this release"):
        tables.read(path, TRIALS)


# -- seals and budgets -------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_table_is_found(part):
    """Anywhere: data, footer, Arrow's copy of the schema, the seal itself. The checksum is of the whole file."""
    good, bits = tables.read(part, CURVES), 8 * part.stat().st_size
    chance, whole, missed = random.Random(0), part.read_bytes(), []
    seal = 8 * whole.rindex(b"sha256")
    for bit in [*range(seal - 64, seal + 8 * 74), *(chance.randrange(bits) for _ in range(500))]:
        flip(part, bit)
        with contextlib.suppress(StoreError):
            tables.read(part, good.schema)
            missed.append(bit)
        part.write_bytes(whole)
    assert missed == []


def test_a_table_without_its_seal_is_not_taken_for_an_old_one(part):
    table = tables.read(part, CURVES)
    pq.write_table(table.replace_schema_metadata({"schema_version": "3"}), part)
    with pytest.raises(StoreError, match="its seal is gone"):
        tables.read(part, CURVES)


def test_zeros_in_the_data_are_not_taken_for_the_seal():
    rows = [{"trial_id": "sha256\x18\x40" + "0" * 64, "metric": "0" * 64}]
    data = tables.to_bytes(pa.Table.from_pylist(rows, CURVES))
    assert pq.read_table(io.BytesIO(data)).to_pylist()[0]["metric"] == "0" * 64


def bomb(kind: str) -> pa.Table:
    """A table of few bytes that would be gigabytes."""
    zeros = np.zeros(20_000, np.int32)
    text = pa.DictionaryArray.from_arrays(pa.array(zeros), pa.array(["x" * 2**20]))
    if kind == "text":
        return pa.table({"trial_id": text})
    if kind == "map":
        return pa.table({"weights": pa.MapArray.from_arrays(pa.array([0, 20_000], pa.int32()), text, pa.array(zeros))})
    if kind == "entries":  # of one row
        many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(17_000_000, np.int8)), pa.array(["x"]))
        values = pa.array(np.zeros(17_000_000))
        return pa.table({"weights": pa.MapArray.from_arrays(pa.array([0, len(many)], pa.int32()), many, values)})
    if kind == "rows":
        return pa.table({"epoch": np.zeros(17_000_000, np.int8).astype(np.int64)})
    if kind == "nulls":
        return pa.table({"seed": pa.nulls(1_000_000, pa.int64())})
    return pa.table({"config_json": pa.array(["x" * 130 * 2**20])})


BOMB = """
import resource, sys
from pathlib import Path
from urc_sweep.errors import StoreError
from urc_sweep.store import tables
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    tables.read(Path(sys.argv[1]), getattr(tables, sys.argv[2]))
except StoreError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["text", "map", "entries", "rows", "nulls", "page"])
def test_a_small_file_that_would_be_gigabytes_is_one_line(tmp_path, kind):
    """A stranger's table, without a seal like an old one."""
    path, made = tmp_path / "trials.parquet", bomb(kind)
    if kind == "map":  # of the right type, else it is refused for that
        made = made.set_column(0, "weights", made["weights"].cast(pa.map_(made["weights"].type.key_type, pa.float64())))
    pq.write_table(made, path, compression="zstd", dictionary_pagesize_limit=2**22, store_schema=False)
    assert path.stat().st_size < 2**20
    schema = "CURVES" if kind == "rows" else "TRIALS"
    command = [sys.executable, "-c", BOMB, str(path), schema]
    line, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert line.startswith(f"{path}: damaged table: ")
    assert "any table of ours" in line
    assert int(memory) < 250


def test_a_footer_as_long_as_the_file_is_not_decoded(tmp_path):
    path = tmp_path / "trials.parquet"
    path.write_bytes(b"PAR1" + bytes(2**22) + (2**22).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(StoreError, match="footer is larger"):
        tables.read(path, TRIALS)


def test_a_table_of_other_columns_is_refused(part):
    part.write_bytes(tables.to_bytes(CURVES.empty_table().drop_columns(["wall_s"])))
    with pytest.raises(StoreError, match="columns are not those of this release"):
        tables.read(part, CURVES)


def test_both_schemas_survive_parquet(study):
    for path, schema in ((study.store.layout.trials_table(study.name), TRIALS), (parts(study)[0], CURVES)):
        assert tables.read(path, schema).schema.equals(schema)
        found = tables.read(path, schema).schema
        assert [field.metadata for field in found] == [field.metadata for field in schema]


def test_rows_follow_the_plan(study):
    assert [row["trial_id"] for row in Projection(study.store, study.name).rows(study.projection().statuses())] == [
        trial.id for trial in study.trials
    ]


def test_a_commit_forged_in_value_changes_the_table(study):
    """Tables are projections: what the commit says now is what is published next."""
    study.finish().publish()
    trial = study.trials[0]
    path = study.store.layout.commit(trial.evaluation_id)
    reseal(path, lambda record: record["metrics"]["test"].update(accuracy=0.5))
    study.publish()
    assert rows(study)[trial.id]["accuracy"] == 0.5
