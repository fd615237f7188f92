"""One sweep as one self-contained HTML file: no request leaves it, so it works from a mail attachment.

Invariant: nothing that came from data becomes markup. Python writes it through ``html.escape``, the embedded JSON
has no ``<``, the page's script sets ``textContent``; a content security policy stands behind all three.
"""

from __future__ import annotations

import base64
import errno
import html
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from urc_sweep.errors import StoreError
from urc_sweep.maths.penalty import FEWEST_PAIRS
from urc_sweep.show import facts, figures, gaps
from urc_sweep.store.commits import Store

# A mail attachment: past these, thumbnails and curves of further trials stay in the store, and the page says so.
IMAGE_BYTES = 8_000_000
CURVE_POINTS = 400_000
TABLE_ROWS = 500
MOST_TRACES, TRACE_CHARACTERS = 50, 20_000
DASH = "–"

Cell = Callable[[Mapping[str, Any]], str]


def write(store: Store, sweep: str, path: Path, source: str) -> None:
    """Write the report of one sweep to ``path``, whole or not at all; ``source`` is the hash of what it shows."""
    trials, curves = facts.load(store, sweep), facts.load_curves(store, sweep)
    spec = store.layout.spec(sweep)
    text = spec.read_text(errors="replace") if spec.is_file() else ""
    root = shlex.quote(str(store.root))
    commands = [
        str(store.generation(sweep).get("command", "")),
        f"urc-sweep report {shlex.quote(sweep)} --store {root}",
    ]
    read = (lambda sha256: store.get(sha256, ".png"), lambda trial_id: _trace(store, trial_id))
    page = render(trials, curves, sweep, source, commands, text, *read)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    private = path.with_name(f".{path.name}.{os.getpid()}")
    private.write_text(page, encoding="utf-8")
    os.replace(private, path)


def _trace(store: Store, trial_id: str) -> str:
    """Return the traceback of the failure that ended a trial, "" where none can be read."""
    try:
        return str((store.final_failure(trial_id) or {}).get("trace") or "").strip()[-TRACE_CHARACTERS:]
    except StoreError:
        return ""


def render(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    sweep: str,
    source: str,
    commands: Sequence[str],
    spec: str,
    image: Callable[[str], bytes],
    trace: Callable[[str], str] = lambda trial_id: "",
) -> str:
    """Return the page. ``image`` gives an artifact's PNG or raises ``StoreError``; ``trace`` gives a traceback."""
    points = facts.fronts(trials)
    at = gaps.matched_at(trials)
    penalties, volumes, encoders = gaps.penalties(trials, at), facts.hypervolumes(trials), facts.encoders(trials)
    failures = facts.failures(trials)
    tables = {"penalties": penalties, "hypervolumes": volumes, "encoders": encoders, "failures": failures}
    parts = {
        "source": html.escape(source),
        "sweep": html.escape(sweep),
        "subtitle": _subtitle(trials),
        "state": _state(trials, points),
        "trust": _trust(trials),
        "at": at.replace("_", "-"),
        "penalties": _penalties(penalties, at),
        "hypervolumes": _hypervolumes(volumes),
        "encoders": _encoders(encoders),
        "failures": _failures(failures, trace),
        "commands": html.escape("\n".join(commands)),
        "spec": html.escape(spec),
        "css": _asset("report.css"),
        "js": _asset("report.js"),
        "plotly": get_plotlyjs(),
        "data": _json(_payload(trials, points, curves, tables, image) | {"sweep": sweep}),
    }
    # One pass: what is filled in is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _asset("report.html"))


# -- what the script draws from ----------------------------------------------------------------------------------------


