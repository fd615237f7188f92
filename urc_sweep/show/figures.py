"""Plotly figures from facts, for notebooks and papers.

The report's page shows ``penalty``, ``gap`` and ``surface`` as they are made here; frontier and curves it draws itself,
alike: axes and filters must answer there at once.

Invariant: what is drawn is a row of a table of ``facts`` or ``gaps``, and nothing between rows: fronts are steps. Seed
bands and intervals need as many seeds as science says. Backgrounds are transparent and ink is a grey that reads on
white and on black; what has to stand out from it (the outline of end-to-end points, whiskers) is "black", a word that
a page with its own ink replaces.
"""

from __future__ import annotations

import base64
import itertools
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import qualitative

from urc_sweep.errors import SpecError, StoreError, choices
from urc_sweep.maths.frontier import envelope
from urc_sweep.maths.penalty import FEWEST_PAIRS
from urc_sweep.plan.spec import stage_label
from urc_sweep.show import facts, gaps, progress

if TYPE_CHECKING:
    from urc_sweep.show.exchange import Reference as Reference

Row = Mapping[str, Any]
Floats = NDArray[np.float64]

# Without this, plotly.js offers to upload the chart to a cloud.
CONFIG: Mapping[str, Any] = MappingProxyType({"showSendToCloud": False, "displaylogo": False, "responsive": True})

# Colour-blind safe; the first ones are those that read on white and on black alike.
PALETTE = tuple(qualitative.Safe[index] for index in (6, 1, 7, 5, 0, 2, 3, 8, 4, 9, 10))
# What a gap is made of: Okabe and Ito's blue and orange, which differ in grey as well.
PARTS: Mapping[str, str] = MappingProxyType({"encoder": "rgb(0, 114, 178)", "decoder": "rgb(230, 159, 0)"})
INK, GREY, RULE = "rgb(118, 118, 118)", "rgb(128, 128, 128)", "rgba(128, 128, 128, 0.2)"
SYMBOLS: Mapping[str, str] = MappingProxyType(
    {"end_to_end": "circle", "universal": "diamond", "joint_decoder": "triangle-up", "refined": "cross", "reduced": "x"}
)
SWEEPS = ("", "-open", "-dot", "-open-dot")  # what sets a further sweep's symbols apart
DASHES: Mapping[str, str] = MappingProxyType({"end_to_end": "solid", "universal": "dot"})
OVERLAYS: Mapping[str, str] = MappingProxyType({"bound": "solid", "near-floor": "dash", "achievable": "dot"})
BASES = (("dot", "diamond"), ("dash", "square"), ("dashdot", "triangle-up"), ("longdash", "star"))
OTHER_SYMBOL, OTHER_DASH, WORSE_SYMBOL = "square", "dash", "x-thin-open"
SVG_POINTS = 3000  # above it WebGL draws, the page's canvas too: SVG would take seconds
MOST_STRIPS = 60  # an image grid longer than that is for the report
CROWDED, MOST_BARS = 6, 60  # bars whose names no longer fit side by side, and that would fill screen after screen
FAR = 0.5  # overlays further from the points than that share of their range wait in the legend


def rate_label(dim: int, levels: int, bits: float) -> str:
    """Return ``(3, 4) 6 bits``: the paper's pair of latent dimensions and levels, and the rate."""
    return f"({dim:g}, {levels:g}) {bits:.4g} bits"


