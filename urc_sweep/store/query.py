"""SQL over the tables, read-only: DuckDB sees them as views and nothing else of the machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import date, datetime, time
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from urc_sweep.errors import SpecError
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import CURVES, TRIALS, read, to_bytes

if TYPE_CHECKING:
    import pandas as pd


Names = str | Sequence[str] | None


def trials(store: Store, sweeps: Names = None) -> pa.Table:
    """Return the rows of ``trials``, of one sweep, of some or of all, with the path key ``sweep`` as a column."""
    return _collect(store, "trials", TRIALS, sweeps)


def curves(store: Store, sweeps: Names = None, trial_ids: Sequence[str] | None = None) -> pa.Table:
    """Return the same of ``curves``, and only what is of ``trial_ids`` if they are given."""
    return _collect(store, "curves", CURVES, sweeps, trial_ids)


def _collect(store: Store, table: str, schema: pa.Schema, sweeps: Names, trial_ids: Names = None) -> pa.Table:
    parts = []
    for name in [sweeps] if isinstance(sweeps, str) else store.sweeps() if sweeps is None else sweeps:
        folder = store.layout.trials_table(name).parent if table == "trials" else store.layout.curves(name)
        for path in sorted(folder.glob("*.parquet")):
            part = read(path, schema).replace_schema_metadata(None)
            if trial_ids is not None:
                part = part.filter(pc.is_in(part["trial_id"], pa.array(trial_ids, pa.string())))
            parts.append(part.append_column("sweep", pa.array([name] * part.num_rows, pa.string())))
    return pa.concat_tables(parts) if parts else schema.append(pa.field("sweep", pa.string())).empty_table()


def sql(store: Store, text: str) -> pa.Table:
    """Return the answer to a query over ``trials``, ``curves`` and ``unique_trials`` (a shared trial once)."""
    store.require()
    connection = duckdb.connect(":memory:")
    everything = trials(store)
    first = pc.index_in(everything["trial_id"].unique(), everything["trial_id"])
    connection.register("trials", everything)
    connection.register("unique_trials", everything.take(first))
    wanted = "curves" in text.lower() or "query" in text.lower()  # query(), query_table(): names put together
    connection.register("curves", ds.dataset(curves(store)) if wanted else curves(store).slice(0, 0))
    # After this a query reaches neither files nor network, and cannot switch that back on.
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")
    try:
        answer = connection.sql(text)
        if answer is None:
            raise SpecError("query: only questions are answered (SELECT, FROM, WITH, DESCRIBE, SUMMARIZE)")
        return answer.to_arrow_table()
    except duckdb.Error as error:
        lines = map(str.strip, str(error).splitlines()[:2])  # the second one may name candidates
        told = itertools.takewhile(lambda line: line and not line.startswith("LINE "), lines)
        raise SpecError(f"query: {' '.join(told)}") from None


def frame(table: pa.Table) -> pd.DataFrame:
    """Return a table as pandas; map columns become dicts."""
    data: pd.DataFrame = table.to_pandas(maps_as_pydicts="lossy")
    return data


def to_format(table: pa.Table, style: str) -> str | bytes:
    """Return a table as csv, json (records) or parquet."""
    try:
        if style == "parquet":
            return to_bytes(table)
        if style == "json":
            rows = table.to_pylist(maps_as_pydicts="lossy")
            if len(set(table.column_names)) < table.num_columns:
                raise ValueError("two columns have the same name")
            return json.dumps(rows, indent=1, default=_isoformat) + "\n"
        return str(frame(table).to_csv(index=False))
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise SpecError(f"query: the answer cannot be written as {style}: {str(error).splitlines()[0]}") from None


def _isoformat(value: object) -> str:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form; cast it to text")


def published_running(store: Store, sweep: str) -> list[str]:
    """Return the trials that a running launch last published as running: only it knows."""
    table = trials(store, sweep)
    return table.filter(pc.equal(table["status"], "running"))["trial_id"].to_pylist()  # type: ignore[no-any-return]