def _payload(
    trials: pd.DataFrame,
    points: pd.DataFrame,
    curves: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    image: Callable[[str], bytes],
) -> dict[str, Any]:
    every = facts.compressors(trials)
    rates = facts.records(every.sort_values(facts.RATE[::-1])[facts.RATE].drop_duplicates())
    number = {(rate["dim"], rate["levels"]): index for index, rate in enumerate(rates)}
    palette = [figures.PALETTE[index % len(figures.PALETTE)] for index in range(len(rates))]
    rate_of = [number[pair] for pair in zip(points["dim"], points["levels"], strict=True)]
    axes = [axis for axis in facts.AXES if points[axis].notna().any()]
    columns = ["trial_id", "stage", "variant", "seed", *facts.WEIGHTS, "parent_lambda_c", "parent_lambda_p"]
    columns += ["parent_id", "worse_than_rate0", *axes, *(f"val_{axis}" for axis in axes), "mse_se"]
    pictures = _pictures(points, image)
    strips = {
        key: [sha256 if sha256 in pictures else None for sha256 in points[f"{key}_sha256"]]
        for key in ("samples", "originals")
    }
    floors = facts.near_floors(trials)
    return {
        "trials": {name: _list(points[name]) for name in columns} | {"rate": rate_of} | strips,
        "axes": {axis: facts.AXES[axis] for axis in axes},
        "larger": sorted(facts.LARGER_IS_BETTER),
        "rates": [
            {"label": figures.rate_label(**_rate(rate)), "bits": rate["rate_bits"], "colour": colour}
            for rate, colour in zip(rates, palette, strict=True)
        ],
        "y": gaps.matched_at(trials),
        "stages": [
            {
                "name": stage,
                "label": figures.stage_label(stage),
                "symbol": figures.SYMBOLS.get(stage, figures.OTHER_SYMBOL),
                "dash": figures.DASHES.get(stage, figures.OTHER_DASH),
            }
            for stage in sorted(every["stage"].unique())
        ],
        "floors": [{"rate": number[row.dim, row.levels], "mse": row.mse_kmeans} for row in floors.itertuples()],
        "curves": _curves(every, curves, number),
        "images": pictures,
        "csv": {name: _csv(table) for name, table in tables.items()},
        "config": dict(figures.CONFIG),
        "svg_points": figures.SVG_POINTS,
    }


def _pictures(points: pd.DataFrame, image: Callable[[str], bytes]) -> dict[str, str]:
    """Return base64 PNGs by hash: first seed first (the image grid), then the fronts, until the budget is spent."""
    if points.empty:
        return {}
    first = points["seed"] != points["seed"].min()
    ordered = points.assign(_first=first, _off=~points["on_front"]).sort_values(["_first", "_off"], kind="stable")
    pictures: dict[str, str] = {}
    spent = 0
    for name in ("originals_sha256", "samples_sha256"):
        for sha256 in ordered[name].dropna().unique():
            try:
                data = image(sha256)
            except StoreError:
                continue  # `verify` is the place that complains; the report shows what is there
            spent += len(data)
            if spent > IMAGE_BYTES:
                return pictures
            pictures[sha256] = base64.b64encode(data).decode()
    return pictures