def frontier(
    trials: pd.DataFrame,
    x: str = "mse",
    y: str = "",
    log: Collection[str] = (),
    bands: bool = True,
    references: Sequence[Reference] = (),
) -> go.Figure:
    """Return the frontier over two metrics (columns of ``facts.AXES``), test values; ``log`` holds "x", "y" or both.

    Without ``y`` it is what the sweep trades for distortion (``gaps.matched_at``). Colour is the rate, symbol the
    stage, its style the sweep; end-to-end points are outlined in black as in the paper. Steps join the points that
    validation put on the front, one staircase per seed and frozen encoder (over rates: per seed); faint points are on
    none, crosses are worse than zero rate. From three seeds on, with ``bands``, staircases make room for what a
    quarter, half (the line) and three quarters of the seeds reach. ``references`` are drawn in grey, only where both
    axes are among their metrics. Unknown axis: ``SpecError``.
    """
    trials, y = facts.compressors(trials), y or gaps.matched_at(trials)
    known = {**facts.AXES, **facts.axes(trials)}
    for letter, axis in (("x", x), ("y", y)):
        if axis not in known:
            raise SpecError(f"--{letter} {axis}: {choices(axis, known)}")
    done = facts.fronts(trials, x, y)
    points = done.dropna(subset=[x, y])
    figure = go.Figure(layout=_layout(known[x], known[y]))
    figure.update_layout({f"{letter}axis_type": "log" for letter in log})
    for curve, dash in zip(references, itertools.cycle(("dash", "dot", "dashdot")), strict=False):
        if {x, y} <= curve.values.keys():
            drawn = {"mode": "lines+markers", "marker_size": 4, "line": _line(GREY, dash)}
            figure.add_scatter(x=curve.values[x], y=curve.values[y], name=escape(curve.name), **drawn)
    if points.empty:
        return _empty(figure, progress.no_front(done))
    colours, sweeps = _colours(trials), [*points["sweep"].unique()]
    scatter = go.Scattergl if len(points) > SVG_POINTS else go.Scatter
    sane = points[~points["worse_than_rate0"]]
    _overlays(figure, trials, sane, (x, y))
    lost = len(points) - len(sane)
    if lost and len(sane):
        _clip(figure, sane[[x, y]], f"crosses: {lost} worse than zero rate, may be outside")
    surfaces = facts.bands(trials, x, y) if bands else pd.DataFrame()
    for row, fronts, band in _families(points, surfaces, x, y):
        colour = colours.get(_rate(row), GREY)
        silent = {"legendgroup": _name(row, sweeps), "showlegend": False, "hoverinfo": "skip", "mode": "lines"}
        if len(band):
            area = {"fill": "toself", "fillcolor": colour, "opacity": 0.2, "line_width": 0}
            figure.add_scatter(x=band[:, 0], y=band[:, 1], **area, **silent)
        line = _line(colour, DASHES.get(row["stage"], OTHER_DASH), 2 if len(band) else 1.2)
        steps = np.vstack([np.vstack([front, [np.nan] * 2]) for front in fronts])
        figure.add_trace(scatter(x=steps[:, 0], y=steps[:, 1], line=line, **silent))
    for group in _groups(points, ["sweep", *facts.RATE, "stage"]).values():
        rows = facts.records(group)
        name, outlined = _name(rows[0], sweeps), rows[0]["stage"] == "end_to_end"
        symbol = SYMBOLS.get(rows[0]["stage"], OTHER_SYMBOL) + SWEEPS[sweeps.index(rows[0]["sweep"]) % len(SWEEPS)]
        marker = {"color": colours[_rate(rows[0])], "size": 9}
        marker["symbol"] = np.where(group["worse_than_rate0"], WORSE_SYMBOL, symbol)
        marker["opacity"] = np.where(group["on_front"], 1.0, 0.35)
        marker["line"] = {"color": "black", "width": 1.3 if outlined else 0}
        told = {"name": name, "legendgroup": name, "text": [_hover(row, x, y) for row in rows], "hoverinfo": "text"}
        told["meta"] = [_rate(rows[0]), name.removeprefix(f"{_rate(rows[0])}, "), symbol]
        figure.add_trace(scatter(x=group[x], y=group[y], mode="markers", marker=marker, **told))
    if len(surfaces):
        _key(figure, "a quarter to three quarters of the seeds; line: half", symbol="square", opacity=0.4, size=12)
    return figure


