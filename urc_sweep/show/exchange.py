"""A sweep in the forms of other tools: CompressAI's result files (out and in), MLflow and TensorBoard (out).

Invariant: an export writes only names that nobody else gives, replaces them whole when it is run again, and opens no
connection. Final numbers are test values; ``val_*`` are of the validation split. Needed packages are optional extras.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sqlite3
import tempfile
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from urc_sweep.errors import SpecError, StoreError
from urc_sweep.maths.ids import digest
from urc_sweep.plan.spec import stage_label
from urc_sweep.show import facts
from urc_sweep.store.commits import Store, bytes_of

MAX_REFERENCE_BYTES = 2**20  # the published files have 4 kB
# CompressAI's names that mean the same as ours. Its MSE is of 8-bit pixels, its MS-SSIM is another measure than SSIM.
OURS = {"bpp": "bits_per_pixel", "psnr": "psnr_db", "psnr-rgb": "psnr_db"}
THEIRS = {axis: "psnr-rgb" if axis == "psnr_db" else axis for axis in facts.AXES if axis not in facts.RATE_AXES}
PARAMETERS = ["stage", "variant", "seed", *facts.RATE, *facts.WEIGHTS, "parent_lambda_c", "parent_lambda_p"]
PARAMETERS += ["parent_id", "dataset", "model", "width", "protocol", "precision", "epochs"]
MLFLOW_STATUS = {"done": "FINISHED", "running": "RUNNING", "pending": "SCHEDULED", "stopped": "KILLED"}
DATABASE, EVENTS = "urc-sweep-mlflow.db", "events.out.tfevents.urc-sweep"

# A trial as trackers take it: points are (name, value, time, epoch), times in seconds since 1970, 0 if there is none.
_Run = namedtuple("_Run", "name parameters tags points image start end")


class Reference(NamedTuple):
    """A codec's curve: equally long lists of numbers by metric, ours where they mean the same, else the file's."""

    name: str
    values: Mapping[str, list[float]]


def compressai(store: Store, sweep: str, path: Path) -> list[Path]:
    """Write ``SWEEP@CURVE.json`` files to the folder ``path``, as ``compressai.utils.plot`` reads them; return them.

    A curve is one stage, variant, set of weights and frozen encoder over rates, lowest first: means over seeds of test
    values. ``bpp`` is the nominal rate per pixel, ``psnr-rgb`` that of the mean MSE (CompressAI's is the mean of the
    images' PSNR, which is no less), other metrics have our names and units. ``meta`` has, per rate, the number of
    seeds, their standard deviation, and how many of them are worse than zero rate.
    """
    points = facts.fronts(facts.load(store, sweep)).rename(columns=THEIRS)
    rows = facts.records(points)
    named = {row["trial_id"]: _curve_name(row) for row in rows}
    bases = [named.get(parent, parent[:12]) for parent in points["parent_id"].fillna("")]
    curves = [" on ".join(filter(None, [_curve_name(row), base])) for row, base in zip(rows, bases, strict=True)]
    points = points.assign(curve=curves)
    points = points[points["mse"].notna() & points["bits_per_pixel"].notna()]
    if points.empty:
        raise SpecError(f"{sweep}: no trial is done whose images have a known size: no rate per pixel to export")
    written = []
    for curve, group in points.groupby("curve"):
        rates = group.groupby(["bits_per_pixel", *facts.RATE, "reduced_from"], dropna=False)
        values = rates[[axis for axis in THEIRS.values() if (group[axis].abs() < float("inf")).all()]]
        means, spreads = values.mean(), values.std().astype(object)
        counts = rates.agg(seeds=("seed", "nunique"), worse_than_rate0=("worse_than_rate0", "sum")).to_dict("list")
        meta = counts | {"standard_deviation": spreads.where(spreads.notna(), None).to_dict("list")}
        about = f"{group['dataset'].iloc[0]}, test split, means over seeds; bpp is the nominal rate"
        means.insert(0, "bpp", means.index.get_level_values(0))
        document = {"name": f"{sweep} {curve}", "description": about, "results": means.to_dict("list"), "meta": meta}
        slug = re.sub(r"[^A-Za-z0-9=.]+", "-", str(curve))[:120]
        written.append(path / f"{sweep}@{slug}-{digest(str(curve).encode())[:8]}.json")
        with _whole(written[-1]) as private:
            private.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    _drop(path.glob(f"{sweep}@*-{'[0-9a-f]' * 8}.json"), written)
    return written


def _curve_name(row: Mapping[str, Any]) -> str:
    weights = " ".join(f"{term}={weight:.12g}" for term, weight in sorted((row["weights"] or {}).items()))
    weights = re.sub(r"\b(c|d|p)(lassification|istortion|erception)\b", r"\1", weights)  # the paper's indices
    return " ".join(filter(None, [stage_label(row["stage"]), row["variant"], weights]))


def reference(path: Path) -> Reference:
    """Return the curve in a file of CompressAI's format (its published results, or an export of ours).

    Metrics named like ours are taken from our exports alone: another's ``mse`` is of 8-bit pixels.
    At most 1 MiB, finite numbers only, ``bpp`` among them, all lists equally long; lists of text are left out. Else a
    ``SpecError`` names the file, the key and what is expected.
    """
    try:
        document = json.loads(bytes_of(path, MAX_REFERENCE_BYTES))
        ours = "seeds" in (document.get("meta") or ())
        results = document.get("results", {key: value for key, value in document.items() if isinstance(value, list)})
        columns, count, name = sorted(results.items()), len(results["bpp"]), document.get("name", path.stem) + ""
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise SpecError(f'{path}: expected {{"name": text, "results": {{"bpp": [numbers], ...}}}}') from None
    values: dict[str, list[float]] = {}
    for key, column in columns:  # sorted: psnr-rgb replaces psnr, which CompressAI does not read
        if not isinstance(column, list) or len(column) != count:
            raise SpecError(f"{path}: results.{key}: expected a list of numbers, as long as that of bpp")
        if key == "bpp" or not all(isinstance(value, str) for value in column):
            if not all(type(value) in (int, float) and abs(value) < 1e300 for value in column):
                raise SpecError(f"{path}: results.{key}: expected finite numbers only")
            if ours or key not in facts.AXES:
                values[OURS.get(key, key)] = [float(value) for value in column]
    return Reference(name, values)


def _runs(store: Store, sweep: str) -> Iterator[_Run]:
    trials = facts.load(store, sweep).astype({"dim": "Int64", "levels": "Int64"})
    lines = dict(list((curves := facts.load_curves(store, sweep)).groupby("trial_id")))
    metrics = [name for name in trials if f"val_{name}" in trials or str(name).startswith("val_")]
    for row in facts.records(trials):
        known = {key: value for key, value in row.items() if not isinstance(value, dict) and pd.notna(value)}
        start, end = (known[at].timestamp() if at in known else 0.0 for at in ("started_at", "finished_at"))
        finals = {key: known.pop(key) for key in metrics if key in known} | (row["metrics"] or {})
        line = lines.get(row["trial_id"], curves[:0])
        names, times = line["split"] + "/" + line["metric"], start + line["wall_s"].fillna(0)
        points = list(zip(names, line["value"], times, line["epoch"], strict=True))
        points += [(f"final/{key}", value, end, known.get("epochs", 0)) for key, value in finals.items()]
        parameters = {key: known.pop(key) for key in PARAMETERS if key in known}
        parameters |= {f"weight.{term}": weight for term, weight in (row["weights"] or {}).items()}
        image = b""
        with contextlib.suppress(StoreError):  # `verify` is the place that complains
            image = store.get(row["samples_sha256"], ".png")
        yield _Run(f"{row['stage']}-{row['trial_id'][:12]}", parameters, known, points, image, start, end)


def mlflow(store: Store, sweep: str, path: Path) -> Path:
    """Write the SQLite store ``path/SWEEP/urc-sweep-mlflow.db`` and ``artifacts`` beside it; return the first.

    One run per trial: parameters (also the configuration, flattened), training metrics by epoch and final ones, tags,
    sample images. ``mlflow ui --backend-store-uri sqlite:///FILE`` shows it; images are found while the folder stays
    where it is. What was logged to that file by others goes when the export is run again.
    """
    # MLflow looks at it whenever something is about to be sent: this also holds where it is imported already.
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    names = ("mlflow.tracking", "mlflow.entities", "mlflow.exceptions", "sqlalchemy.event", "sqlalchemy.pool")
    client, entities, errors, event, pools = (_need(name, "mlflow") for name in names)
    database, images = path.resolve() / sweep / DATABASE, []
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        event.listen(pools.Pool, "connect", _unsynced)  # seven commits per trial, each synced, took 0.25 s
        stack.callback(event.remove, pools.Pool, "connect", _unsynced)
        tracking = client.MlflowClient(f"sqlite:///{scratch}/{DATABASE}")
        experiment = tracking.create_experiment(sweep, (database.parent / "artifacts").as_uri())
        for run in _runs(store, sweep):
            config = pd.json_normalize(json.loads(run.tags.pop("config_json", "{}"))).add_prefix("config.").iloc[0]
            params = [entities.Param(key, str(value)) for key, value in (run.parameters | dict(config)).items()]
            metrics = [entities.Metric(key, value, int(at * 1e3), step) for key, value, at, step in run.points]
            tags = {f"urc_sweep.{key}": str(value)[:5000] for key, value in run.tags.items()}
            status = MLFLOW_STATUS.get(run.tags["status"], "FAILED")
            try:
                made = tracking.create_run(experiment, int(run.start * 1e3), tags, run.name).info.run_id
                for i in range(1 + max(len(metrics) // 900, len(params) // 100)):  # it takes 1,000, of them 100 texts
                    tracking.log_batch(made, metrics[i * 900 : i * 900 + 900], params[i * 100 : i * 100 + 100])
            except errors.MlflowException as error:
                raise SpecError(f"{sweep}: {run.name}: MLflow takes it not: {error}") from None
            if run.image:
                Path(scratch, "samples.png").write_bytes(run.image)
                tracking.log_artifact(made, f"{scratch}/samples.png")
                images.append(database.parent / "artifacts" / made / "artifacts" / "samples.png")
            if run.end:
                tracking.set_terminated(made, status, int(run.end * 1e3))
            else:
                tracking.update_run(made, status)
        with _whole(database) as private, contextlib.closing(sqlite3.connect(f"{scratch}/{DATABASE}")) as built:
            built.execute("VACUUM INTO ?", [str(private)])
    _drop(database.parent.glob("artifacts/*/artifacts/samples.png"), images)
    return database


def _unsynced(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def tensorboard(store: Store, sweep: str, path: Path) -> Path:
    """Write the log folder ``path/SWEEP`` for ``tensorboard --logdir`` and return it.

    One run per trial: training metrics by epoch and true time, final ones as ``final/*``, parameters for the HPARAMS
    tab, sample images.
    """
    names = ("compat.proto.event_pb2", "summary.writer.record_writer", "plugins.hparams.summary_v2")
    event, records, hparams = (_need(f"tensorboard.{name}", "tensorboard") for name in names)
    folder, written = path / sweep, []
    for run in _runs(store, sweep):
        begin = hparams.hparams_pb(run.parameters | {"status": run.tags["status"]}, run.tags["trial_id"], run.start)
        values = [(at, step, {"tag": name, "simple_value": value}) for name, value, at, step in run.points]
        if run.image:
            values.append((run.end, 0, {"tag": "samples", "image": {"encoded_image_string": run.image}}))
        logged = [{"wall_time": run.start, "file_version": "brain.Event:2"}, {"wall_time": run.start, "summary": begin}]
        logged += [{"wall_time": at, "step": step, "summary": {"value": [value]}} for at, step, value in values]
        written.append(folder / re.sub(r"[^A-Za-z0-9_-]", "_", run.name) / EVENTS)
        with _whole(written[-1]) as private, private.open("wb") as file:
            writer = records.RecordWriter(file)
            for fields in logged:
                writer.write(event.Event(**fields).SerializeToString())
    _drop(folder.glob(f"*/{EVENTS}"), written)
    return folder


def lacking(error: ImportError, extra: str) -> SpecError:
    """Return what to say where a package of an optional extra is missing."""
    name = (error.name or extra).split(".")[0]
    return SpecError(f"{name} is not installed: pip install '.[{extra}]' in the checkout of urc-sweep")


def _need(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise lacking(error, extra) from None


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a private name beside ``path`` that becomes ``path`` unless something goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    private = path.with_name(f".urc-sweep-{os.getpid()}")
    try:
        yield private
        os.replace(private, path)
    finally:
        private.unlink(missing_ok=True)


def _drop(ours: Iterable[Path], kept: list[Path]) -> None:
    """Remove the files of an earlier export that are not of this one, and their folders if nothing else is in them."""
    for path in set(ours) - set(kept):
        path.unlink(missing_ok=True)
        for folder in path.parents[:2]:
            with contextlib.suppress(OSError):
                folder.rmdir()
