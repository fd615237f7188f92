"""SQL over the tables: answers questions, and touches nothing else of the machine."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.store.build import TEXT, Study, metrics
from urc_sweep.errors import SpecError, StoreError
from urc_sweep.store import query
from urc_sweep.store.commits import Store


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two sweeps that share four trials, the second with one end-to-end weight more."""
    study = Study(tmp_path_factory.mktemp("store")).finish().launch()
    objective = "stages.end_to_end.objective.classification=[0, 0.01, 0.03]"
    other = Study(study.store.root, TEXT.replace("name: tiny", "name: wide", 1), objective)
    other.finish(*(trial for trial in other.trials if trial.id not in {t.id for t in study.trials})).launch()
    return study


def ask(study: Study, text: str) -> list[tuple]:
    return [tuple(row.values()) for row in query.sql(study.store, text).to_pylist()]


def test_questions_are_answered(study):
    assert ask(study, "select sweep, count(*) from trials group by sweep order by sweep") == [("tiny", 6), ("wide", 7)]
    best = max(study.trials, key=lambda trial: metrics(trial, "test")["accuracy"])
    found = ask(study, "select trial_id, accuracy from trials where sweep = 'tiny' order by accuracy desc limit 1")
    assert found == [(best.id, metrics(best, "test")["accuracy"])]
    assert ask(study, "with t as (from trials) select max(lambda_c) from t") == [(0.03,)]
    assert ask(study, "select weights['classification'] from trials where lambda_c = 0.03") == [(0.03,)]
    assert len(ask(study, "describe trials")) == len(query.trials(study.store).schema)


def test_curves_are_answered(study):
    text = "select t.stage, max(c.epoch) from curves c join trials t using (sweep, trial_id) group by all order by all"
    assert ask(study, text) == [("classifier", 3), ("end_to_end", 3), ("universal", 3)]
    assert ask(study, "select count(*), count(distinct sweep) from curves") == [(78, 2)]


@pytest.mark.parametrize("text", ["select count(*) from CURVES", "from query_table('cur' || 'ves') select count(*)"])
def test_names_of_tables_are_sql_names(study, text):
    assert ask(study, text) == [(78,)]


def test_a_shared_trial_is_unique_once(study):
    assert ask(study, "select count(*), count(distinct trial_id) from trials") == [(13, 7)]
    assert ask(study, "select count(*), count(distinct trial_id) from unique_trials") == [(7, 7)]
    assert ask(study, "select count(*) from unique_trials where status <> 'done' or mse is null") == [
        (2,)
    ]  # classifiers


@pytest.mark.parametrize(
    "text",
    [
        "select * from read_csv('{secret}')",
        "select * from '{secret}'",
        "select content from read_text('{secret}')",
        "select * from read_blob('{secret}')",
        "select * from glob('{folder}/*')",
        "select * from read_parquet('{folder}/store/trials/**/*.parquet')",
        "copy trials to '{folder}/out.csv'",
        "copy (select 1) to '{folder}/out.parquet'",
        "attach '{folder}/out.db'",
        "export database '{folder}/out'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "pragma enable_external_access = true",
        "set home_directory = '{folder}'",
        "set allowed_directories = ['{folder}']",
        "select 1; copy trials to '{folder}/out.csv'",
        "set enable_external_access = true; select * from read_csv('{secret}')",
        # DuckDB would look for Python variables of these names
        "select * from everything",
        "select * from store",
    ],
)
def test_a_query_reaches_no_file_and_cannot_switch_that_on(study, tmp_path, text):
    (tmp_path / "secret.csv").write_text("password\nhunter2\n")
    with pytest.raises(SpecError) as caught:
        query.sql(study.store, text.format(secret=tmp_path / "secret.csv", folder=tmp_path))
    assert len(str(caught.value).splitlines()) == 1
    assert "hunter2" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_a_misspelt_column_is_one_line_with_the_choices(study):
    with pytest.raises(SpecError, match=r'msee.*Candidate bindings.*"mse"') as caught:
        query.sql(study.store, "select msee from trials")
    assert "\n" not in str(caught.value)


def test_a_query_changes_nothing(study):
    before = {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*")}
    for text in (
        "drop view trials",
        "delete from trials",
        "update trials set mse = 0",
        "create table t as from trials",
    ):
        with contextlib.suppress(SpecError):
            query.sql(study.store, text)
    assert {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*")} == before
    assert ask(study, "select count(*) from trials") == [(13,)]


@pytest.mark.parametrize(
    "text", ["selec 1", "select nothing from trials", "from nowhere", "select 'open", "select 1 +"]
)
def test_bad_sql_is_one_line(study, text):
    with pytest.raises(SpecError) as caught:
        query.sql(study.store, text)
    assert str(caught.value).startswith("query: ")
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "  ", "-- nothing"])
def test_no_question_is_one_line(study, text):
    with pytest.raises(SpecError, match="only questions are answered"):
        query.sql(study.store, text)


