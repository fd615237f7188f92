"""Figures hold what the tables of facts hold, nothing else: every drawn number is looked up."""

from __future__ import annotations

import io
import json
import struct
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from tests.show.test_facts import frame, study, trial
from urc_sweep.errors import SpecError, StoreError
from urc_sweep.show import facts, figures, gaps

EVIL = "<img src=x onerror=alert(1)>"


class Curve(NamedTuple):
    name: str
    values: dict[str, list[float]]


def seeds(count: int) -> pd.DataFrame:
    return frame([row for seed in range(count) for row in study(seed, 0.005 + 0.001 * seed)])


def points(figure: go.Figure) -> list[Any]:
    return [trace for trace in figure.data if trace.meta]


def bands(figure: go.Figure) -> list[Any]:
    return [trace for trace in figure.data if getattr(trace, "fill", None) == "toself"]


def texts(figure: go.Figure) -> str:
    return " ".join(str(note.text) for note in figure.layout.annotations)


def png(width: int, height: int, grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), grey).save(buffer, "PNG")
    return buffer.getvalue()


# -- the frontier ------------------------------------------------------------------------------------------------------


def test_the_frontier_draws_every_point_once_with_its_test_values():
    trials = seeds(2)
    drawn = {pair for trace in points(figures.frontier(trials)) for pair in zip(trace.x, trace.y, strict=True)}
    told = facts.fronts(trials)
    assert drawn == set(zip(told["mse"], told["cross_entropy"], strict=True))
    assert sum(len(trace.x) for trace in points(figures.frontier(trials))) == len(told) == 10


def test_points_that_validation_put_on_no_front_are_faint_and_bad_runs_are_crosses():
    rows = study(0, 0.005)
    rows.append(trial("end_to_end", 0, 0.1, (0.2, 2.5), (0.2, 2.5)))  # worse than rate 0
    rows.append(trial("end_to_end", 0, 0.2, (0.05, 1.9), (0.01, 0.01)))  # dominated, on validation
    trace = next(trace for trace in points(figures.frontier(frame(rows))) if "end-to-end" in trace.name)
    looks = trace.marker.opacity, trace.marker.symbol
    look = {x: (opacity, symbol) for x, opacity, symbol in zip(trace.x, *looks, strict=True)}
    assert look[0.041] == (1.0, "circle")
    assert look[0.01] == (0.35, "circle")
    assert look[0.2] == (0.35, figures.WORSE_SYMBOL)
    assert trace.marker.line.color == "black"
    assert trace.marker.line.width > 0


def test_a_bad_run_does_not_set_the_range_and_that_is_said():
    rows = [*study(0, 0.005), trial("end_to_end", 0, 0.1, (0.2, 2.5), (0.2, 2.5))]
    figure = figures.frontier(frame(rows))
    assert figure.layout.xaxis.autorangeoptions.clipmax == pytest.approx(0.061 + 0.1 * (0.061 - 0.020))
    assert "crosses: 1 worse than zero rate" in texts(figure)
    assert figures.frontier(frame(study(0, 0.005))).layout.xaxis.autorangeoptions.clipmax is None


def test_fronts_are_steps_of_front_points_and_nothing_between():
    rows = study(0, 0.005)
    line = next(
        t
        for t in figures.frontier(frame(rows)).data
        if t.mode == "lines" and t.line.dash == "solid" and t.line.width == 1.2
    )
    x, y = np.array(line.x, float), np.array(line.y, float)
    assert x[:-1].tolist() == [0.041, 0.052, 0.052, 0.061, 0.061]
    assert y[:-1].tolist() == [1.4, 1.4, 0.3, 0.3, 0.1]
    assert np.isnan(x[-1])  # the next front is not joined to this one


@pytest.mark.parametrize(("count", "wanted"), [(1, 0), (2, 0), (3, 2)])
def test_bands_only_from_three_seeds(count: int, wanted: int):
    assert len(bands(figures.frontier(seeds(count)))) == wanted
    assert not bands(figures.frontier(seeds(count), bands=False))


def test_a_band_is_what_lies_between_the_attainment_surfaces():
    trials = frame(
        [
            row
            for seed, at in enumerate((0.03, 0.04, 0.05))
            for row in [trial("end_to_end", seed, 0.0, (at, 1.0), (at, 1.0))]
        ]
    )
    (band,) = bands(figures.frontier(trials))
    # One point per seed: a quarter of three seeds is one, three quarters are three.
    assert set(zip(band.x, band.y, strict=True)) == {(0.03, 1.0), (0.05, 1.0)}
    line = next(t for t in figures.frontier(trials).data if t.mode == "lines" and t.line.width == 2)
    assert line.x[0] == 0.04


