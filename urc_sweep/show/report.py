"""Sweeps as one self-contained HTML file: no request leaves it, so it works from a mail attachment.

Invariant: nothing that came from data becomes markup. Python writes it through ``html.escape`` (``fragments``), the
embedded data is compressed JSON, the page's script sets ``textContent``; a content security policy stands behind them.
"""

from __future__ import annotations

import base64
import errno
import gzip
import html
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from urc_sweep.errors import StoreError
from urc_sweep.plan.spec import stage_label
from urc_sweep.show import export, facts, figures, fragments, gaps
from urc_sweep.store.commits import Store

# A mail attachment: past these, pictures and curves of further trials stay in the store, and the page says so.
IMAGE_BYTES = 8_000_000
CURVES, CURVE_EPOCHS = 400, 60
TRACE_CHARACTERS = 20_000
DIGITS = 9  # significant ones: far below any standard error, and a third of the bytes
SCRIPTS = ("fronts.js", "page.js", "dots.js", "frontier.js", "trials.js", "report.js")
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Shown:
    """What a page shows: ``trials`` of some sweeps, and where the rest is read when it is needed.

    ``curves`` gives the training curves of some trial ids; ``image`` an artifact's PNG or raises ``StoreError``;
    ``trace`` the traceback of a failed trial, "" where there is none; ``verified`` what a check of the store said.
    """

    sweeps: Sequence[str]
    trials: pd.DataFrame
    curves: Callable[[Sequence[str]], pd.DataFrame]
    image: Callable[[str], bytes]
    trace: Callable[[str], str] = lambda trial_id: ""
    source: str = ""
    commands: Sequence[str] = ()
    spec: str = ""
    verified: str = ""
    references: Sequence[figures.Reference] = ()


@dataclass(frozen=True)
class Live:
    """What the dashboard adds to the page: HTML in its head, above the sections and at the end."""

    head: str
    top: str
    scripts: str


@dataclass(frozen=True)
class _Content:
    """The page's words and tables by slot, and all that its script draws from."""

    parts: Mapping[str, str]
    payload: dict[str, Any] = field(repr=False)


def write(
    store: Store,
    sweeps: str | Sequence[str],
    path: Path,
    source: str,
    references: Sequence[figures.Reference] = (),
    verified: str = "",
) -> None:
    """Write the report of some sweeps to ``path``, whole or not at all; ``source`` is the hash of what it shows."""
    page = render(read(store, sweeps, source, references, verified))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    private = path.with_name(f".{path.name}.{os.getpid()}")
    private.write_text(page, encoding="utf-8")
    os.replace(private, path)


def read(
    store: Store,
    sweeps: str | Sequence[str],
    source: str = "",
    references: Sequence[figures.Reference] = (),
    verified: str = "",
) -> Shown:
    """Return what a page shows of some sweeps of a store."""
    names = [sweeps] if isinstance(sweeps, str) else list(sweeps)
    specs = [store.layout.spec(name) for name in names]
    told = " ".join(map(shlex.quote, names))
    return Shown(
        sweeps=names,
        trials=facts.load(store, names),
        curves=lambda trial_ids: facts.load_curves(store, names, trial_ids),
        image=lambda sha256: store.get(sha256, ".png"),
        trace=lambda trial_id: _trace(store, trial_id),
        source=source,
        commands=[
            *(str(store.generation(name).get("command", "")) for name in names),
            f"urc-sweep report {told} --store {shlex.quote(str(store.root))}",
        ],
        spec="\n".join(spec.read_text(errors="replace") for spec in specs if spec.is_file()),
        verified=verified,
        references=references,
    )


