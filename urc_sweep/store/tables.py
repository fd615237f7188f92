"""The Parquet tables: projections of commits that any launch can rebuild. Plain files that pandas opens at any instant.

``trials`` is one file per sweep, replaced whole. ``curves`` is numbered parts: the last one is replaced as it grows,
and once it is large the next number begins. A row never moves between parts, so no reader sees it twice or not at all.

Every file is sealed: page checksums do not cover the footer, so the footer holds the SHA-256 of all other bytes.
Columns are only ever added, and nullable: what an older release wrote is read for ever, with nulls in later columns.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from urc_sweep.errors import StoreError
from urc_sweep.maths.ids import content_id, digest
from urc_sweep.plan.spec import preset_of
from urc_sweep.plan.trials import Trial, variants
from urc_sweep.store.commits import Record, Store, bytes_of

ROWS_PER_PART = 200_000
# Raise when columns are added: the next launch republishes every sweep's tables. From 3 on, tables are sealed.
SCHEMA_VERSION = 3
# What a table may ask of a reader. 10,000 trials need a sixth of it; a stranger's 300 bytes can declare 2 GB of text.
MAX_FILE, MAX_FOOTER, MAX_TEXT, MAX_VALUES = 64 * 2**20, 2**20, 128 * 2**20, 16_000_000
# The seal's key and its length as the footer (Thrift) writes them; 64 hex digits follow, hashed as if they were zeros.
_SEAL, _OPEN = b"sha256\x18\x40", b"0" * 64

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
_COLUMNS = frozenset(TRIALS.names)


class Projection:
    """Status and rows of one sweep, derived from its plan and from commits and failures."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.generation = store.generation(name)
        try:
            self.trials = [Trial.from_json(value) for value in self.generation["trials"]]
            self.by_id = {trial.id: trial for trial in self.trials}
            self.variants = variants(self.trials)
            [trial.required for trial in self.trials]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(f"{store.layout.generation(name, 0)}: damaged: not a whole plan: {error!r:.99}") from None
        self._failures: dict[str, Record | None] = {}

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
            self._failures[trial_id] = self.store.final_failure(trial_id)
        return self._failures[trial_id]

    def forget(self, trial_id: str) -> None:
        """Read a trial's failures anew next time."""
        self._failures.pop(trial_id, None)

    def rows(self, statuses: Mapping[str, str], columns: Container[str] = _COLUMNS) -> list[dict[str, Any]]:
        """Return one ``trials`` row per trial with a status; a metric that is not among the columns is in the map."""
        return [self._row(trial, statuses[trial.id], columns) for trial in self.trials if trial.id in statuses]

    def curve(self, trial_id: str) -> list[list[Any]]:
        """Return a finished trial's curve: epoch, split, metric, value, wall_s."""
        record = self.store.committed(trial_id) or self.final_failure(trial_id) or {}
        points: list[list[Any]] = record.get("curve", [])
        return points

    def source(self, version: int = SCHEMA_VERSION) -> str:
        """Return a hash of everything the tables are made from, as a release with these columns writes it."""
        facts = []
        for trial in self.trials:
            ids = [trial.id, trial.evaluation_id]
            committed = [bool(self.store.committed(commit_id)) for commit_id in ids]
            facts.append([*ids, *committed, len(self.store.failures(trial.id))])
        return content_id("tables", [version, self.name, facts])

    def _row(self, trial: Trial, status: str, columns: Container[str]) -> dict[str, Any]:
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
        others = [key for key in values if key not in columns]
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
    """Writes a sweep's two tables; knows its rows, which curves are published and what is in the last part."""

    def __init__(self, projection: Projection) -> None:
        self.projection, self.store = projection, projection.store
        self.folder = self.store.layout.curves(projection.name)
        self.published: set[str] = set()
        self.rows, self.made_from = TRIALS.empty_table(), dict[str, tuple[Any, ...]]()
        paths = sorted(self.folder.glob("part-*.parquet"))
        for path in paths:
            self._adopt(path)
        self.parts = len(paths)  # no row moves between them, so the last one alone grows
        self.tail = read(self._path(self.parts), CURVES) if paths else CURVES.empty_table()

    def publish(self, running: Iterable[str] = (), stopped: bool = False, source: str = "") -> None:
        """Bring both tables up to date with the commits."""
        statuses = self.projection.statuses(running, stopped)
        trained = {t for t, status in statuses.items() if status == "done" or self.store.committed(t)}
        self._publish_curves([t for t, status in statuses.items() if status in FAILED or t in trained])
        self._renew(statuses, trained)
        table = self.rows.replace_schema_metadata({"source": source, "sweep": self.projection.name})
        self.store.replace(self.store.layout.trials_table(self.projection.name), to_bytes(table))

    def _renew(self, statuses: Mapping[str, str], trained: Container[str]) -> None:
        """Make the rows anew whose trials have changed: all 10,000 would take a second, once a second."""
        failure, facts = self.projection.final_failure, dict[str, tuple[Any, ...]]()
        for t, status in statuses.items():
            facts[t] = (status,) if status == "done" else (status, t in trained, failure(t))
        changed = {t: status for t, status in statuses.items() if self.made_from.get(t) != facts[t]}
        places = dict(zip(changed, range(self.rows.num_rows, self.rows.num_rows + len(changed)), strict=True))
        both = [self.rows, pa.Table.from_pylist(self.projection.rows(changed), TRIALS)]
        self.rows = pa.concat_tables(both).take([places.get(t, n) for n, t in enumerate(statuses)])
        self.made_from = facts

    def _publish_curves(self, ended: Sequence[str]) -> None:
        new = [trial_id for trial_id in ended if trial_id not in self.published]
        if self.parts and not new:
            return
        if not self.parts or self.tail.num_rows >= ROWS_PER_PART:
            self.parts += 1
            self.tail = CURVES.empty_table()
        grown, rows = dict[str, pa.Table](), self.tail.num_rows
        for trial_id in new:
            if rows >= ROWS_PER_PART:
                self._grow(grown)  # a sweep of trials that others trained
                self.parts, self.tail, grown, rows = self.parts + 1, CURVES.empty_table(), {}, 0
            grown[trial_id] = curve_table(trial_id, self.projection.curve(trial_id))
            rows += grown[trial_id].num_rows
        self._grow(grown)

    def _grow(self, curves: Mapping[str, pa.Table]) -> None:
        """Add curves to the last part; they are published once it is written, which a full disk may refuse."""
        tail = pa.concat_tables([self.tail, *curves.values()])
        self.store.replace(self._path(self.parts), to_bytes(tail))
        self.tail = tail
        self.published.update(curves)

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
    """Return a sealed Parquet file (flipped bits are then found, not read)."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"schema_version": str(SCHEMA_VERSION), "sha256": _OPEN.decode()})
    data = buffer.getvalue()
    head, _, tail = data.rpartition(_SEAL + _OPEN)
    return head + _SEAL + digest(data).encode() + tail


class Published(NamedTuple):
    """What a table says of itself: what it was made from, by which releases' rules, and its columns."""

    source: str | None
    versions: Sequence[int]
    columns: pa.Schema


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of ``schema``; ``StoreError`` names a file that is damaged or not one of ours."""
    with _damage(path):
        data, footer, told = _footer(path)
        found, names = told.columns, set(told.columns.names)
        later = set(schema.names) - names
        strange = not names or len(found) > len(names) or bool(names - set(schema.names))
        strange = strange or any(found.field(n).type != schema.field(n).type for n in names)
        if strange or (later and SCHEMA_VERSION in told.versions):
            raise StoreError(f"{path}: columns are not those of this release; launch the sweep again to rebuild it")
        if footer.num_rows * len(schema) > MAX_VALUES:
            raise ValueError("it promises more rows than any table of ours holds")
        leaves = [footer.schema.column(n) for n in range(len(footer.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # As dictionaries, repeated texts cost nothing, however long; what they will cost is summed up first.
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, read_dictionary=texts) as file:
            table = file.read(use_threads=False)  # a pool that still starts threads at exit aborts the process
        if sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks) > MAX_TEXT:
            raise ValueError("more text than any table of ours holds")
        if table.num_rows != footer.num_rows:  # a table without a seal
            raise ValueError("it has not as many rows as it says")
        table = table.cast(found)
        columns = [table[f.name] if f.name in names else pa.nulls(table.num_rows, f.type) for f in schema]
        return pa.table(columns, schema=schema.with_metadata(found.metadata))


def published(path: Path) -> Published:
    """Return what a table says of itself; ``StoreError`` names a damaged one."""
    with _damage(path):
        return _footer(path)[2]


def is_current(store: Store, name: str, source: str) -> bool:
    """Return whether a sweep's tables are whole and made from just that ``source``."""
    paths = [store.layout.trials_table(name), *store.layout.curves(name).glob("*.parquet")]
    try:
        sources = [published(path).source for path in paths]
        return len(paths) > 1 and sources[0] == source
    except StoreError:
        return False


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong with it, in one line."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: damaged table: {(str(error).splitlines() or ['?'])[0]}") from None