def test_axes_where_larger_is_better_step_the_other_way():
    rows = [
        trial("end_to_end", 0, 0.0, (0.04, 1.0), (0.04, 1.0), accuracy=0.6, val_accuracy=0.6),
        trial("end_to_end", 0, 0.1, (0.05, 0.5), (0.05, 0.5), accuracy=0.9, val_accuracy=0.9),
    ]
    line = next(
        t for t in figures.frontier(frame(rows), y="accuracy").data if t.mode == "lines" and t.line.width == 1.2
    )
    assert list(zip(line.x, line.y, strict=True))[:3] == [(0.04, 0.6), (0.05, 0.6), (0.05, 0.9)]


def test_sweeps_share_colours_by_rate_and_differ_in_symbols():
    trials = pd.concat([frame(study(0, 0.005)).assign(sweep=name) for name in ("a", EVIL)])
    told = {
        (t.name, t.marker.symbol[0], t.marker.color) for t in points(figures.frontier(trials)) if "universal" in t.name
    }
    assert {symbol for _, symbol, _ in told} == {"diamond", "diamond-open"}
    assert len({colour for *_, colour in told}) == 1
    assert EVIL not in figures.frontier(trials).to_json()


def test_a_rate_as_an_axis_joins_points_over_rates():
    rows = [
        trial("end_to_end", 0, 0.0, (at, 1.0), (at, 1.0), levels=levels, rate_bits=bits)
        for levels, bits, at in [(2, 2.0, 0.05), (4, 4.0, 0.03)]
    ]
    figure = figures.frontier(frame(rows), "rate_bits", "mse")
    line = next(t for t in figure.data if t.mode == "lines" and t.line.width == 1.2)
    assert list(zip(line.x, line.y, strict=True))[:3] == [(2.0, 0.05), (4.0, 0.05), (4.0, 0.03)]
    assert line.line.color == figures.GREY


def test_over_rates_encoders_that_were_trained_alike_are_one_front_also_under_three_seeds():
    rows = []
    for levels, bits, mse in [(2, 2.0, 0.05), (4, 4.0, 0.03)]:
        rate = {"levels": levels, "rate_bits": bits}
        rows.append(trial("end_to_end", 0, 0.01, (0.02, 1.0), (0.02, 1.0), **rate))
        parent = {"parent_id": rows[-1]["trial_id"], "parent_lambda_c": 0.01}
        rows.append(trial("universal", 0, 0.0, (mse, 1.0), (mse, 1.0), **rate, **parent))
    figure = figures.frontier(frame(rows), "rate_bits", "mse")
    line = next(t for t in figure.data if t.mode == "lines" and t.line.dash == "dot" and t.line.width == 1.2)
    assert list(zip(line.x, line.y, strict=True))[:3] == [(2.0, 0.05), (4.0, 0.05), (4.0, 0.03)]


def test_a_rate_has_one_colour_in_all_figures():
    """The lowest rate has no front, and no decoders: it is in some tables and not in others."""
    rows = [trial("end_to_end", 0, 0.01, (0.2, 1.0), (0.2, 1.0), levels=2, rate_bits=3.0, mse_centroid=0.1)]
    rows.append(trial("end_to_end", 0, 0.01, (0.2, 1.0), (0.2, 1.0), levels=1, rate_bits=0.0, status="failed"))
    rows += [row | {"mse_centroid": row["mse"] - 0.002} for row in study(0, 0.005)]
    trials = frame(rows)
    _, second, third = figures.PALETTE[:3]
    curve = pd.DataFrame([(rows[2]["trial_id"], 1, "train", "loss", 0.1)], columns=CURVES.columns)
    told = {trace.marker.color for trace in points(figures.frontier(trials)) if "4.755" in trace.name}
    assert told == {third}
    assert {t.marker.color for t in points(figures.frontier(trials)) if "3 bits" in t.name} == {second}
    bound = next(t for t in figures.frontier(trials).data if t.name and t.name.startswith("bound"))
    assert bound.line.color == third
    assert {t.line.color for t in figures.penalty(trials).data if t.mode == "lines+markers"} == {third}
    assert {t.marker.color for t in figures.surface(trials).data if t.type == "scatter3d"} == {third}
    assert {t.line.color for t in figures.curves(trials, curve).data} == {third}


