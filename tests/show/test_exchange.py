"""What other tools read of a sweep, read back by those tools; what a stranger's reference file may be."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urc_sweep.errors import SpecError
from urc_sweep.show import exchange, facts
from urc_sweep.store import query
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import CURVES, TRIALS, to_bytes

RELEASED = Path(__file__).parents[1] / "store" / "first_release"
HOSTILE = "../../<b>\x1b[31m"


def trial(number: int, dim: int, seed: int, mse: float, **more: Any) -> dict[str, Any]:
    row = {"trial_id": f"{number:064x}", "stage": "end_to_end", "status": "done", "dataset": "digits", "seed": seed}
    row |= {"dim": dim, "levels": 3, "rate_bits": dim * math.log2(3), "mse": mse, "psnr_db": -10 * math.log10(mse)}
    row |= {"val_mse": mse, "val_cross_entropy": 1.0, "epochs": 2, "variant": "", "metrics": []}
    return row | {"weights": [("classification", 0.01), ("distortion", 1.0)]} | more


def store_of(folder: Path, rows: list[dict[str, Any]], sweep: str = "s") -> Store:
    store = Store(folder)
    store.create()
    store.replace(store.layout.trials_table(sweep), to_bytes(pa.Table.from_pylist(rows, TRIALS)))
    store.replace(store.layout.curves(sweep) / "part-00000.parquet", to_bytes(CURVES.empty_table()))
    return store


def documents(paths: list[Path]) -> dict[str, Any]:
    return {document["name"]: document for document in map(json.loads, map(Path.read_bytes, paths))}


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("an export looks for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# -- CompressAI --------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_over_seeds_over_rates(tmp_path: Path):
    rows = [trial(10 * dim + seed, dim, seed, 0.06 / dim + 0.01 * seed) for dim in (3, 1) for seed in (0, 1, 2)]
    frozen = {"stage": "universal", "parent_id": rows[0]["trial_id"], "weights": [("distortion", 1.0)]}
    rows.append(trial(1, 3, 0, 0.03, **frozen))
    rows.append(trial(2, 3, 0, 0.01, status="diverged"))
    found = documents(exchange.compressai(store_of(tmp_path / "store", rows), "s", tmp_path / "out"))
    assert sorted(found) == ["s end-to-end c=0.01 d=1", "s universal d=1 on end-to-end c=0.01 d=1"]
    curve = found["s end-to-end c=0.01 d=1"]
    assert curve["results"]["bpp"] == pytest.approx([math.log2(3) / 784, 3 * math.log2(3) / 784])
    assert curve["results"]["mse"] == pytest.approx([0.07, 0.03])
    assert curve["results"]["psnr-rgb"] == pytest.approx(
        [sum(-10 * math.log10(base + 0.01 * seed) for seed in range(3)) / 3 for base in (0.06, 0.02)]
    )
    assert "accuracy" not in curve["results"]  # nobody measured it
    assert curve["meta"]["seeds"] == [3, 3]
    assert curve["meta"]["standard_deviation"]["mse"] == pytest.approx([0.01, 0.01])
    alone = found["s universal d=1 on end-to-end c=0.01 d=1"]["meta"]
    assert (alone["seeds"], alone["standard_deviation"]["mse"]) == ([1], [None])


def test_encoders_of_two_rates_are_no_seeds_of_each_other(tmp_path: Path):
    rows = [trial(1, 2, 0, 0.03), trial(2, 3, 0, 0.02)]
    rows += [trial(3 + n, 1, 0, 0.04 + 0.01 * n, stage="reduced", parent_id=rows[n]["trial_id"]) for n in (0, 1)]
    found = documents(exchange.compressai(store_of(tmp_path / "store", rows), "s", tmp_path / "out"))
    reduced = found["s reduced c=0.01 d=1 on end-to-end c=0.01 d=1"]
    assert reduced["results"]["mse"] == [0.04, 0.05]
    assert reduced["meta"]["seeds"] == [1, 1]


def test_an_export_again_replaces_its_own_files_and_no_others(tmp_path: Path):
    out = tmp_path / "out"
    first = exchange.compressai(store_of(tmp_path / "a", [trial(1, 2, 0, 0.03, variant=HOSTILE)]), "s", out)
    others = [out / "notes.json", out / "s@mine.json", out / f"t@{first[0].name[2:]}"]
    for other in others:
        other.write_text("{}")
    assert [path.parent for path in first] == [out]
    second = exchange.compressai(store_of(tmp_path / "b", [trial(1, 2, 0, 0.03)]), "s", out)
    assert sorted(out.iterdir()) == sorted([*second, *others])


def test_nothing_done_is_one_line(tmp_path: Path):
    store = store_of(tmp_path / "store", [trial(1, 2, 0, 0.03, status="running")])
    with pytest.raises(SpecError, match=r"^s: no trial is done"):
        exchange.compressai(store, "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()


VALUES = st.floats(1e-9, 1e9)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=5))
def test_what_goes_out_comes_in_equal(tmp_path_factory: pytest.TempPathFactory, columns: list[tuple[float, ...]]):
    folder = tmp_path_factory.mktemp("round")
    names = ("psnr_db", "ssim", "cross_entropy")
    rows = [trial(n, n + 1, 0, 0.01, **dict(zip(names, column, strict=True))) for n, column in enumerate(columns)]
    table = query.frame(pa.Table.from_pylist(rows, TRIALS))
    with mock.patch.object(facts, "load", return_value=table):
        (path,) = exchange.compressai(Store(folder), "s", folder)
    name, values = exchange.reference(path)
    assert name == "s end-to-end c=0.01 d=1"
    assert values["bits_per_pixel"] == facts.fronts(table)["bits_per_pixel"].tolist()
    assert [tuple(row) for row in zip(*(values[name] for name in names), strict=True)] == columns


def test_a_published_file_keeps_what_means_something_else(tmp_path: Path):
    path = tmp_path / "vtm.json"
    results = {
        "psnr-rgb": [26.1, 28],
        "ms-ssim-rgb": [0.86, 0.91],
        "bpp": [0.05, 0.11],
        "q": ["a", "b"],
        "psnr": [1, 2],
    }
    path.write_text(json.dumps({"name": "VTM", "description": "x", "meta": {"type": "image"}, "results": results}))
    name, values = exchange.reference(path)
    assert name == "VTM"
    assert values == {"bits_per_pixel": [0.05, 0.11], "psnr_db": [26.1, 28.0], "ms-ssim-rgb": [0.86, 0.91]}
    path.write_text(json.dumps({"description": "flat", "bpp": [1], "psnr-rgb": [30.5]}))
    assert exchange.reference(path) == ("vtm", {"bits_per_pixel": [1.0], "psnr_db": [30.5]})


def test_an_mse_is_per_pixel_of_ours_only_in_our_files(tmp_path: Path):
    path = tmp_path / "codec.json"
    results = {"bpp": [0.1], "mse": [51.2], "accuracy": [0.9], "psnr": [31.0]}
    for meta in ({"type": "image"}, None, "text"):
        path.write_text(json.dumps({"name": "codec", "meta": meta, "results": results}))
        assert exchange.reference(path).values == {"bits_per_pixel": [0.1], "psnr_db": [31.0]}
    (path,) = exchange.compressai(store_of(tmp_path / "store", [trial(1, 2, 0, 0.03, accuracy=0.9)]), "s", tmp_path)
    ours = exchange.reference(path).values
    assert (ours["mse"], ours["accuracy"]) == ([0.03], [0.9])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "bpp"),
        ("[1]", "bpp"),
        ("[" * 100_000, "bpp"),
        ('{"results": [1]}', "bpp"),
        ('{"results": {"psnr": [1]}}', "bpp"),
        ('{"results": {"bpp": 1}}', "bpp"),
        ('{"name": 1, "results": {"bpp": [1]}}', "name"),
        ('{"results": {"bpp": ["a"]}}', r"results\.bpp: .* finite"),
        ('{"results": {"bpp": "ab"}}', r"results\.bpp: .* list"),
        ('{"results": {"bpp": [1], "psnr": [1, 2]}}', r"results\.psnr: .* as long"),
        ('{"results": {"bpp": [1], "psnr": {"0": 1}}}', r"results\.psnr: .* list"),
        ('{"results": {"bpp": [1], "psnr": [NaN]}}', r"results\.psnr: .* finite"),
        ('{"results": {"bpp": [1], "psnr": [-Infinity]}}', r"results\.psnr: .* finite"),
        ('{"results": {"bpp": [1], "psnr": [1' + "0" * 400 + "]}}", r"results\.psnr: .* finite"),
        ('{"results": {"bpp": [1], "psnr": [true]}}', r"results\.psnr: .* finite"),
        ('{"results": {"bpp": [1, 2], "psnr": ["a", 2]}}', r"results\.psnr: .* finite"),
        ('{"results": {"bpp": [1], "\x1b[31m": [null]}}'.replace("\x1b", "\\u001b"), "finite"),
        (" " * (exchange.MAX_REFERENCE_BYTES + 1), "at most"),
    ],
)
def test_a_wrong_reference_is_one_line(tmp_path: Path, text: str, told: str):
    path = tmp_path / "codec.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=told) as caught:
        exchange.reference(path)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith(str(path))
    assert caught.value.lines[0].isprintable()


def test_a_missing_reference_is_one_line(tmp_path: Path):
    with pytest.raises(SpecError, match=r"nowhere\.json: cannot be read: No such file"):
        exchange.reference(tmp_path / "nowhere.json")


# -- MLflow and TensorBoard --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("export", "module"),
    [("mlflow", "mlflow.tracking"), ("mlflow", "sqlalchemy.event"), ("tensorboard", "tensorboard.compat.proto")],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path: Path, monkeypatch, export, module):
    for name in (module, f"{module}.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("mlflow.tracking", "mlflow.entities", "mlflow.exceptions"):  # where it is not installed either
        if module == "sqlalchemy.event":
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    told = rf"^{module.split('.')[0]} is not installed: pip install '\.\[{export}\]' in the checkout of urc-sweep$"
    with pytest.raises(SpecError, match=told):
        getattr(exchange, export)(Store(RELEASED), "small", tmp_path)


def test_mlflow_reads_every_trial(tmp_path: Path, monkeypatch, offline):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    out = tmp_path / "a folder 100%"
    for _ in range(2):  # the second replaces the first
        database = exchange.mlflow(Store(RELEASED), "small", out)
        (database.parent / "mine.txt").touch()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"  # MLflow sends nothing from a test anyway
    table = facts.load(Store(RELEASED), "small").set_index("trial_id")
    client = tracking.MlflowClient(f"sqlite:///{database}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "small"]
    runs = {run.data.tags["urc_sweep.trial_id"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(table.index)
    assert [runs[trial].info.status == "FINISHED" for trial in table.index] == (table["status"] == "done").tolist()
    best = table.query("stage == 'universal' and status == 'done'").iloc[-1]
    run = runs[best.name]
    assert run.data.params["parent_id"] == best["parent_id"]
    assert [run.data.params[key] for key in ("stage", "dim", "lambda_c")] == ["universal", "2", "0.01"]
    assert run.data.params["config.train.batch_size"] == "64"
    assert run.data.metrics["final/mse"] == best["mse"]
    assert run.data.metrics["final/val_cross_entropy"] == best["val_cross_entropy"]
    assert run.info.end_time == int(best["finished_at"].timestamp() * 1000)
    curves = facts.load_curves(Store(RELEASED), "small").query("trial_id == @best.name and split == 'train'")
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(points) == curves.query("metric == 'loss'")[["epoch", "value"]].apply(tuple, axis=1).tolist()
    image = Path(client.download_artifacts(run.info.run_id, "samples.png", str(tmp_path)))
    assert image.read_bytes() == Store(RELEASED).get(best["samples_sha256"], ".png")
    assert len(list(database.parent.glob("artifacts/*"))) == table["samples_sha256"].notna().sum()
    assert {path.name for path in database.parent.iterdir()} == {database.name, "artifacts", "mine.txt"}


def test_tensorboard_reads_every_trial(tmp_path: Path, offline):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
    )
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    old = tmp_path / "small" / "universal-000000000000" / exchange.EVENTS
    old.parent.mkdir(parents=True)
    old.touch()
    for _ in range(2):
        folder = exchange.tensorboard(Store(RELEASED), "small", tmp_path)
    table = facts.load(Store(RELEASED), "small")
    curves = facts.load_curves(Store(RELEASED), "small")
    assert sorted(path.name for path in folder.iterdir()) == sorted(table["stage"] + "-" + table["trial_id"].str[:12])
    for row in facts.records(table):
        run = accumulators.EventAccumulator(str(folder / f"{row['stage']}-{row['trial_id'][:12]}")).Reload()
        own = curves[
            (curves["trial_id"] == row["trial_id"]) & (curves["split"] == "train") & (curves["metric"] == "loss")
        ]
        scalars = run.Scalars("train/loss")
        assert [(point.step, point.value) for point in scalars] == [
            (epoch, pytest.approx(value, rel=1e-6, nan_ok=True))
            for epoch, value in zip(own["epoch"], own["value"], strict=True)
        ]
        elapsed = [point.wall_time - row["started_at"].timestamp() for point in scalars]
        assert elapsed == pytest.approx(own["wall_s"].tolist(), abs=1e-4)
        begin = run.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        hparams = plugin.HParamsPluginData.FromString(begin).session_start_info.hparams
        assert hparams["status"].string_value == row["status"]
        if row["status"] == "done" and row["stage"] == "universal":
            assert run.Scalars("final/mse")[0].value == pytest.approx(row["mse"], rel=1e-6)
            assert hparams["lambda_c"].number_value == row["lambda_c"]
            (image,) = run.Images("samples")
            assert image.encoded_image_string == Store(RELEASED).get(row["samples_sha256"], ".png")


def test_names_lead_nowhere(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    store = store_of(tmp_path / "store", [trial(1, 2, 0, 0.03, stage=HOSTILE, variant=HOSTILE)])
    folder = exchange.tensorboard(store, "s", tmp_path / "out")
    (run,) = folder.iterdir()
    assert [path.name for path in run.iterdir()] == [exchange.EVENTS]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s"]
