"""Plotly figures from facts, for notebooks and the dashboard; the report's page draws the same in the browser."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative

from urc_sweep.maths.frontier import envelope
from urc_sweep.show import facts

# Without this, plotly.js offers to upload the chart to a cloud.
CONFIG: Mapping[str, Any] = MappingProxyType({"showSendToCloud": False, "displaylogo": False, "responsive": True})

# Colour-blind safe; the first ones are those that read on white and on black alike.
PALETTE = tuple(qualitative.Safe[index] for index in (6, 1, 7, 5, 0, 2, 3, 8, 4, 9, 10))
SYMBOLS: Mapping[str, str] = MappingProxyType(
    {"end_to_end": "circle", "universal": "diamond", "joint_decoder": "triangle-up", "refined": "cross", "reduced": "x"}
)
DASHES: Mapping[str, str] = MappingProxyType({"end_to_end": "solid", "universal": "dot"})
OTHER_SYMBOL, OTHER_DASH = "square", "dash"
SVG_POINTS = 3000  # above it WebGL draws: SVG would take seconds


def stage_label(stage: str) -> str:
    """Return a stage's name as it is written in text."""
    return {"end_to_end": "end-to-end", "joint_decoder": "joint"}.get(stage, stage.replace("_", " "))


def rate_label(dim: int, levels: int, bits: float) -> str:
    """Return ``(3, 4) 6 bits``: the paper's pair of latent dimensions and levels, and the rate."""
    return f"({dim}, {levels}) {bits:.4g} bits"


def frontier(trials: pd.DataFrame, x: str = "mse", y: str = "cross_entropy") -> go.Figure:
    """Return the frontier over two metrics (columns of ``facts.AXES``), test values.

    Colour is the rate, symbol the stage, end-to-end points are outlined in black as in the paper. The steps join the
    points that validation put on the front, one staircase per seed and frozen encoder; faint points are on none.
    """
    points = facts.fronts(trials, x, y)
    figure = go.Figure(layout=_layout(_axis(x), _axis(y)))
    scatter = go.Scattergl if len(points) > SVG_POINTS else go.Scatter
    colours = _colours(points)
    for _, group in points.groupby([*facts.RATE, "stage"]):
        rows = facts.records(group)
        stage, colour, name = rows[0]["stage"], colours[rows[0]["dim"], rows[0]["levels"]], _name(rows[0])
        steps = _stairs(group, x, y)
        line = {"color": colour, "width": 1.2, "dash": DASHES.get(stage, OTHER_DASH)}
        silent = {"name": name, "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
        figure.add_trace(scatter(x=steps[:, 0], y=steps[:, 1], mode="lines", line=line, **silent))
        marker = {
            "color": colour,
            "size": 9,
            "symbol": SYMBOLS.get(stage, OTHER_SYMBOL),
            "opacity": np.where(group["on_front"], 1.0, 0.35),
            "line": {"color": "black", "width": 1.3 if stage == "end_to_end" else 0},
        }
        told = {"name": name, "legendgroup": name, "text": [_hover(row) for row in rows], "hoverinfo": "text"}
        figure.add_trace(scatter(x=group[x], y=group[y], mode="markers", marker=marker, **told))
    if x == "mse":
        for floor in facts.records(facts.near_floors(trials)):
            label = f"k-means near-floor (not a bound), {floor['rate_bits']:.4g} bits"
            figure.add_vline(
                floor["mse_kmeans"],
                line={"dash": "dash", "width": 1, "color": colours.get((floor["dim"], floor["levels"]), "grey")},
                annotation={"text": label, "textangle": -90, "font": {"size": 10}, "xanchor": "right"},
            )
    if not len(points):
        figure.add_annotation(text="no trial is done yet", showarrow=False, xref="paper", yref="paper", x=0.5, y=0.5)
    return figure


def curves(trials: pd.DataFrame, curves: pd.DataFrame, metric: str = "loss", split: str = "train") -> go.Figure:
    """Return training curves of one metric and split: colour is the rate, dash the stage, one line per trial."""
    figure = go.Figure(layout=_layout("epoch", f"{metric} ({split})"))
    points = facts.compressors(trials)
    colours = _colours(points)
    chosen = curves[(curves["metric"] == metric) & (curves["split"] == split)].sort_values("epoch", kind="stable")
    lines = dict(list(chosen.groupby("trial_id")))
    shown: set[str] = set()
    for row in facts.records(points[points["trial_id"].isin(lines.keys())]):
        name = _name(row)
        dash = DASHES.get(row["stage"], OTHER_DASH)
        line = {"color": colours[row["dim"], row["levels"]], "width": 1.2, "dash": dash}
        told = {"name": name, "legendgroup": name, "text": _hover(row), "hoverinfo": "text+y"}
        data, first = lines[row["trial_id"]], name not in shown
        figure.add_trace(
            go.Scatter(x=data["epoch"], y=data["value"], mode="lines", line=line, showlegend=first, **told)
        )
        shown.add(name)
    return figure


def _stairs(group: pd.DataFrame, x: str, y: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the corners (m, 2) of the staircases of all fronts of a group, separated by rows of NaN."""
    sign = np.array([-1.0 if axis in facts.LARGER_IS_BETTER else 1.0 for axis in (x, y)])
    parts = []
    for _, front in group[group["on_front"]].groupby(["seed", "parent_id", "variant"], dropna=False):
        parts += [sign * envelope(sign * front[[x, y]].to_numpy(float)), np.full((1, 2), np.nan)]
    return np.vstack(parts) if parts else np.empty((0, 2))


def _colours(points: pd.DataFrame) -> dict[tuple[int, int], str]:
    rates = points.sort_values(facts.RATE[::-1])[["dim", "levels"]].drop_duplicates()
    return {pair: PALETTE[i % len(PALETTE)] for i, pair in enumerate(rates.itertuples(index=False, name=None))}


def _name(row: Mapping[str, Any]) -> str:
    return f"{rate_label(row['dim'], row['levels'], row['rate_bits'])}, {escape(stage_label(row['stage']))}"


def _hover(row: Mapping[str, Any]) -> str:
    """Return a point's hover text; Plotly reads it as HTML, so what came from data is escaped."""
    lines = [_name(row)]
    names = {"lambda_d": "λ_d", "lambda_c": "λ_c", "lambda_p": "λ_p", "parent_lambda_c": "encoder's λ_c"}
    lines += [f"{label} = {row[name]:.4g}" for name, label in names.items() if pd.notna(row.get(name))]
    lines += [f"seed {row['seed']}", f"trial {escape(str(row['trial_id'])[:12])}"]
    lines += [f"{name} = {row[name]:.5g}" for name in ("mse", "cross_entropy", "accuracy") if pd.notna(row.get(name))]
    return "<br>".join(lines)


def _axis(metric: str) -> str:
    return escape(facts.AXES.get(metric, metric))


def _layout(x: str, y: str) -> dict[str, Any]:
    axis = {"showline": True, "ticks": "outside", "zeroline": False, "automargin": True}
    return {
        "template": "plotly_white",
        "hovermode": "closest",
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
        "margin": {"l": 60, "r": 20, "t": 30, "b": 50},
    }