def penalty(trials: pd.DataFrame, at: str = "", table: pd.DataFrame | None = None) -> go.Figure:
    """Return the distortion penalty of universality against the constraint that is matched, ``at`` as in ``gaps``.

    A line per rate and base encoder, means over paired seeds with 95 % intervals (none under three seeds); crosses at
    the bottom are constraints that no universal point of any seed meets. ``table``: ``gaps.penalties`` of the same,
    where it is known already. Unknown ``at``: ``SpecError``.
    """
    at = at or gaps.matched_at(trials)
    table = (gaps.penalties(trials, at) if table is None else table).sort_values("constraint", kind="stable")
    matched = facts.AXES[at].replace(" classifier", "")  # must fit into a column of a paper
    figure = go.Figure(layout=_layout(f"matched {matched}, validation", "distortion penalty [MSE per pixel]"))
    if table.empty:
        return _empty(figure, gaps.obstacle(trials, at) or "no penalty yet")
    figure.add_hline(0, line={"color": GREY, "width": 1})
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    colours, sweeps = _colours(trials), [*table["sweep"].unique()]
    words = sorted({_base(row, sweeps) for row in facts.records(table)})
    for group in _groups(table, gaps.BASE).values():
        rows = facts.records(group)
        colour, base = colours[_rate(rows[0])], _base(rows[0], sweeps)
        dash, symbol = BASES[words.index(base) % len(BASES)]
        told = {"name": f"{_rate(rows[0])}, {base}", "legendgroup": f"{_rate(rows[0])}, {base}", "hoverinfo": "text"}
        met, missed = ([row for row in rows if row["infeasible"] == side] for side in (False, True))
        drawn: Row = {"mode": "lines+markers", "line": _line(colour, dash), "marker": {"size": 8, "symbol": symbol}}
        places: Row = {"x": [row["constraint"] for row in met], "y": [row["penalty"] for row in met]}
        text = [_compared(row, at, "penalty", "") for row in met]
        figure.add_scatter(**places, error_y=_interval(met, "penalty", "", colour), text=text, **drawn, **told)
        drawn = {"mode": "markers", "marker": {"size": 8, "symbol": "x-thin", "line": _line(colour, None, 1.6)}}
        places = {"x": [row["constraint"] for row in missed], "y": [0.02] * len(missed), "yaxis": "y2"}
        text = [_compared(row, at, "penalty", "") for row in missed]
        figure.add_scatter(**places, text=text, showlegend=False, **drawn, **told)
    if table["infeasible"].any():
        _key(figure, "infeasible", symbol="x-thin", line={"color": GREY, "width": 1.6})
    return _seeds(figure, table.loc[~table["infeasible"], "seeds"], gaps.obstacle(trials, at))


def gap(trials: pd.DataFrame, at: str = "", table: pd.DataFrame | None = None) -> go.Figure:
    """Return the same penalties split into what the base encoder lost and what decoders failed to learn, as bars.

    A bar per rate, base encoder and end-to-end weight; the two parts sum to the total exactly, below zero where they
    are negative; the whisker is the total's 95 % interval (none under three seeds). ``table``: ``gaps.splits`` of the
    same, where it is known already. More than a few bars lie, one below the other, and the figure is as high as they
    need. Unknown ``at``: ``SpecError``.
    """
    at = at or gaps.matched_at(trials)
    table = (gaps.splits(trials, at) if table is None else table).dropna(subset=["gap"])
    lies = CROWDED < len(table) <= MOST_BARS
    along, across = ("y", "x") if lies else ("x", "y")
    figure = go.Figure(layout=_layout("", "") | {"barmode": "relative", "bargap": 0.35})
    figure.update_layout({f"{across}axis_title_text": "gap [MSE per pixel]"})
    if table.empty:
        return _empty(figure, gaps.obstacle(trials, at) or "no gap to split: no universal front meets a constraint")
    rows, sweeps = facts.records(table), [*table["sweep"].unique()]
    places = _lines(figure, rows, sweeps) if lies else _columns(figure, rows, sweeps)
    for part, colour in PARTS.items():
        hatch = {"shape": "" if part == "encoder" else "/", "fillmode": "overlay", "fgcolor": "white", "size": 6}
        told: dict[str, Any] = {"text": [_compared(row, at, part, f"{part}_") for row in rows], "hoverinfo": "text"}
        told |= {"name": f"{part}'s part", "marker": {"color": colour, "pattern": hatch}, "textposition": "none"}
        figure.add_bar(**{along: places, across: table[part], "orientation": "h" if lies else "v", **told})
    mean = {"symbol": "line-ns" if lies else "line-ew", "size": 14, "line": {"color": "black", "width": 2}}
    told = {"text": [_compared(row, at, "gap", "gap_") for row in rows], "hoverinfo": "text", "name": "whole gap"}
    told |= {"mode": "markers", "marker": mean, f"error_{across}": _interval(rows, "gap", "gap_", "black")}
    figure.add_scatter(**{along: places, across: table["gap"], **told})
    return _seeds(figure, table["gap_seeds"], gaps.obstacle(trials, at))