def test_no_store_is_one_line(tmp_path):
    with pytest.raises(StoreError, match="is not a store"):
        query.sql(Store(tmp_path), "select 1")


# -- formats -----------------------------------------------------------------------------------------------------------

COLUMNS = "trial_id, sweep, seed, lambda_c, mse, status, started_at"


def asked(study):
    return query.sql(study.store, f"select {COLUMNS} from trials order by sweep, trial_id")


def test_csv_comes_back(study):
    answer = asked(study)
    text = query.to_format(answer, "csv")
    assert text.splitlines()[0] == COLUMNS.replace(" ", "")
    back = pd.read_csv(io.StringIO(text), parse_dates=["started_at"])
    wanted = answer.to_pandas()
    for column in ("trial_id", "sweep", "seed", "status"):
        assert back[column].tolist() == wanted[column].tolist()
    for column in ("lambda_c", "mse"):
        assert back[column].fillna(-1).tolist() == wanted[column].fillna(-1).tolist(), "to the last digit"
    assert (back["started_at"] == wanted["started_at"]).all()


def test_json_comes_back(study):
    answer = asked(study)
    text = query.to_format(answer, "json")
    assert text.endswith("]\n")
    back, wanted = json.loads(text), answer.to_pylist()
    assert [list(row) for row in back] == [list(row) for row in wanted]
    for row, original in zip(back, wanted, strict=True):
        assert {k: row[k] for k in ("trial_id", "sweep", "seed", "status", "lambda_c")} == {
            k: original[k] for k in ("trial_id", "sweep", "seed", "status", "lambda_c")
        }
        assert (row["mse"] is None) == (original["mse"] is None)
        assert row["mse"] is None or row["mse"] == pytest.approx(original["mse"], rel=1e-9)
        assert pd.Timestamp(row["started_at"]).floor("ms") == pd.Timestamp(original["started_at"]).floor("ms")


def test_json_keeps_every_digit(study):
    answer = query.sql(study.store, "select 0.12345678901234566::double as x")
    assert json.loads(query.to_format(answer, "json")) == [{"x": 0.12345678901234566}]


def test_maps_are_mappings(study):
    answer = query.sql(study.store, "select weights, metrics from trials where lambda_c = 0.02 and sweep = 'tiny'")
    ((row),) = json.loads(query.to_format(answer, "json"))
    assert row["weights"] == {"classification": 0.02, "distortion": 1.0}
    assert set(row["metrics"]) == {"mse_kmeans", "val_mse_kmeans"}
    assert query.frame(answer)["weights"][0] == {"classification": 0.02, "distortion": 1.0}


def test_parquet_comes_back(study):
    answer = query.sql(study.store, "select * from trials")
    back = pq.read_table(io.BytesIO(query.to_format(answer, "parquet")))
    assert back.equals(answer)
    assert back.num_rows == 13


def test_nothing_is_a_table_too(study):
    answer = query.sql(study.store, "select trial_id, mse from trials where false")
    assert query.to_format(answer, "csv") == "trial_id,mse\n"
    assert json.loads(query.to_format(answer, "json")) == []
    assert pq.read_table(io.BytesIO(query.to_format(answer, "parquet"))).column_names == ["trial_id", "mse"]


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("select 1 as a, 2 as a", "json"),
        ("select interval '1 day' as x", "json"),
        ("select interval '1 day' as x", "parquet"),
        ("select bitstring '101' as x", "json"),
    ],
)
def test_what_a_format_cannot_hold_is_one_line(study, text, style):
    answer = query.sql(study.store, text)
    with contextlib.suppress(SpecError):
        assert query.to_format(answer, style)


def test_through_the_command_line(study):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "urc_sweep", "query", "--store", str(study.store.root), *words]
        return subprocess.run(command, capture_output=True, text=True)

    text = "select sweep, count(*) as n from trials group by sweep order by sweep"
    done = run(text, "--format", "csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "sweep,n\ntiny,6\nwide,7\n", "")
    done = run("select * from read_csv('/etc/passwd')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("urc-sweep: query: Permission Error: ")
    assert len(done.stderr.splitlines()) == 1
    done = run(text, "--format", "xml")
    assert done.stderr == "urc-sweep: --format xml: choices: csv, json, parquet, table\n"