def render(shown: Shown, live: Live | None = None) -> str:
    """Return the page. A ``live`` one has no script and no policy of its own, its images are at ``image/``."""
    content = _content(shown, linked="image/" if live else "")
    scripts = "".join(f"<script>{text}</script>\n" for text in (get_plotlyjs(), *map(asset, SCRIPTS)))
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    slots = {
        "source": html.escape(shown.source),
        "sweep": html.escape(" · ".join(shown.sweeps)),
        "commands": html.escape("\n".join(shown.commands)),
        "spec": html.escape(shown.spec),
        "css": asset("report.css"),
        "head": live.head if live else policy,
        "top": live.top if live else "",
        "scripts": live.scripts if live else scripts,
        "data": pack(content.payload),
        "traded": "classification" if content.payload["y"] == "cross_entropy" else "perception",
        "kind": "live page, read-only" if live else "file, no external request",
    }
    # One pass: what is filled in is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: {**content.parts, **slots}[slot[1]], asset("report.html"))


def data(shown: Shown, linked: str = "image/") -> str:
    """Return what ``urcSweep.update`` takes to show another state of a live page."""
    content = _content(shown, linked)
    return pack(content.payload | {"parts": content.parts})


def asset(name: str) -> str:
    """Return one of the page's own files."""
    return resources.files("urc_sweep.show").joinpath("page", name).read_text(encoding="utf-8")


def pack(payload: Mapping[str, Any]) -> str:
    """Return JSON, compressed and in letters that no HTML parser can be led out of."""
    text = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 3, mtime=0)).decode()


def _trace(store: Store, trial_id: str) -> str:
    """Return the traceback of the failure that ended a trial, "" where none can be read."""
    with suppress(StoreError):
        return str((store.final_failure(trial_id) or {}).get("trace") or "").strip()[-TRACE_CHARACTERS:]
    return ""


# -- what the script draws from ----------------------------------------------------------------------------------------


def _content(shown: Shown, linked: str) -> _Content:
    every = facts.compressors(shown.trials)
    first = gaps.matched_at(every)
    points = facts.fronts(every, "mse", first)  # what the page draws first
    costs = {at: {"penalties": gaps.penalties(every, at), "splits": gaps.splits(every, at)} for at in _traded(every)}
    costs = {at: tables for at, tables in costs.items() if at == first or len(tables["penalties"])}
    tables = {
        "rate_penalties": gaps.rate_penalties(every),
        "hypervolumes": facts.hypervolumes(every),
        "encoders": facts.encoders(every),
        "failures": facts.failures(shown.trials),
    }
    csv = {name.replace("_", "-"): export.csv(table) for name, table in tables.items() if len(table)}
    csv |= {f"{name}-{at}": export.csv(table) for at, each in costs.items() for name, table in each.items()}
    drawn = {
        at: {
            "penalty": figures.penalty(every, at, each["penalties"]),
            "gap": figures.gap(every, at, each["splits"]),
        }
        for at, each in costs.items()
    }
    payload = _payload(shown, every, points, linked) | {
        "y": first,
        "csv": csv,
        "costs": {at: {name: _plotly(each) for name, each in pair.items()} for at, pair in drawn.items()},
        "surface": _plotly(figures.surface(every)),
    }
    words = fragments.written(shown.trials, points, first, costs, tables, shown.trace, shown.verified)
    return _Content(words, payload)


def _traded(trials: pd.DataFrame) -> list[str]:
    """Return what penalties are matched at: what the objectives trade, the sweep's main one first."""
    first = gaps.matched_at(trials)
    wanted = {"cross_entropy": "lambda_c", "sliced_w2": "lambda_p"}
    return [first, *(at for at, weight in wanted.items() if at != first and trials[weight].notna().any())]


def _plotly(figure: Any) -> Any:
    return json.loads(figure.to_json())