def test_overlays_are_labelled_and_far_ones_wait_in_the_legend():
    rows = [row | {"mse_centroid": row["mse"] - 0.002, "latent_label_entropy": 0.05} for row in study(0, 0.005)]
    traces = {trace.name: trace for trace in figures.frontier(frame(rows)).data if trace.name}
    bound = traces["bound of this encoder, up to sampling of its cells"]
    assert (bound.x[1], bound.y[1]) == (pytest.approx(0.05), 0.05)  # the corner that no decoder passes
    assert bound.visible is True
    floor = traces["k-means near-floor (not a bound)"]
    assert list(floor.x) == [0.03, 0.03]
    far = frame([row | {"metrics": row["metrics"] and row["metrics"] | {"mse_kmeans": 0.2}} for row in rows])
    waiting = {trace.name for trace in figures.frontier(far).data if trace.visible == "legendonly"}
    assert "k-means near-floor (not a bound)" in waiting


def test_overlays_of_sweeps_are_named_and_drawn_once_where_they_agree():
    other = [row | {"metrics": row["metrics"] and row["metrics"] | {"mse_rate0": 0.09}} for row in study(0, 0.005)]
    trials = pd.concat([frame(rows).assign(sweep=name) for name, rows in [("a", study(0, 0.005)), ("<b>", other)]])
    traces = {trace.name: trace for trace in figures.frontier(trials).data if trace.name and not trace.meta}
    places = {name: (trace.x[1], trace.y[1]) for name, trace in traces.items() if "zero rate" in name}
    label = "zero rate: best constant image, H(S)"  # the entropy is the same, the place is not
    assert places == {f"{label}, a": (0.1, 2.0), f"{label}, &lt;b&gt;": (0.09, 2.0)}
    assert [name for name in traces if "k-means" in name] == ["k-means near-floor (not a bound), &lt;b&gt;, a"]


def test_references_are_drawn_only_over_axes_that_they_have():
    curve = Curve(EVIL, {"mse": [0.01, 0.02], "cross_entropy": [1.0, 0.5]})
    drawn = next(
        trace for trace in figures.frontier(seeds(1), references=[curve]).data if trace.line.color == figures.GREY
    )
    assert (list(drawn.x), list(drawn.y)) == ([0.01, 0.02], [1.0, 0.5])
    assert "<img" not in drawn.name
    other = figures.frontier(seeds(1), references=[Curve("b", {"mse": [0.01]})])
    assert "b" not in {trace.name for trace in other.data}


def test_many_points_are_drawn_by_webgl_and_logarithms_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "SVG_POINTS", 3)
    figure = figures.frontier(seeds(1), log=("y",))
    assert {trace.type for trace in points(figure)} == {"scattergl"}
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == (None, "log")


def test_an_unknown_axis_is_one_line():
    for letter in ("x", "y"):
        with pytest.raises(SpecError, match=f"^--{letter} msee: did you mean 'mse'"):
            figures.frontier(seeds(1), **{letter: "msee"})


def test_without_a_second_axis_it_is_what_the_sweep_trades():
    rows = [
        trial("end_to_end", 0, None, (mse, 1.0), (mse, 1.0), lambda_p=p, val_sliced_w2=w2, sliced_w2=w2)
        for mse, p, w2 in ((0.03, 0.0, 0.4), (0.04, 0.01, 0.2))
    ]
    (trace,) = points(figures.frontier(frame(rows)))
    assert (list(trace.y), list(trace.marker.opacity)) == ([0.4, 0.2], [1.0, 1.0])
    assert points(figures.frontier(seeds(1)))[0].y[0] == 1.4


# -- what universality costs -------------------------------------------------------------------------------------------


def test_penalty_is_the_table_with_infeasible_constraints_as_crosses():
    trials = seeds(3)
    table, figure = gaps.penalties(trials), figures.penalty(trials)
    line, rug = (next(t for t in figure.data if t.mode == mode and t.name) for mode in ("lines+markers", "markers"))
    met = table[~table["infeasible"]].sort_values("constraint")
    assert list(line.x) == met["constraint"].tolist()
    assert list(line.y) == met["penalty"].tolist()
    assert list(line.error_y.array) == pytest.approx((met["high"] - met["penalty"]).tolist())
    assert list(rug.x) == table.loc[table["infeasible"], "constraint"].tolist()
    assert rug.yaxis == "y2"
    assert "infeasible" in {trace.name for trace in figure.data}
    assert "n = 3 paired seeds; 95 % intervals" in texts(figure)