def _columns(figure: go.Figure, rows: Sequence[Row], sweeps: Sequence[str]) -> list[list[str]]:
    """Return the places of bars side by side, by group and weight."""
    figure.update_xaxes(tickangle=-90 if len(rows) > CROWDED else None)
    bases = [re.sub("(.{10,}?) (?=[a-zλ])", r"\1<br>", _base(row, sweeps)) for row in rows]
    return [[f"{_rate(row)}<br>{base}" for row, base in zip(rows, bases, strict=True)], [*map(_weights, rows)]]


def _lines(figure: go.Figure, rows: Sequence[Row], sweeps: Sequence[str]) -> list[float]:
    """Return the places of bars one below the other, headed by rate and base encoder; as high as their words need."""
    places, labels, group, bottom = list[float](), list[str](), "", 0.0
    for row in rows:
        head, label = _wrapped(f"{_rate(row)}, {_encoder(row, sweeps)}", 54), _wrapped(gaps.weights(row), 20)
        if head != group:
            group, beside = head, {"xref": "paper", "xanchor": "right", "yanchor": "top", "align": "right"}
            figure.add_annotation(x=1, y=bottom, text=f"<b>{head}</b>", showarrow=False, **beside)
            bottom += 1.4 + head.count("<br>")
        high = 1 + label.count("<br>")
        places, labels, bottom = [*places, bottom + high / 2], [*labels, label], bottom + high
    figure.update_xaxes(zeroline=True, zerolinecolor=GREY)
    figure.update_yaxes(range=[bottom, 0], tickvals=places, ticktext=labels)
    figure.update_layout(height=16 * bottom + 60)
    return places


def surface(trials: pd.DataFrame) -> go.Figure:
    """Return the rate-distortion-classification surface in 3-D (perception where no objective classifies).

    Points that validation put on a front, test values; end-to-end fronts are ribbons at the trained rates (from three
    seeds on, what half of them reach): between rates nothing was trained, so nothing is drawn.
    """
    z = gaps.matched_at(trials)
    done = facts.fronts(trials, "mse", z)
    points, figure = done.dropna(subset=["mse", z]).query("on_front"), go.Figure(layout=_layout("", ""))
    if points.empty:
        return _empty(figure, progress.no_front(done))
    axis = {"color": INK, "gridcolor": GREY, "showbackground": False, "zeroline": False}
    columns = {"x": "rate_bits", "y": "mse", "z": z}
    scene = {f"{letter}axis": axis | {"title": {"text": facts.AXES[name]}} for letter, name in columns.items()}
    figure.update_layout(scene={**scene, "camera_eye": {"x": 1.6, "y": 1.6, "z": 0.8}}, margin={"l": 0, "r": 0, "b": 0})
    colours, sweeps = _colours(trials), [*points["sweep"].unique()]
    half = 0.1 * float(min(np.diff(np.sort(points["rate_bits"].unique())), default=1.0))
    for row, fronts, _ in _families(points.query("stage == 'end_to_end'"), facts.bands(trials, "mse", z), "mse", z):
        colour = colours[_rate(row)]
        flat = {"colorscale": [[0, colour], [1, colour]], "showscale": False, "opacity": 0.5, "hoverinfo": "skip"}
        for steps in fronts:
            across = [np.full(len(steps), row["rate_bits"] + side) for side in (-half, half)]
            sides = {"x": across, "y": [steps[:, 0]] * 2, "z": [steps[:, 1]] * 2}
            figure.add_surface(**sides, **flat, legendgroup=_name(row, sweeps))
    for group in _groups(points, ["sweep", *facts.RATE, "stage"]).values():
        first = facts.records(group.head(1))[0]
        symbol = SYMBOLS.get(first["stage"], OTHER_SYMBOL).replace("triangle-up", "square")  # 3-D has no triangle
        marker = {"color": colours[_rate(first)], "size": 4, "symbol": symbol}
        marker["line"] = {"color": "black", "width": 1 if first["stage"] == "end_to_end" else 0}
        told: dict[str, Any] = {"name": _name(first, sweeps), "legendgroup": _name(first, sweeps)}
        places = {letter: group[column] for letter, column in columns.items()}
        if len(points) <= SVG_POINTS:  # megabytes of words otherwise
            told |= {"text": [_hover(row, "mse", z) for row in facts.records(group)], "hoverinfo": "text"}
        figure.add_scatter3d(**places, mode="markers", marker=marker, **told)
    return figure