def _curves(every: pd.DataFrame, curves: pd.DataFrame, number: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    """Return the training curves of the compressors, by trial: epochs and values by ``split/metric``."""
    ordered = every.sort_values("seed", kind="stable")
    sizes = ordered["trial_id"].map(curves["trial_id"].value_counts())
    kept = ordered[sizes.cumsum() <= CURVE_POINTS]
    chosen = curves[curves["trial_id"].isin(kept["trial_id"])].sort_values("epoch", kind="stable")
    values: dict[str, dict[str, list[list[Any]]]] = {}
    columns = [_list(chosen[name]) for name in ("trial_id", "split", "metric", "epoch", "value")]
    for trial_id, split, metric, epoch, value in zip(*columns, strict=True):
        epochs, points = values.setdefault(trial_id, {}).setdefault(f"{split}/{metric}", [[], []])
        epochs.append(epoch)
        points.append(value if value is None else float(f"{value:.6g}"))
    names = ["trial_id", "stage", "seed", "lambda_c", "parent_lambda_c", "status"]
    lines = [
        {name: _plain(row[name]) for name in names}
        | {"rate": number[row["dim"], row["levels"]], "values": values[row["trial_id"]]}
        for row in facts.records(kept)
    ]
    return {"lines": lines, "left_out": int(sizes.notna().sum()) - len(kept)}


def _json(value: Any) -> str:
    """Return JSON that no HTML parser can be led out of."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _csv(table: pd.DataFrame) -> str:
    """Return CSV in which no text cell is a formula to a spreadsheet."""
    safe = table.apply(lambda column: column.map(_no_formula) if not pd.api.types.is_numeric_dtype(column) else column)
    return str(safe.to_csv(index=False))


def _no_formula(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _list(column: pd.Series[Any]) -> list[Any]:
    missing = column.isna() | column.isin([float("inf"), float("-inf")])
    return [None if lost else value for value, lost in zip(column.tolist(), missing.tolist(), strict=True)]


def _plain(value: Any) -> Any:
    return None if pd.isna(value) or value in (float("inf"), float("-inf")) else value


# -- what Python writes ------------------------------------------------------------------------------------------------


def _subtitle(trials: pd.DataFrame) -> str:
    networks = _distinct(facts.compressors(trials), "model", " networks")
    names = " · ".join(filter(None, (_distinct(trials, "dataset"), networks)))
    last = trials.loc[trials["status"] == "done", "finished_at"].max()
    date = f"last finished {last:%-d %B %Y, %H:%M} UTC" if pd.notna(last) else "none finished yet"
    counts = trials["status"].value_counts()
    status = ", ".join(f"{counts[name]} {name}" for name in (*facts.STATUSES,) if name in counts)
    return html.escape(f"{names or 'no trials'} — {len(trials)} trials: {status or 'none'}; {date}")


def _state(trials: pd.DataFrame, points: pd.DataFrame) -> str:
    """Return what a reader must know before believing the figures: empty and partial states, in plain words."""
    notes = []
    waiting = int(trials["status"].isin(["pending", "running", "stopped"]).sum())
    failed = int(trials["status"].isin(facts.FAILURES).sum())
    if waiting:
        notes.append(f"Not finished: {waiting} of {len(trials)} trials are still to come. All below is preliminary.")
    if points.empty:
        why = "Every compressor that ran has failed, see below." if failed else "No compressor is trained yet."
        notes.append(f"{why} There is nothing to draw.")
    elif len(points) == 1:
        notes.append("Only one trial is done: a point, not a front.")
    elif not (points["stage"] == "universal").any():
        notes.append("No universal trial is done, so nothing here speaks about universality.")
    worse = int(points["worse_than_rate0"].sum())
    if worse:
        notes.append(f"{_runs(worse)} worse than the best constant image: crosses in the figure, on no front.")
    if failed and not points.empty:
        notes.append(f"{_runs(failed)} without a result, listed under Failures.")
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _runs(count: int) -> str:
    return "1 run is" if count == 1 else f"{count} runs are"


def _trust(trials: pd.DataFrame) -> str:
    ran = trials[trials["status"] == "done"]
    stages = facts.progress(trials).iterrows()
    finished = [f"{figures.stage_label(str(name))} {row.get('done', 0)}/{row.sum()}" for name, row in stages]
    entries = {
        "done": ", ".join(finished),
        "failed": str(int(trials["status"].isin(facts.FAILURES).sum())),
        "seeds": _distinct(facts.compressors(trials), "seed"),
        "precision": _distinct(trials, "precision"),
        "protocol": _distinct(trials, "protocol"),
        "code": ", ".join(filter(None, (_distinct(ran, "code_version"), _distinct(ran, "git_sha")[:10]))),
        "torch": _distinct(ran, "torch_version"),
        "machine": " on ".join(filter(None, (_distinct(ran, "device"), _distinct(ran, "host")))),
        "choices": "points chosen on the validation split, numbers from the test split",
    }
    pairs = [f"<div><dt>{name}</dt><dd>{html.escape(value or DASH)}</dd></div>" for name, value in entries.items()]
    return f'<dl class="trust">{"".join(pairs)}</dl>'


def _distinct(trials: pd.DataFrame, column: str, suffix: str = "") -> str:
    values = sorted(trials[column].dropna().unique().tolist())
    text = ", ".join(map(str, values[:8])) + (f" … ({len(values)})" if len(values) > 8 else "")
    return text + suffix if values else ""


def _penalties(table: pd.DataFrame, at: str) -> str:
    if table.empty:
        why = f"needs done end-to-end and universal trials of one rate and seed, with a term for {at}"
        return f'<p class="empty">No penalty yet: it {why}.</p>'
    columns: dict[str, Cell] = {"rate": _rate_cell, "encoder λ_c": _number("parent_lambda_c", "g")}
    columns |= _varying(table, "lambda_d", "lambda_p", "parent_lambda_d", "parent_lambda_p")
    columns |= _varying(table, "stage", "parent_stage", "parent_variant", "variant")
    columns |= {
        **({"at λ_c": _number("lambda_c", "g")} if at == "cross_entropy" else {"at λ_p": _number("lambda_p", "g")}),
        "C [nats]" if at == "cross_entropy" else "C": _number("constraint", ".3f"),
        "MSE end-to-end": _number("mse_end_to_end", ".5f"),
        "MSE universal": _number("mse_universal", ".5f"),
        "penalty": lambda row: "infeasible" if row["infeasible"] else f"{row['penalty']:+.5f}",
        "%": _number("penalty_percent", "+.1f"),
        "95 % interval": _interval,
        "seeds": lambda row: f"{row['seeds']} of {row['of_seeds']}",
    }
    return _table(f"Distortion penalty at matched {at.replace('_', '-')}", table, columns, "penalties")


def _varying(table: pd.DataFrame, *names: str) -> dict[str, Cell]:
    """Return the columns that tell rows apart, as they are."""
    return {name: _number(name, "") for name in names if table[name].nunique(dropna=False) > 1}


def _interval(row: Mapping[str, Any]) -> str:
    if row["infeasible"]:
        return DASH
    if row["seeds"] < FEWEST_PAIRS:
        return f"no interval under {FEWEST_PAIRS} seeds"
    return f"[{row['low']:+.5f}, {row['high']:+.5f}]"


def _hypervolumes(table: pd.DataFrame) -> str:
    if table.empty:
        return '<p class="empty">No front yet.</p>'
    keys = [*facts.RATE, "stage", "parent_lambda_c", "parent_variant", "variant"]
    every = table.groupby(keys, dropna=False)["hypervolume"].agg(mean="mean", n="size", each=list).reset_index()
    reference = table[["reference_mse", "reference_cross_entropy"]].iloc[0]
    caption = f"Hypervolume in (MSE, cross-entropy), reference ({reference.iloc[0]:.4f}, {reference.iloc[1]:.4f} nats)"
    columns: dict[str, Cell] = {
        "rate": _rate_cell,
        "stage": lambda row: figures.stage_label(row["stage"]),
        "encoder λ_c": _number("parent_lambda_c", "g"),
        **_varying(every, "parent_variant", "variant"),
        "mean": _number("mean", ".5f"),
        "fronts": lambda row: str(row["n"]),
        "each": lambda row: "  ".join(f"{value:.5f}" for value in row["each"][:10]) + (" …" if row["n"] > 10 else ""),
    }
    return _table(caption, every, columns, "hypervolumes")


def _encoders(table: pd.DataFrame) -> str:
    if table.empty:
        return '<p class="empty">No end-to-end trial is done yet.</p>'
    values = ["mse", "mse_centroid", "latent_label_entropy", "latent_accuracy", "index_entropy_bits"]
    groups = table.groupby([*facts.RATE, "stage", "variant", *facts.WEIGHTS], dropna=False)
    mean = groups[values].mean().assign(seeds=groups.size())
    columns: dict[str, Cell] = {
        "rate": _rate_cell,
        **_varying(table, "stage", "variant"),
        "λ_c": _number("lambda_c", "g"),
        "MSE": _number("mse", ".5f"),
        "MSE of best decoder": _number("mse_centroid", ".5f"),
        "H(S|Z,U) [nats]": _number("latent_label_entropy", ".3f"),
        "latent accuracy": _number("latent_accuracy", ".3f"),
        "H(Z|U) [bits]": _number("index_entropy_bits", ".3f"),
        "seeds": lambda row: str(row["seeds"]),
    }
    return _table("Encoders, means over seeds", mean.reset_index(), columns, "encoders")


def _failures(table: pd.DataFrame, trace: Callable[[str], str]) -> str:
    if table.empty:
        return ""
    columns: dict[str, Cell] = {
        "trial": lambda row: str(row["trial_id"])[:12],
        "stage": lambda row: figures.stage_label(row["stage"]),
        "rate": lambda row: _rate_cell(row) if pd.notna(row["dim"]) else DASH,
        "λ_c": _number("lambda_c", "g"),
        "seed": lambda row: str(row["seed"]),
        "status": lambda row: str(row["status"]),
        "host": lambda row: str(row["host"]) if pd.notna(row["host"]) else DASH,
        "error": lambda row: ": ".join(str(row[k]) for k in table.columns[-3:-1] if pd.notna(row[k])) or DASH,
    }
    body = _table("Trials without a result", table, columns, "failures")
    traces = {trial: trace(str(trial)) for trial in table["trial_id"].head(MOST_TRACES)}
    folded = "".join(
        f"<details><summary>{html.escape(f'{trial[:12]}: {text.splitlines()[-1][:200]}')}</summary>"
        f"<pre>{html.escape(text)}</pre></details>"
        for trial, text in traces.items()
        if text
    )
    return f'<section id="failures"><h2>Failures</h2>{body}{folded}</section>'


def _table(caption: str, table: pd.DataFrame, columns: Mapping[str, Cell], csv: str) -> str:
    """Return an HTML table with every cell escaped; a heading's ``_c`` becomes a subscript."""
    head = "".join(f'<th scope="col">{_subscript(html.escape(name))}</th>' for name in columns)
    if len(table) > TABLE_ROWS:
        caption += f" (first {TABLE_ROWS} of {len(table)}; the CSV has all)"
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell(row))}</td>' for cell in columns.values())}</tr>"
        for row in facts.records(table.head(TABLE_ROWS))
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="tools"><button type="button" data-csv="{csv}">Download CSV</button></p>'
    )


def _subscript(heading: str) -> str:
    return re.sub(r"(λ|lambda)_(\w)", r"λ<sub>\2</sub>", heading)


def _number(column: str, style: str) -> Cell:
    return lambda row: DASH if pd.isna(row[column]) else format(row[column], style)


def _rate(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"dim": int(row["dim"]), "levels": int(row["levels"]), "bits": float(row["rate_bits"])}


def _rate_cell(row: Mapping[str, Any]) -> str:
    return figures.rate_label(**_rate(row))


def _asset(name: str) -> str:
    return resources.files("urc_sweep.show").joinpath("page", name).read_text(encoding="utf-8")