def test_under_three_seeds_no_interval_is_drawn_and_that_is_said():
    figure = figures.penalty(seeds(2))
    line = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert all(np.isnan(line.error_y.array))
    assert "no interval under 3 seeds" in line.text[0]
    assert "n = 2 paired seeds; 95 % intervals from 3 on" in texts(figure)


def test_gap_bars_sum_to_the_whole():
    rows = [row | {"mse_centroid": row["mse"] - 0.002} for seed in range(3) for row in study(seed, 0.005)]
    table, figure = gaps.splits(frame(rows)), figures.gap(frame(rows))
    encoder, decoder, whole = figure.data
    assert figure.layout.barmode == "relative"
    assert (np.array(encoder.y) + np.array(decoder.y)).tolist() == pytest.approx(list(whole.y))
    assert list(whole.y) == table["gap"].tolist()
    assert list(whole.error_y.arrayminus) == pytest.approx((table["gap"] - table["gap_low"]).tolist())


def test_many_bars_lie_each_with_room_for_its_words():
    far = {"weights": {"classification.parity": 0.01, "distortion": 1.0}}
    rows = [row | {"mse_centroid": row["mse"] - 0.002} for row in study(0, 0.005)]
    few = figures.gap(frame(rows))
    assert [trace.orientation for trace in few.data[:2]] == ["v", "v"]
    rows += [row | {"mse_centroid": row["mse"] - 0.002} | far for row in study(0, 0.005)]
    rows += [row | {"mse_centroid": row["mse"] - 0.002, "rate_bits": 8.0} for row in study(0, 0.005)]
    trials = frame(rows)
    figure, table = figures.gap(trials), gaps.splits(trials)
    encoder, decoder, whole = figure.data
    assert (encoder.orientation, decoder.orientation, whole.marker.symbol) == ("h", "h", "line-ns")
    assert (np.array(encoder.x) + np.array(decoder.x)).tolist() == pytest.approx(list(whole.x))
    assert list(whole.x) == table["gap"].tolist()
    assert whole.error_x.color == "black"
    assert list(whole.y) == list(encoder.y) == list(figure.layout.yaxis.tickvals)
    heads = [note.text for note in figure.layout.annotations if note.text.startswith("<b>")]
    assert len(heads) == len(table.groupby(gaps.BASE, dropna=False)) == 3
    words = figure.layout.yaxis.ticktext
    assert "λ<sub>c</sub> 0<br>classification.parity 0.01" in words
    assert figure.layout.height > 16 * (len(table) + sum(label.count("<br>") for label in words) + len(heads))
    apart = np.diff([0, *whole.y, figure.layout.yaxis.range[0]])
    assert apart.min() >= 0.5


@pytest.mark.parametrize("draw", [figures.penalty, figures.gap])
def test_what_is_no_penalty_yet_is_drawn_with_that_remark(draw: Any):
    rows = [row | {"mse_centroid": 0.01} for seed in range(3) for row in study(seed, 0.005)]
    assert "two points" not in texts(draw(frame(rows)))
    single = [row for row in rows if (row["stage"], row["lambda_c"]) != ("universal", 0.05)]
    assert "a front needs at least two points" in texts(draw(frame(single)))


@pytest.mark.parametrize("draw", [figures.penalty, figures.gap])
def test_an_unknown_constraint_is_one_line(draw: Any):
    with pytest.raises(SpecError, match="mse: choices"):
        draw(seeds(1), "mse")


# -- the others --------------------------------------------------------------------------------------------------------


def test_the_surface_holds_front_points_and_ribbons_at_trained_rates_only():
    trials = seeds(1)
    figure = figures.surface(trials)
    on_front = facts.fronts(trials).query("on_front")
    drawn = [point for t in figure.data if t.type == "scatter3d" for point in zip(t.x, t.y, t.z, strict=True)]
    assert sorted(drawn) == sorted(on_front[["rate_bits", "mse", "cross_entropy"]].itertuples(index=False, name=None))
    (ribbon,) = (trace for trace in figure.data if trace.type == "surface")
    rate = on_front["rate_bits"].iloc[0]
    assert [side[0] for side in ribbon.x] == pytest.approx([rate - 0.1, rate + 0.1])