def _payload(shown: Shown, every: pd.DataFrame, points: pd.DataFrame, linked: str) -> dict[str, Any]:
    rates = facts.records(every.sort_values(facts.RATE[::-1])[facts.RATE].drop_duplicates())
    number = {tuple(rate.values()): index for index, rate in enumerate(rates)}
    stages = sorted(every["stage"].unique())
    axes = facts.axes(points)
    pictures = {} if linked else _pictures(points, shown.image)
    known = {*points["samples_sha256"].dropna(), *points["originals_sha256"].dropna()} if linked else set(pictures)
    row_of = {name: index for index, name in enumerate(zip(points["sweep"], points["trial_id"], strict=True))}
    texts = ["trial_id", "variant", "terms", "parent_stage", "parent_variant", "parent_terms"]
    columns: dict[str, list[Any]] = {name: points[name].tolist() for name in [*texts, "dim", "levels"]}
    columns |= {"seed": list(map(_exact, points["seed"])), "worse_than_rate0": points["worse_than_rate0"].tolist()}
    weights = [*facts.WEIGHTS, *(f"parent_{name}" for name in facts.WEIGHTS)]
    values = [*weights, *axes, *(f"val_{axis}" for axis in axes), "mse_se"]
    columns |= {name: _numbers(points[name]) for name in values}
    # Beside the columns of facts, not among them: a plugin's metric may have any name that none of those has.
    of: dict[str, list[Any]] = {
        "sweep": [shown.sweeps.index(name) for name in points["sweep"]],
        "stage": [stages.index(name) for name in points["stage"]],
        "rate": [number[key] for key in points[facts.RATE].itertuples(index=False, name=None)],
        "parent": [row_of.get(key) for key in zip(points["sweep"], points["parent_id"], strict=True)],
        "encoder": [gaps.encoder(row) for row in facts.records(points[[*gaps.ENCODED, "variant"]])],
    }
    # Which points compete for a front, and which fronts differ by their seed alone; the same over rates.
    trained = [key for key in facts.FRONT_OF_RATES if key != "seed"]
    groups = {"front": facts.FRONT, "rate_front": facts.FRONT_OF_RATES, "band": [*trained, *facts.RATE]}
    groups |= {"rate_band": trained, "alike": [*trained, *facts.RATE, *facts.OBJECTIVE]}
    of |= {name: _codes(points, keys) for name, keys in groups.items()}
    for key in ("samples", "originals"):
        of[key] = [sha256 if sha256 in known else None for sha256 in points[f"{key}_sha256"]]
    return {
        "sweeps": list(shown.sweeps),
        "trials": columns,
        "of": of,
        "axes": axes,
        "larger": list(filter(facts.larger_is_better, axes)),
        "rate_axes": list(facts.RATE_AXES),
        "rates": [
            {"key": f"{key[0]}x{key[1]}@{key[2]:.4g}", "label": figures.rate_label(*key), "bits": key[2]}
            | {"colour": figures.PALETTE[index % len(figures.PALETTE)]}
            for key, index in number.items()
        ],
        "stages": [
            {
                "name": stage,
                "label": stage_label(stage),
                "symbol": figures.SYMBOLS.get(stage, figures.OTHER_SYMBOL),
                "dash": figures.DASHES.get(stage, figures.OTHER_DASH),
            }
            for stage in stages
        ],
        "suffixes": list(figures.SWEEPS),
        "overlays": _overlays(shown.sweeps, every, number, row_of),
        "references": [{"name": each.name, "values": dict(each.values)} for each in shown.references],
        "curves": _curves(shown, every, number, stages),
        "images": pictures,
        "strip": _size(points, shown.image),
        "pictures_left_out": len({*points["samples_sha256"].dropna()} - known),
        "linked": linked,
        "config": dict(figures.CONFIG),
        "svg_points": figures.SVG_POINTS,
    }


def _codes(points: pd.DataFrame, keys: Sequence[str]) -> list[int]:
    codes: list[int] = points.groupby(list(keys), dropna=False, sort=False).ngroup().tolist()
    return codes


