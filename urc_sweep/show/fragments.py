"""What Python writes into the report's page: words and tables, every one of them HTML that holds nothing but text.

Invariant: whatever came from data goes through ``html.escape``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from urc_sweep.maths.penalty import FEWEST_PAIRS
from urc_sweep.plan.spec import stage_label
from urc_sweep.show import facts, figures, gaps, progress
from urc_sweep.show.grid import FAILURES

# A mail attachment: what is past these stays in the store, and the page says so.
TABLE_ROWS = 500
MOST_TRACES = 50
DASH = "–"

# Headings of columns that are shown where they tell rows apart.
HEADINGS = {
    "parent_lambda_d": "encoder λ_d",
    "parent_lambda_p": "encoder λ_p",
    "reduced_from": "of bits",
    "reference_mse": "reference MSE",
    "reference_cross_entropy": "reference [nats]",
    "parent_stage": "encoder's stage",
    "parent_variant": "encoder's variant",
    "parent_terms": "encoder's further terms",
    "terms": "further terms",
    "lambda_d": "λ_d",
    "lambda_c": "λ_c",
    "lambda_p": "λ_p",
}

Cell = Callable[[Mapping[str, Any]], str]


def written(
    trials: pd.DataFrame,
    points: pd.DataFrame,
    at: str,
    costs: Mapping[str, Mapping[str, pd.DataFrame]],
    tables: Mapping[str, pd.DataFrame],
    trace: Callable[[str], str],
    verified: str,
) -> dict[str, str]:
    """Return the page's words and tables by slot.

    ``points`` knows the fronts over MSE and ``at``. ``costs``: by what is matched, the tables ``penalties`` and
    ``splits``; ``tables``: the others, by name; ``trace``: a trial's traceback; ``verified``: what a check of the store
    said, "" where none was made.
    """
    return {
        "subtitle": _subtitle(trials),
        "state": _state(trials, points),
        "trust": _trust(trials, points, at, verified),
        "penalties": _costs(points, costs, tables["rate_penalties"]),
        "hypervolumes": _hypervolumes(tables["hypervolumes"]),
        "encoders": _encoders(tables["encoders"]),
        "failures": _failures(tables["failures"], trace),
    }


# -- words -------------------------------------------------------------------------------------------------------------


def _subtitle(trials: pd.DataFrame) -> str:
    trials = trials.drop_duplicates("trial_id")  # sweeps share trials
    networks = _distinct(trials[trials["dim"].notna()], "model", " networks")
    names = " · ".join(filter(None, (_distinct(trials, "dataset"), networks)))
    last = trials.loc[trials["status"] == "done", "finished_at"].max()
    date = f"last finished {last:%-d %B %Y, %H:%M} UTC" if pd.notna(last) else "none finished yet"
    counts = trials["status"].value_counts()
    status = ", ".join(f"{counts[name]} {name}" for name in facts.STATUSES if name in counts)
    return html.escape(f"{names or 'no trials'} — {len(trials)} trials: {status or 'none'}; {date}")


def _state(trials: pd.DataFrame, points: pd.DataFrame) -> str:
    """Return what a reader must know before believing the figures: empty and partial states, in plain words."""
    trials, points = (table.drop_duplicates("trial_id") for table in (trials, points))
    notes = []
    waiting = int((~trials["status"].isin(["done", *FAILURES])).sum())
    failed = int(trials["status"].isin(FAILURES).sum())
    if waiting:
        notes.append(f"Not finished: {waiting} of {len(trials)} trials are still to come. All below is preliminary.")
    if points.empty:
        why = "Every compressor that ran has failed, see below." if failed else "No compressor is trained yet."
        notes.append(f"{why} There is nothing to draw.")
    elif len(points) == 1:
        notes.append("Only one trial is done: a point, not a front.")
    elif not points["stage"].isin(gaps.UNIVERSAL).any():
        notes.append("No universal trial is done, so nothing here speaks about universality.")
    worse = int(points["worse_than_rate0"].sum())
    if worse:
        notes.append(f"{_runs(worse)} worse than zero rate (the best constant image): thin crosses, on no front.")
    if failed and not points.empty:
        notes.append(f"{_runs(failed)} without a result, listed under Failures.")
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _runs(count: int) -> str:
    return "1 run is" if count == 1 else f"{count} runs are"


def _trust(trials: pd.DataFrame, points: pd.DataFrame, at: str, verified: str) -> str:
    trials, points = (table.drop_duplicates("trial_id") for table in (trials, points))
    ran = trials[trials["status"] == "done"].assign(git_sha=trials["git_sha"].str[:10])
    stages = progress.counts(trials, trials["status"])
    finished = [f"{stage_label(name)} {own.get('done', 0)}/{sum(own.values())}" for name, own in stages.items()]
    members = f"{int(points['on_front'].sum())} of {len(points)} points"
    chosen = f"{members} chosen for fronts over MSE and {_words(at)} on the validation split"
    entries = {
        "done": ", ".join(finished),
        "failed": str(int(trials["status"].isin(FAILURES).sum())),
        "seeds": _distinct(trials[trials["dim"].notna()], "seed"),
        "precision": _distinct(trials, "precision"),
        "protocol": _distinct(trials, "protocol"),
        "code": ", ".join(filter(None, (_distinct(ran, "code_version"), _distinct(ran, "git_sha")))),
        "torch": _distinct(ran, "torch_version"),
        "machine": " on ".join(filter(None, (_distinct(ran, "device"), _distinct(ran, "host")))),
        "store": f"verified: {verified}" if verified else "not verified; `report --verify` does",
        "choices": f"{chosen}; every number is of the test split",
    }
    pairs = [f"<div><dt>{name}</dt><dd>{html.escape(value or DASH)}</dd></div>" for name, value in entries.items()]
    return f'<dl class="trust">{"".join(pairs)}</dl>'


def _distinct(trials: pd.DataFrame, column: str, suffix: str = "") -> str:
    values = sorted(trials[column].dropna().unique().tolist())
    text = ", ".join(map(str, values[:8])) + (f" … ({len(values)})" if len(values) > 8 else "")
    return text + suffix if values else ""


# -- tables ------------------------------------------------------------------------------------------------------------


def _costs(every: pd.DataFrame, costs: Mapping[str, Mapping[str, pd.DataFrame]], rates: pd.DataFrame) -> str:
    """Return the tables of what universality costs, at everything that the objectives trade."""
    parts = []
    for at, tables in costs.items():
        if reason := gaps.obstacle(every, at):
            parts.append(f'<p class="note">Matched {_words(at)}: {html.escape(reason)}.</p>')
        if tables["penalties"].empty:
            continue
        parts.append(_penalties(tables["penalties"], at))
        if len(tables["splits"]):
            parts.append(_splits(tables["splits"], at))
    return "".join(parts) + (_rate_penalties(rates) if len(rates) else "")


def _words(at: str) -> str:
    return at.replace("_", "-")


def _base(table: pd.DataFrame) -> dict[str, Cell]:
    """Return the columns that say whose decoders a row is about, those that tell rows apart."""
    return {
        **_varying(table, "sweep"),
        "rate": rate_cell,
        "encoder λ_c": _number("parent_lambda_c", "g"),
        **_varying(table, *facts.ENCODER[1:], "stage", "parent_stage", "parent_variant", "variant"),
    }


def _at(table: pd.DataFrame, at: str) -> dict[str, Cell]:
    weight = ("λ_c", "lambda_c") if gaps.CONSTRAINTS[at] == "lambda_c" else ("λ_p", "lambda_p")
    others = [name for name in facts.OBJECTIVE if name != weight[1]]
    return {f"at {weight[0]}": _number(weight[1], "g"), **_varying(table, *others)}


def _penalties(table: pd.DataFrame, at: str) -> str:
    columns: dict[str, Cell] = {
        **_base(table),
        **_at(table, at),
        "C [nats]" if at == "cross_entropy" else "C": _number("constraint", ".3f"),
        "MSE end-to-end": _number("mse_end_to_end", ".5f"),
        "MSE universal": _number("mse_universal", ".5f"),
        "penalty": lambda row: "infeasible" if row["infeasible"] else f"{row['penalty']:+.5f}",
        "%": _number("penalty_percent", "+.1f"),
        "95 % interval": lambda row: DASH if row["infeasible"] else _interval(row),
        "seeds": _seeds,
    }
    return table_of(f"Distortion penalty at matched {_words(at)} C", table, columns, f"penalties-{at}")


def _splits(table: pd.DataFrame, at: str) -> str:
    columns: dict[str, Cell] = {
        **_base(table),
        **_at(table, at),
        "gap": _number("gap", "+.5f"),
        "interval": lambda row: _interval(row, "gap_"),
        "encoder": _number("encoder", "+.5f"),
        "encoder's interval": lambda row: _interval(row, "encoder_"),
        "decoder": _number("decoder", "+.5f"),
        "decoder's interval": lambda row: _interval(row, "decoder_"),
        "seeds": lambda row: f"{row['gap_seeds']} of {row['of_seeds']}",
    }
    caption = f"Where the gap at matched {_words(at)} comes from: what the encoder lost + what decoders failed to learn"
    return table_of(caption, table, columns, f"splits-{at}")


def _rate_penalties(table: pd.DataFrame) -> str:
    columns: dict[str, Cell] = {
        **_base(table),
        "A(Ω(R)) [bits]": _number("rate_penalty", "+.3f"),
        "95 % interval": lambda row: _interval(row, "rate_penalty_"),
        "status": lambda row: str(row["status"]),
        "profile, max": _number("profile_max", "+.3f"),
        "profile, mean": _number("profile_mean", "+.3f"),
        "points placed": _number("placed", ".0%"),
        "what it misses": lambda row: str(row["profile_status"]),
        "over rates": lambda row: str(row["end_to_end_rates"]),
        "seeds": lambda row: f"{row['rate_penalty_seeds']} of {row['of_seeds']}",
    }
    caption = (
        "Rate penalty: bits beyond R that one encoder's decoders need to dominate every end-to-end point of rate R"
    )
    return table_of(caption, table, columns, "rate-penalties")


def _varying(table: pd.DataFrame, *names: str) -> dict[str, Cell]:
    """Return the columns that tell rows apart."""
    several = [name for name in names if name in table and table[name].nunique(dropna=False) > 1]
    return {HEADINGS.get(name, name): _stage(name) if "stage" in name else _told(name) for name in several}


def _interval(row: Mapping[str, Any], prefix: str = "") -> str:
    if row[f"{prefix}seeds"] < FEWEST_PAIRS:
        return f"none under {FEWEST_PAIRS} seeds"
    return f"[{row[f'{prefix}low']:+.5f}, {row[f'{prefix}high']:+.5f}]"


def _seeds(row: Mapping[str, Any]) -> str:
    return f"{row['seeds']} of {row['of_seeds']}"


def _stage(column: str = "stage") -> Cell:
    return lambda row: stage_label(row[column]) if row[column] else DASH


def _hypervolumes(table: pd.DataFrame) -> str:
    if table.empty:
        return '<p class="empty">No front yet.</p>'
    keys = ["sweep", *facts.RATE, "stage", *facts.PARENT, "variant", *facts.REFERENCE]
    every = table.groupby(keys, dropna=False)["hypervolume"].agg(mean="mean", n="size", each=list).reset_index()
    references = every[facts.REFERENCE].drop_duplicates()
    one = " ({:.4f}, {:.4f} nats)".format(*references.iloc[0]) if len(references) == 1 else ", each data set's own"
    caption = f"Hypervolume in (MSE, cross-entropy), reference: the zero-rate point{one}"
    columns: dict[str, Cell] = {
        **_varying(every, "sweep"),
        "rate": rate_cell,
        "stage": _stage(),
        "encoder λ_c": _number("parent_lambda_c", "g"),
        **_varying(every, *facts.PARENT[1:], "variant", *(facts.REFERENCE if len(references) > 1 else ())),
        "mean": _number("mean", ".5f"),
        "fronts": lambda row: str(row["n"]),
        "each": lambda row: "  ".join(f"{value:.5f}" for value in row["each"][:10]) + (" …" if row["n"] > 10 else ""),
    }
    return table_of(caption, every, columns, "hypervolumes")


def _encoders(table: pd.DataFrame) -> str:
    if table.empty:
        return '<p class="empty">No end-to-end trial is done yet.</p>'
    values = ["mse", "mse_centroid", "latent_label_entropy", "latent_accuracy", "index_entropy_bits"]
    keys = ["sweep", *facts.RATE, "stage", "variant", *facts.OBJECTIVE]
    # A collapsed run would drag the means along. A random control's own decoder is untrained on purpose.
    sound = ~table["worse_than_rate0"] | (table["stage"] == "control")
    groups = table[keys].join(table.loc[sound, values]).assign(sound=sound).groupby(keys, dropna=False)
    mean = groups[values].mean().assign(seeds=groups["sound"].sum(), of_seeds=groups.size()).reset_index()
    columns: dict[str, Cell] = {
        **_varying(mean, "sweep"),
        "rate": rate_cell,
        **_varying(mean, "stage", "variant"),
        "λ_c": _number("lambda_c", "g"),
        **_varying(mean, "lambda_d", "lambda_p", "terms"),
        "MSE": _number("mse", ".5f"),
        "MSE of best decoder": _number("mse_centroid", ".5f"),
        "H(S|Z,U) [nats]": _number("latent_label_entropy", ".3f"),
        "latent accuracy": _number("latent_accuracy", ".3f"),
        "H(Z|U) [bits]": _number("index_entropy_bits", ".3f"),
        "seeds": _seeds,
    }
    return table_of("Encoders, means over the seeds that are not worse than zero rate", mean, columns, "encoders")


def _failures(table: pd.DataFrame, trace: Callable[[str], str]) -> str:
    if table.empty:
        return ""
    columns: dict[str, Cell] = {
        "trial": lambda row: str(row["trial_id"])[:12],
        **_varying(table, "sweep"),
        "stage": _stage(),
        "rate": lambda row: rate_cell(row) if pd.notna(row["dim"]) else DASH,
        "weights": lambda row: gaps.weights(row) or DASH,
        "seed": lambda row: str(row["seed"]),
        "status": lambda row: str(row["status"]),
        "host": lambda row: str(row["host"]) if pd.notna(row["host"]) else DASH,
        "error": _error,
    }
    body = table_of("Trials without a result", table, columns, "failures")
    traces = {trial: trace(str(trial)) for trial in table["trial_id"].head(MOST_TRACES)}
    folded = "".join(
        f"<details><summary>{html.escape(f'{trial[:12]}: {text.splitlines()[-1][:200]}')}</summary>"
        f"<pre>{html.escape(text)}</pre></details>"
        for trial, text in traces.items()
        if text
    )
    return f"<h2>Failures</h2>{body}{folded}"


def _error(row: Mapping[str, Any]) -> str:
    told = [str(row[name]) for name in ("error_type", "error_message") if pd.notna(row[name])]
    return ": ".join(told) or DASH


def table_of(caption: str, table: pd.DataFrame, columns: Mapping[str, Cell], csv: str) -> str:
    """Return an HTML table with every cell escaped; a heading's ``_c`` becomes a subscript; ``csv`` names its file."""
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


def _told(column: str) -> Cell:
    def cell(row: Mapping[str, Any]) -> str:
        value = row[column]
        return DASH if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)

    return cell


def _number(column: str, style: str) -> Cell:
    return lambda row: DASH if pd.isna(row[column]) else format(row[column], style)


def rate_cell(row: Mapping[str, Any]) -> str:
    """Return a row's rate in words."""
    return figures.rate_label(int(row["dim"]), int(row["levels"]), float(row["rate_bits"]))