def test_images_are_the_bytes_of_the_store_in_the_order_of_the_weight():
    rows = [row | {"samples_sha256": f"s{n}", "originals_sha256": "o"} for n, row in enumerate(study(0, 0.005))]
    pictures = {f"s{n}": png(40, 8, 40 * n) for n in range(4)} | {"o": png(40, 8, 255)}  # s4 is lost

    def image(sha256: str) -> bytes:
        if sha256 not in pictures:
            raise StoreError("lost")
        return pictures[sha256]

    figure = figures.images(frame(rows), image)
    places = [(entry.sizex, entry.sizey) for entry in figure.layout.images]
    assert places == [(40, 8)] * 6  # originals of two groups, three end-to-end, one universal
    tops = [entry.y for entry in figure.layout.images]
    assert tops == sorted(tops)
    assert texts(figure).index("λ<sub>c</sub> 0.015") < texts(figure).index("λ<sub>c</sub> 0.05")


def test_images_of_each_sweep_are_of_its_first_seed():
    sweeps = [
        [row | {"samples_sha256": name, "originals_sha256": "o"} for row in study(seed, 0.005)]
        for name, seed in [("a", 0), ("a later", 1), ("b", 7)]
    ]
    trials = pd.concat([frame(rows).assign(sweep=rows[0]["samples_sha256"][0]) for rows in sweeps])
    asked: list[str] = []

    def image(sha256: str) -> bytes:
        asked.append(sha256)
        return png(40, 8, 0)

    figures.images(trials, image)
    assert {*asked} == {"a", "b", "o"}


def test_curves_are_drawn_per_trial_in_the_order_of_epochs():
    trials = frame(study(0, 0.005))
    ids = trials["trial_id"].tolist()
    curve = pd.DataFrame(
        [(ids[0], 2, "train", "loss", 0.1), (ids[0], 1, "train", "loss", 0.2), (ids[1], 1, "validation", "loss", 9.0)],
        columns=["trial_id", "epoch", "split", "metric", "value"],
    )
    (trace,) = figures.curves(trials, curve).data
    assert (list(trace.x), list(trace.y)) == ([1, 2], [0.2, 0.1])


NOTHING = frame([])
LOST = frame([trial("end_to_end", 0, 0.1, (0.2, 1.0), (0.2, 1.0))])
CURVES = pd.DataFrame(columns=["trial_id", "epoch", "split", "metric", "value"])


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (figures.frontier(NOTHING), "no compressor is trained"),
        (figures.penalty(NOTHING), "needs finished end-to-end and universal trials"),
        (figures.gap(NOTHING), "needs finished end-to-end and universal trials"),
        (figures.surface(NOTHING), "no compressor is trained"),
        (figures.surface(LOST), "all 1 finished trials are worse than the best constant image"),
        (figures.frontier(LOST, y="ssim"), "all 1 finished trials are worse than the best constant image"),
        (figures.curves(NOTHING, CURVES), "no curve to show"),
        (figures.images(NOTHING, lambda sha256: b""), "no reconstruction to show"),
    ],
)
def test_empty_states_are_said_in_words(figure: go.Figure, said: str):
    assert said in texts(figure)


def test_no_figure_shows_markup_that_came_from_data():
    rows = [row | {"variant": EVIL, "samples_sha256": "s", "originals_sha256": "s"} for row in study(0, 0.005)]
    rows = [row | {"trial_id": EVIL + row["trial_id"], "mse_centroid": 0.01} for row in rows]
    rows = [row | {"parent_id": row["parent_id"] and EVIL + row["parent_id"]} for row in rows]
    trials = frame(rows).assign(sweep=EVIL)
    curve = pd.DataFrame([(rows[0]["trial_id"], 1, "train", EVIL, 1.0)], columns=CURVES.columns)
    drawn = [
        *(draw(trials) for draw in (figures.frontier, figures.penalty, figures.gap, figures.surface)),
        figures.images(trials, lambda sha256: png(8, 8, 0)),
        figures.curves(trials, curve, EVIL),
    ]
    assert all(len(figure.data) or figure.layout.images for figure in drawn)
    assert not [figure for figure in drawn if "<img" in json.dumps(figure.to_plotly_json(), default=str)]


@pytest.mark.parametrize("draw", [figures.frontier, figures.penalty, figures.gap, figures.surface])
def test_figures_are_theme_neutral(draw: Any):
    layout = draw(seeds(3)).layout
    assert {layout.paper_bgcolor, layout.plot_bgcolor} == {"rgba(0, 0, 0, 0)"}
    assert layout.font.color == figures.INK


def test_the_header_of_a_png_is_where_images_read_it():
    assert struct.unpack(">II", png(40, 8, 0)[16:24]) == (40, 8)