def _overlays(
    sweeps: Sequence[str],
    every: pd.DataFrame,
    number: Mapping[tuple[Any, ...], int],
    row_of: Mapping[tuple[Any, ...], int],
) -> list[dict[str, Any]]:
    """Return the overlays: ``kind``, ``label``, ``rate``, ``sweep``, ``of``, and ``at``, its value by metric.

    ``of`` is the row of the encoder that it speaks of.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in facts.records(facts.overlays(every)):
        key = row["sweep"], row["overlay"]
        rate = number.get((row["dim"], row["levels"], row["rate_bits"]))
        told = {"kind": row["kind"], "label": row["label"], "sweep": sweeps.index(row["sweep"]), "rate": rate}
        found.setdefault(key, told | {"of": row_of.get(key), "at": {}})["at"][row["metric"]] = _plain(row["value"])
    return list(found.values())


def _pictures(points: pd.DataFrame, image: Callable[[str], bytes]) -> dict[str, str]:
    """Return base64 PNGs by hash: first seed first (the image grid), then the fronts, until the budget is spent."""
    if points.empty:
        return {}
    first = points["seed"] != points.groupby("sweep")["seed"].transform("min")
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


def _size(points: pd.DataFrame, image: Callable[[str], bytes]) -> list[int]:
    """Return width and height of the pictures in pixels: a page keeps their places before they are loaded."""
    with suppress(StoreError, IndexError):
        header = image(points["originals_sha256"].dropna().tolist()[0])[16:24]  # of a PNG
        return [int.from_bytes(header[:4]), int.from_bytes(header[4:])]
    return [1, 1]


def _curves(
    shown: Shown, every: pd.DataFrame, number: Mapping[tuple[Any, ...], int], stages: Sequence[str]
) -> dict[str, Any]:
    """Return training curves, lowest seeds first, each thinned to ``CURVE_EPOCHS``: epochs, values by split/metric."""
    began = every[every["status"] != "pending"]
    kept = began.sort_values("seed", kind="stable").head(CURVES)
    names = ["trial_id", "split", "metric", "epoch", "value"]
    chosen = shown.curves(kept["trial_id"].tolist())[["sweep", *names]].sort_values("epoch", kind="stable")
    values: dict[Any, dict[str, list[list[Any]]]] = {}
    thinned = False
    for (sweep, trial_id, split, metric), rows in chosen.groupby(["sweep", "trial_id", "split", "metric"], sort=False):
        every_nth = -(-len(rows) // CURVE_EPOCHS)
        thinned |= every_nth > 1
        # From the end, so that the last epoch is always there.
        pair = [rows["epoch"].tolist(), _numbers(rows["value"], 6)]
        told = [column[::-1][::every_nth][::-1] for column in pair]
        values.setdefault((sweep, trial_id), {})[f"{split}/{metric}"] = told
    lines = [
        {
            "trial_id": row["trial_id"],
            "sweep": shown.sweeps.index(row["sweep"]),
            "stage": stages.index(row["stage"]),
            "rate": number[tuple(row[name] for name in facts.RATE)],
            "weights": gaps.weights(row),
            "encoder": gaps.encoder(row),
            "seed": _exact(row["seed"]),
            "status": row["status"],
            "values": values[row["sweep"], row["trial_id"]],
        }
        for row in facts.records(kept)
        if (row["sweep"], row["trial_id"]) in values
    ]
    return {"lines": lines, "left_out": len(began) - len(kept), "thinned": thinned, "most": CURVE_EPOCHS}


def _numbers(column: pd.Series[Any], digits: int = DIGITS) -> list[float | None]:
    style = f"%.{digits}g"
    values = column.to_numpy(float)
    return [float(style % value) if abs(value) < float("inf") else None for value in values.tolist()]


def _exact(seed: int) -> int | str:
    """Return a seed as a browser can tell it from others: its numbers have 53 bits."""
    return int(seed) if abs(seed) <= 2**53 else str(seed)


def _plain(value: Any) -> Any:
    return None if pd.isna(value) or value in (float("inf"), float("-inf")) else value