def curves(trials: pd.DataFrame, curves: pd.DataFrame, metric: str = "loss", split: str = "train") -> go.Figure:
    """Return training curves of one metric and split: colour is the rate, dash the stage, one line per trial."""
    figure, shown = go.Figure(layout=_layout("epoch", f"{metric} ({split})")), set[str]()
    points, colours = facts.compressors(trials).drop_duplicates("trial_id"), _colours(trials)
    chosen = curves[(curves["metric"] == metric) & (curves["split"] == split)].sort_values("epoch", kind="stable")
    lines = dict(list(chosen.drop_duplicates(["trial_id", "epoch"]).groupby("trial_id")))
    for row in facts.records(points[points["trial_id"].isin(lines.keys())]):
        name, data = _name(row, []), lines[row["trial_id"]]
        line = _line(colours[_rate(row)], DASHES.get(row["stage"], OTHER_DASH))
        told = {"name": name, "legendgroup": name, "showlegend": name not in shown, "hoverinfo": "text+y"}
        figure.add_scatter(x=data["epoch"], y=data["value"], mode="lines", line=line, text=_hover(row), **told)
        shown.add(name)
    return figure if shown else _empty(figure, "no curve to show")


def images(trials: pd.DataFrame, image: Callable[[str], bytes]) -> go.Figure:
    """Return reconstructions as a weight grows (the paper's figure 7), of each sweep's first seed: pixels as they are.

    ``image`` gives an artifact's PNG by its SHA-256, or raises ``StoreError``: that row is left out.
    """
    points = facts.fronts(trials)
    order = ["rate_bits", "sweep", "stage", "parent_id", "variant", "lambda_c", "lambda_p", "lambda_d"]
    first = points["seed"] == points.groupby("sweep")["seed"].transform("min")
    points = points[first].sort_values(order, kind="stable").head(MOST_STRIPS)
    figure, sweeps = go.Figure(layout=_layout("", "")), [*points["sweep"].unique()]
    group, top, width, beside = "", 0.0, 0, {"showarrow": False, "yanchor": "middle"}
    for row in facts.records(points):
        try:
            original, strip = (image(str(row[f"{name}_sha256"])) for name in ("originals", "samples"))
        except StoreError:
            continue
        width, height = (int.from_bytes(strip[at : at + 4], "big") for at in (16, 20))  # of the PNG's header
        known = {name: row[name] for name in ("mse", "accuracy") if pd.notna(row[name])}
        rows = [(strip, _weights(row), ", ".join(f"{value:.3g}" for value in known.values()))]
        if group != (group := ", ".join(filter(None, (_name(row, sweeps), _base(row, []))))):
            figure.add_annotation(x=0, y=top + 0.7 * height, text=f"<b>{group}</b>", xanchor="left", **beside)
            rows, top = [(original, "original", ", ".join(known)), *rows], top + 1.2 * height
        for png, left, right in rows:
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            place = {"xref": "x", "yref": "y", "x": 0, "y": top, "sizex": width, "sizey": height, "sizing": "stretch"}
            figure.add_layout_image(source=source, **place)
            for x, text, side, shift in ((0, left, "right", -6), (width, right, "left", 6)):
                figure.add_annotation(x=x, y=top + height / 2, text=text, xanchor=side, xshift=shift, **beside)
            top += 1.1 * height
    if not width:
        return _empty(figure, "no reconstruction to show")
    figure.update_xaxes(visible=False, range=[0, width], constrain="domain")
    figure.update_yaxes(visible=False, range=[top, 0], scaleanchor="x", constrain="domain")
    return figure.update_layout(margin={"l": 110, "r": 160, "t": 0, "b": 0}, height=max(120, 380 * top / width))


