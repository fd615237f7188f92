"""The Parquet tables: projections of commits that any launch can rebuild. Plain files that pandas opens at any instant.

``trials`` is one file per sweep, replaced whole. ``curves`` is numbered parts: the last one is replaced as it grows,
and once it is large the next number begins. A row never moves between parts, so no reader sees it twice or not at all.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from urc_sweep.errors import StoreError
from urc_sweep.maths.ids import content_id
from urc_sweep.plan.spec import preset_of
from urc_sweep.plan.trials import Trial, variants
from urc_sweep.store.commits import Record, Store

ROWS_PER_PART = 200_000
SCHEMA_VERSION = 2  # raise when columns are added: the next launch republishes every sweep's tables

METRICS = {
    "mse": "mean squared error per pixel, 0-1 scale",
    "psnr_db": "dB",
    "ssim": "1",
    "cross_entropy": "nats",
    "accuracy": "fraction",
    "heldout_cross_entropy": "nats",
    "heldout_accuracy": "fraction",
    "critic_gap": "1",
    "fresh_critic_gap": "1",
    "sliced_w2": "pixel scale 0-1",
    "index_entropy_bits": "bits",
    "mse_centroid": "mean squared error per pixel, 0-1 scale",
    "latent_label_entropy": "nats",
    "latent_accuracy": "fraction",
    "mse_se": "standard error over images",
}
LAMBDAS = {"lambda_d": "distortion", "lambda_c": "classification", "lambda_p": "perception"}
FAILED = ("failed", "diverged", "oom")

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_TIME, _MAP = pa.timestamp("us", tz="UTC"), pa.map_(pa.string(), pa.float64())
_BEFORE = (
    "trial_id stage parent_id classifier_id heldout_classifier_id encoder_sha256 decoder_sha256 samples_sha256 "
    "originals_sha256 dataset model"
)


def _field(name: str, kind: pa.DataType, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"unit": unit} if unit else None)


TRIALS = pa.schema(
    [
        *(_field(name, _TEXT) for name in _BEFORE.split()),
        *(_field("width", _FLOAT), _field("protocol", _TEXT), _field("variant", _TEXT), _field("precision", _TEXT)),
        *(_field("dim", _INT), _field("levels", _INT), _field("rate_bits", _FLOAT, "bits"), _field("seed", _INT)),
        *(_field(name, _FLOAT) for name in (*LAMBDAS, "parent_lambda_c", "parent_lambda_p")),
        *(_field(name, _TEXT) for name in ("status", "error_type", "error_message")),
        *(_field("attempt", _INT), _field("epochs", _INT)),
        *(_field(name, _FLOAT, unit) for name, unit in METRICS.items()),
        *(_field(f"val_{name}", _FLOAT, unit) for name, unit in METRICS.items()),
        *(_field("started_at", _TIME), _field("finished_at", _TIME), _field("wall_s", _FLOAT, "s")),
        *(_field("device", _TEXT), _field("host", _TEXT), _field("pack_lanes", _INT)),
        *(_field(name, _TEXT) for name in ("config_json", "code_version", "git_sha", "torch_version", "cached_from")),
        *(_field("weights", _MAP), _field("metrics", _MAP)),
    ]
)
CURVES = pa.schema(
    [
        *(_field("trial_id", _TEXT), _field("epoch", _INT), _field("split", _TEXT), _field("metric", _TEXT)),
        *(_field("value", _FLOAT), _field("wall_s", _FLOAT, "s")),
    ]
)


class Projection:
    """Status and rows of one sweep, derived from its plan and from commits and failures."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.generation = store.generation(name)
        self.trials = [Trial.from_json(value) for value in self.generation["trials"]]
        self.by_id = {trial.id: trial for trial in self.trials}
        self.variants = variants(self.trials)
        self._failures: dict[str, list[Record]] = {}

    def statuses(self, running: Iterable[str] = (), stopped: bool = False) -> dict[str, str]:
        """Return the status of every trial, in plan order (needed trials come first in the plan)."""
        live, lost, statuses = set(running), (*FAILED, "skipped"), {}
        for trial in self.trials:
            if self.done(trial):
                statuses[trial.id] = "done"
            elif trial.id in live:
                statuses[trial.id] = "running"
            elif final := self.final_failure(trial.id):
                statuses[trial.id] = final["status"]
            elif any(statuses.get(need) in lost and not self.store.committed(need) for need in trial.required):
                statuses[trial.id] = "skipped"
            else:
                statuses[trial.id] = "stopped" if stopped else "pending"
        return statuses

    def done(self, trial: Trial) -> bool:
        """Return whether a trial is trained and evaluated."""
        return all(self.store.committed(commit_id) for commit_id in (trial.id, trial.evaluation_id))

    def final_failure(self, trial_id: str) -> Record | None:
        """Return the failure that ended a trial, ``None`` while attempts are left or it was reopened."""
        if trial_id not in self._failures:
            self._failures[trial_id] = self.store.failures(trial_id)
        attempts = self._failures[trial_id]
        return attempts[-1] if attempts and attempts[-1]["final"] else None

    def forget(self, trial_id: str) -> None:
        """Read a trial's failures anew next time."""
        self._failures.pop(trial_id, None)

    def rows(self, statuses: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return one ``trials`` row per trial of the sweep."""
        return [self._row(trial, statuses[trial.id]) for trial in self.trials]

    def curve(self, trial_id: str) -> list[list[Any]]:
        """Return a finished trial's curve: epoch, split, metric, value, wall_s."""
        record = self.store.committed(trial_id) or self.final_failure(trial_id) or {}
        points: list[list[Any]] = record.get("curve", [])
        return points

    def source(self) -> str:
        """Return a hash of everything the tables are made from."""
        facts = []
        for trial in self.trials:
            ids = [trial.id, trial.evaluation_id]
            committed = [bool(self.store.committed(commit_id)) for commit_id in ids]
            facts.append([*ids, *committed, len(self.store.failures(trial.id))])
        return content_id("tables", [SCHEMA_VERSION, self.name, facts])

    def _row(self, trial: Trial, status: str) -> dict[str, Any]:
        config, weights = trial.config, trial.weights
        training = self.store.committed(trial.id) or {}
        evaluation = self.store.committed(trial.evaluation_id) or {}
        failure = {} if training and evaluation else self.final_failure(trial.id) or {}
        ran = training or failure
        parent = self.by_id.get(trial.needs.get("encoder", ""))
        network = config.get("model") or config["network"]
        trained = parent.config if parent and trial.stage == "joint_decoder" else config
        values = {**evaluation.get("metrics", {}).get("test", {})}
        values |= {f"val_{key}": value for key, value in evaluation.get("metrics", {}).get("validation", {}).items()}
        others = values.keys() - set(TRIALS.names)
        row = {
            "trial_id": trial.id,
            "stage": trial.stage,
            "parent_id": trial.needs.get("encoder"),
            "classifier_id": trial.evaluators.get("classifier"),
            "heldout_classifier_id": trial.evaluators.get("heldout_classifier"),
            "encoder_sha256": training.get("artifacts", {}).get("encoder") or training.get("used", {}).get("encoder"),
            "decoder_sha256": training.get("artifacts", {}).get("decoder") or training.get("used", {}).get("decoder"),
            **{key: evaluation.get(key) for key in ("samples_sha256", "originals_sha256")},
            "dataset": config["dataset"]["name"],
            "model": network["name"],
            "width": network.get("width"),
            "protocol": preset_of(trained["protocol"], config["dataset"]["name"]) if "protocol" in config else None,
            "variant": self.variants[trial.id],
            "precision": trial.setting("train", "precision"),
            "dim": trial.rate.dim if trial.rate else None,
            "levels": trial.rate.levels if trial.rate else None,
            "rate_bits": trial.rate_bits,
            "seed": trial.seed,
            **{column: weights.get(term) for column, term in LAMBDAS.items()},
            "parent_lambda_c": parent.weights.get("classification") if parent else None,
            "parent_lambda_p": parent.weights.get("perception") if parent else None,
            "status": status,
            **{key: failure.get(key) for key in ("error_type", "error_message")},
            "epochs": trial.setting("train", "epochs"),
            "config_json": json.dumps(config, sort_keys=True),
            "cached_from": ran.get("sweep") if ran.get("sweep") != self.name else None,
            "weights": sorted(weights.items()),
            "metrics": sorted((key, values[key]) for key in others if values[key] is not None),
        }
        row |= {key: values.get(key) for name in METRICS for key in (name, f"val_{name}")}
        row |= {key: ran.get(key) and datetime.fromisoformat(ran[key]) for key in ("started_at", "finished_at")}
        copied = ("attempt", "wall_s", "device", "host", "pack_lanes", "code_version", "git_sha", "torch_version")
        return row | {key: ran.get(key) for key in copied}


class Publisher:
    """Writes a sweep's two tables; knows which curves are published and what is in the last part."""

    def __init__(self, projection: Projection) -> None:
        self.projection, self.store = projection, projection.store
        self.folder = self.store.layout.curves(projection.name)
        self.published: set[str] = set()
        paths = sorted(self.folder.glob("part-*.parquet"))
        for path in paths:
            self._adopt(path)
        self.parts = len(paths)  # no row moves between them, so the last one alone grows
        self.tail = read(self._path(self.parts), CURVES) if paths else CURVES.empty_table()

    def publish(self, running: Iterable[str] = (), stopped: bool = False, source: str = "") -> None:
        """Bring both tables up to date with the commits."""
        statuses = self.projection.statuses(running, stopped)
        self._publish_curves([t for t, status in statuses.items() if status in FAILED or self.store.committed(t)])
        rows = self.projection.rows(statuses)
        table = pa.Table.from_pylist(rows, TRIALS.with_metadata({"source": source, "sweep": self.projection.name}))
        self.store.replace(self.store.layout.trials_table(self.projection.name), to_bytes(table))

    def _publish_curves(self, ended: Sequence[str]) -> None:
        new = [trial_id for trial_id in ended if trial_id not in self.published]
        if self.parts and not new:
            return
        if not self.parts or self.tail.num_rows >= ROWS_PER_PART:
            self.parts += 1
            self.tail = CURVES.empty_table()
        self.tail = pa.concat_tables([self.tail, *(curve_table(t, self.projection.curve(t)) for t in new)])
        self.published.update(new)
        self.store.replace(self._path(self.parts), to_bytes(self.tail))

    def _adopt(self, path: Path) -> None:
        """Take over a part of an earlier launch, with the curves that its trials have now."""
        try:
            table = read(path, CURVES)
        except StoreError:
            table = None
        found = dict.fromkeys(table["trial_id"].to_pylist() if table is not None else ())
        known = [t for t in found if t in self.projection.by_id and t not in self.published]
        kept = pa.concat_tables([CURVES.empty_table(), *(curve_table(t, self.projection.curve(t)) for t in known)])
        if table is None or not kept.equals(table):
            self.store.replace(path, to_bytes(kept))
        self.published.update(kept["trial_id"].to_pylist())

    def _path(self, count: int) -> Path:
        """Return the last of ``count`` parts."""
        return self.folder / f"part-{count - 1:05d}.parquet"


def curve_table(trial_id: str, points: Sequence[Sequence[Any]]) -> pa.Table:
    """Return the ``curves`` rows of one trial."""
    columns = list(zip(*points, strict=True)) or [()] * 5
    arrays = [pa.array([trial_id] * len(points), _TEXT)]
    arrays += [pa.array(column, field.type) for column, field in zip(columns, list(CURVES)[1:], strict=True)]
    return pa.Table.from_arrays(arrays, schema=CURVES)


def to_bytes(table: pa.Table) -> bytes:
    """Return a Parquet file with page checksums (flipped bits are then found, not read)."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Return a Parquet file's table with its checksums verified; ``StoreError`` names a damaged file."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table, footer = file.read(), file.metadata
            groups = sum(footer.row_group(n).num_rows for n in range(footer.num_row_groups))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: damaged table: {str(error).splitlines()[0]}") from None
    if not table.num_rows == footer.num_rows == groups:  # page checksums do not cover the footer
        raise StoreError(f"{path}: damaged table: it has not as many rows as it says")
    if schema is not None and not table.schema.equals(schema):
        raise StoreError(f"{path}: columns are not those of this release; launch the sweep again to rebuild it")
    return table


def published_source(path: Path) -> str | None:
    """Return the hash of what a ``trials`` table was made from, ``None`` if it cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            return (file.schema_arrow.metadata or {}).get(b"source", b"").decode() or None
    except (OSError, pa.ArrowException):
        return None