def _footer(path: Path) -> tuple[bytes, pq.FileMetaData, Published]:
    """Return a file's bytes and its footer, once the seal fits and what the footer promises is bearable."""
    data = bytes_of(path, MAX_FILE)
    head, seal, tail = data.rpartition(_SEAL)
    if seal and digest(head + seal + _OPEN + tail[64:]).encode() != tail[:64]:
        raise ValueError("its bytes are not those that were sealed")
    if int.from_bytes(data[-8:-4], "little") > MAX_FOOTER:
        raise ValueError("its footer is larger than that of any table of ours")
    footer = pq.read_metadata(pa.BufferReader(data))
    told = footer.metadata or {}
    if not seal and b"schema_version" in told:
        raise ValueError("its seal is gone")
    groups = [footer.row_group(n) for n in range(footer.num_row_groups)]
    values = [group.column(n).num_values for group in groups for n in range(group.num_columns)]
    sizes = [group.total_byte_size for group in groups]
    if min([*values, *sizes, footer.num_rows]) < 0 or sum(values) > MAX_VALUES or sum(sizes) > MAX_TEXT:
        raise ValueError("it promises more than any table of ours holds")
    versions = [int(told.get(b"schema_version", b"0"))] if seal else range(1, 3)
    columns = footer.schema.to_arrow_schema()
    return data, footer, Published(told.get(b"source", b"").decode() or None, versions, columns)


def _text_bytes(array: pa.Array) -> int:
    """Return how long the texts of an array are that was read as a dictionary."""
    array = array.keys if pa.types.is_map(array.type) else array
    if not pa.types.is_dictionary(array.type):
        return 0
    return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