# -- what they share ---------------------------------------------------------------------------------------------------


def _groups(table: pd.DataFrame, keys: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the groups of rows by their keys as text, so that a missing key of one table finds that of another."""
    return {"/".join(map(str, key)): group for key, group in table.groupby(list(keys), dropna=False)}


def _families(
    points: pd.DataFrame, surfaces: pd.DataFrame, x: str, y: str
) -> Iterator[tuple[Row, list[Floats], Floats]]:
    """Yield per front, of all its seeds: what it is, its staircases, and the outline of its band (empty: none).

    Where there is a band, the staircase is what half of the seeds reach. Over a rate a front is of no one rate.
    """
    rates = [] if facts.RATE_AXES & {x, y} else facts.RATE
    keys = [*rates, *(key for key in facts.FRONT_OF_RATES if key != "seed")]
    sign = np.array([-1.0 if facts.larger_is_better(axis) else 1.0 for axis in (x, y)])
    bands = _groups(surfaces, keys) if len(surfaces) else {}
    for key, group in _groups(points[points["on_front"]], keys).items():
        row = facts.records(group.head(1))[0] | ({} if rates else {"rate_bits": np.nan})
        apart = ["seed", *(["parent_id"] if rates else [])]  # each rate has an encoder of its own
        tables = [table for _, table in group.groupby(apart, dropna=False)]
        fronts, band = [envelope(sign * table[[x, y]].to_numpy(float)) for table in tables], np.empty((0, 2))
        if key in bands:
            shares = [bands[key].loc[bands[key]["share"] == share, ["x", "y"]] for share in facts.SHARES]
            best, half, worst = (sign * share.to_numpy(float) for share in shares)
            fronts, band = [half], _between(best, worst)
        yield row, [sign * front for front in fronts], sign * band


def _between(best: Floats, worst: Floats) -> Floats:
    """Return the outline (m, 2) of what lies between two staircases: a looser constraint is met by the same points."""
    if not len(worst):
        return worst  # so few seeds reach anything that there is no other side
    right, top = np.maximum(best.max(axis=0), worst.max(axis=0))
    sides = [np.vstack([[side[0, 0], top], side, [right, side[-1, 1]]]) for side in (best, worst)]
    return np.vstack([sides[0], sides[1][::-1]])


def _clip(figure: go.Figure, points: pd.DataFrame, told: str) -> None:
    """Begin with the range of these points: a run that failed must not make the others a blot."""
    low, high = points.min().to_numpy(float), points.max().to_numpy(float)
    for letter, least, most in zip("xy", low - 0.1 * (high - low), high + 0.1 * (high - low), strict=True):
        figure.update_layout({f"{letter}axis_autorangeoptions": {"clipmin": least, "clipmax": most}})
    _note(figure, told)


def _overlays(figure: go.Figure, trials: pd.DataFrame, points: pd.DataFrame, axes: tuple[str, str]) -> None:
    """Draw what theory and anchors say: a corner where both axes are known, else a line across the points."""
    table, colours = facts.overlays(trials), _colours(trials)
    spans = {axis: (points[axis].min(), points[axis].max()) for axis in axes}
    rates = {(row["sweep"], _rate(row)): row for row in facts.records(points)}
    several, table = table["sweep"].nunique() > 1, table[table["metric"].isin(axes)]
    values = table["metric"] + table["value"].astype(str)
    place = values.groupby([table["sweep"], table["overlay"]]).transform(" ".join)
    whose = table.groupby([table["overlay"], place])["sweep"].transform(lambda own: escape(", ".join(sorted({*own}))))
    table = table.assign(label=table["label"] + (", " + whose if several else ""))
    table = table.drop_duplicates(["label", "overlay", "metric"])
    for label, entries in table.groupby("label", sort=False):
        reach = [(value, *spans[metric]) for metric, value in zip(entries["metric"], entries["value"], strict=True)]
        near = all(low - FAR * (high - low) <= value <= high + FAR * (high - low) for value, low, high in reach)
        for number, group in enumerate(_groups(entries, ["overlay", "kind"]).values()):
            row, known = facts.records(group)[0], dict(zip(group["metric"], group["value"], strict=True))
            own = rates.get((row["sweep"], _rate(row)), {})
            known |= {axis: own[axis] for axis in facts.RATE_AXES & {*axes} if own}
            (x, right), (y, up) = (_ends(known.get(axis), axis, spans[axis]) for axis in axes)
            if len(known) == len(axes):
                x, y = [x[0], x[0], x[0] + right], [y[0] + up, y[0], y[0]]
            text = "<br>".join([str(label), *(f"{name} = {value:.5g}" for name, value in known.items())])
            told = {"name": label, "legendgroup": label, "showlegend": not number, "text": text, "hoverinfo": "text"}
            line = _line(colours.get(_rate(row), GREY), OVERLAYS[row["kind"]], 1)
            figure.add_scatter(x=x, y=y, mode="lines", line=line, visible=True if near else "legendonly", **told)


def _ends(value: float | None, axis: str, span: tuple[float, float]) -> tuple[list[float], float]:
    """Return where a line across the points begins and ends, and how far a corner's arm reaches, towards worse."""
    arm = 0.08 * (span[1] - span[0]) * (-1 if facts.larger_is_better(axis) else 1)
    return [*span] if value is None else [value, value], arm


def _line(colour: str, dash: str | None = None, width: float = 1.2) -> dict[str, Any]:
    return {"color": colour, "width": width} | ({"dash": dash} if dash else {})


def _colours(trials: pd.DataFrame) -> dict[str, str]:
    """Return the colour of each rate of a sweep, lowest first: the same in all its figures, and in its report."""
    points = facts.compressors(trials)
    rates = map(_rate, facts.records(points.sort_values(facts.RATE[::-1])[facts.RATE].drop_duplicates()))
    return dict(zip(rates, itertools.cycle(PALETTE), strict=False))


def _rate(row: Row) -> str:
    return rate_label(row["dim"], row["levels"], row["rate_bits"])


def _name(row: Row, sweeps: Sequence[str]) -> str:
    words = [stage_label(row["stage"]), *([row["sweep"]] if len(sweeps) > 1 else [])]
    return f"{_rate(row)}, {escape(', '.join(words))}"


def _base(row: Row, sweeps: Sequence[str]) -> str:
    """Return in words whose encoder a front is on; Plotly reads text as HTML, so what came from data is escaped."""
    return _subscripts(_encoder(row, sweeps))


def _encoder(row: Row, sweeps: Sequence[str]) -> str:
    words = gaps.encoder(row)
    told = (f"encoder {words}" if row["parent_stage"] else words, row["sweep"] if len(sweeps) > 1 else "")
    return ", ".join(filter(None, told))


def _weights(row: Row) -> str:
    return _subscripts(gaps.weights(row))


def _subscripts(text: str) -> str:
    """Return text with weights as gaps writes them, ``c 0.015``, as the paper does."""
    return re.sub(r"\b([dcp]) (?=\d)", r"λ<sub>\1</sub> ", escape(text))


def _wrapped(text: str, most: int) -> str:
    """Return such text in lines of at most so many letters, a weight whole."""
    lines = textwrap.wrap(re.sub(r" (?=\d)", "\N{NO-BREAK SPACE}", text), most, break_long_words=False)
    return "<br>".join(_subscripts(line.replace("\N{NO-BREAK SPACE}", " ")) for line in lines)


def _hover(row: Row, *axes: str) -> str:
    lines = [_name(row, [""]), _base(row, []), _weights(row)]
    lines += [f"seed {row['seed']}, trial {escape(str(row['trial_id'])[:12])}"]
    wanted = dict.fromkeys((*axes, "mse", "cross_entropy", "accuracy"))
    lines += [f"{name} = {row[name]:.5g}" for name in wanted if pd.notna(row.get(name))]
    return "<br>".join(filter(None, [*lines, "worse than zero rate, on no front" if row["worse_than_rate0"] else ""]))


def _compared(row: Row, at: str, value: str, prefix: str) -> str:
    """Return the hover text of a comparison with its value, interval and number of seeds."""
    low, high, seeds = (row[prefix + name] for name in ("low", "high", "seeds"))
    lines = [f"{_rate(row)}, {_base(row, [])}", f"against end-to-end at {_weights(row)}"]
    lines += [f"{at} {row['constraint']:.5g} (validation)", f"{seeds} of {row['of_seeds']} seeds reach it"]
    if seeds:
        known = f"[{low:+.5f}, {high:+.5f}]" if pd.notna(low) else f"no interval under {FEWEST_PAIRS} seeds"
        lines.append(f"{value} {row[value]:+.5f}, {known}")
    return "<br>".join(lines)


def _interval(rows: Sequence[Row], value: str, prefix: str, colour: str) -> dict[str, Any]:
    up, down = ([abs(row[prefix + end] - row[value]) for row in rows] for end in ("high", "low"))
    return {"array": up, "arrayminus": down, "color": colour, "thickness": 1.2, "width": 3}


def _seeds(figure: go.Figure, counts: pd.Series[int], obstacle: str | None) -> go.Figure:
    """Say above the figure over how many seeds it is, what that carries, and why it is no penalty yet."""
    few, many = counts.min(), counts.max()
    carried = "95 % intervals" + ("" if few >= FEWEST_PAIRS else f" from {FEWEST_PAIRS} on")
    if len(counts):
        _note(figure, f"means of n = {few}{f' to {many}' if many > few else ''} paired seeds; {carried}")
    if obstacle:  # in lines that a column of a paper holds, above what is drawn
        _note(figure, escape(obstacle.split(";")[0]).replace(", ", ",<br>"), yanchor="top", align="left")
        figure.update_yaxes(domain=[0, 0.82])
    return figure


def _note(figure: go.Figure, text: str, **place: Any) -> None:
    place = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "xref": "paper", "yref": "paper", **place}
    figure.add_annotation(text=text, showarrow=False, **place)


def _key(figure: go.Figure, name: str, **marker: Any) -> None:
    """Explain a mark in the legend."""
    figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker={"color": GREY, "size": 8, **marker})


def _empty(figure: go.Figure, why: str) -> go.Figure:
    _note(figure, escape(why), x=0.5, y=0.5, xanchor="center")
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)


def _layout(x: str, y: str) -> dict[str, Any]:
    axis = {"showline": True, "linecolor": GREY, "gridcolor": RULE, "ticks": "outside", "tickcolor": GREY}
    axis |= {"zeroline": False, "automargin": True}
    axes = {f"{letter}axis": {**axis, "title": {"text": escape(text)}} for letter, text in (("x", x), ("y", y))}
    clear = dict.fromkeys(("paper_bgcolor", "plot_bgcolor"), "rgba(0, 0, 0, 0)")
    margin = {"l": 60, "r": 20, "t": 30, "b": 50}
    return {"template": "none", "font": {"color": INK}, "hovermode": "closest", "margin": margin, **clear, **axes}
