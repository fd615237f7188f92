"""The report in a real browser: what people hover, pin, filter, print and mail, and that it tells what Python tells."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.show.browser import chromium, opened, until  # noqa: F401  (a fixture)
from tests.show.test_report import row, write
from urc_sweep.maths.frontier import nondominated
from urc_sweep.show import exchange, facts, gaps, report
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import CURVES, TRIALS, curve_table, to_bytes

EVIL = "<img src=x onerror=\"document.title='evil'\">"
ANCHORS = [("label_entropy", 2.3), ("mse_kmeans", 0.03), ("mse_rate0", 0.1), ("val_mse_rate0", 0.1)]
RATES = [(2, 3), (3, 3)]
WEIGHTS = (0.0, 0.005, 0.015)
# Metrics that a plugin may well have, named like what the page knows of every trial beside its facts.
NAMESAKES = ("rate", "parent", "front", "samples", "encoder")
# What a page draws: every trace of the frontier with the rows it holds.
MARKS = "document.getElementById('plot').data.filter((trace) => trace.customdata)"


def study(store: Store, sweep: str = "study", seeds: int = 4, host: str = "lab", failed: bool = True) -> None:
    """Write a sweep of two rates into a store as a launch leaves it: numbers made up, pictures and tables real."""
    rng = np.random.default_rng(len(sweep))
    picture = store.put(_png(), ".png")
    rows: list[dict[str, Any]] = []
    for dim, levels in RATES:
        for seed in range(seeds):
            base = ""
            for stage, weights in (("end_to_end", WEIGHTS), ("universal", (*WEIGHTS, 0.05))):
                for weight in weights:
                    cost = 0.002 * (stage == "universal") + 0.0004 * rng.random()
                    bits = dim * math.log2(levels)
                    own = {"mse": 0.05 - 0.002 * bits + 0.6 * weight * (weight < 0.05) + cost}
                    own |= {"cross_entropy": 2.2 * math.exp(-0.1 * bits - 100 * weight) + 20 * cost}
                    own |= {"accuracy": 0.5 + 10 * min(weight, 0.04) - 5 * cost, "mse_centroid": 0.036 + cost}
                    own |= {"latent_label_entropy": 0.2, "critic_gap": -0.1 if seed == 0 == weight else 0.1 + weight}
                    if (stage, seed) == ("universal", 3):
                        own["mse"] += 0.1  # worse than zero rate: it counts as a seed, and attains nothing
                    values = own | {f"val_{name}": value + 0.0002 * rng.random() for name, value in own.items()}
                    values |= {"trial_id": f"{len(rows):04x}{sweep.encode().hex()}".ljust(64, "0"), "stage": stage}
                    values |= {"dim": dim, "levels": levels, "rate_bits": bits, "seed": seed, "lambda_c": weight}
                    values |= {"lambda_d": 1.0, "status": "done", "dataset": "digits", "model": "paper", "host": host}
                    further = [(f"{split}{name}", weight) for name in (EVIL, *NAMESAKES) for split in ("", "val_")]
                    values |= {"metrics": [*ANCHORS, *further], "variant": EVIL}
                    values |= {"samples_sha256": picture, "originals_sha256": picture}
                    values |= {"parent_id": base, "parent_lambda_c": 0.015, "parent_lambda_d": 1.0} if base else {}
                    values["config_json"] = "{}"
                    rows.append(values)
                base = rows[-1]["trial_id"]
    if failed:
        broken = {"status": "failed", "error_type": EVIL, "error_message": EVIL, "stage": "end_to_end", "seed": 9}
        rows.append({"trial_id": "f" * 64, "dataset": EVIL, **broken})
    store.replace(store.layout.trials_table(sweep), to_bytes(pa.Table.from_pylist(rows, TRIALS)))
    curve = [(epoch, "train", "loss", 1 / epoch, float(epoch)) for epoch in range(1, 91)]
    tables = [curve_table(row["trial_id"], curve) for row in rows[:3]]
    store.replace(store.layout.curves(sweep) / "part-00000.parquet", to_bytes(pa.concat_tables(tables)))
    store.replace(store.layout.spec(sweep), b"name: study  # " + EVIL.encode())
    store.save_generation(sweep, {"launched_at": "", "trials": [], "command": f"urc-sweep launch {EVIL}"})


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(28 * 280, dtype=np.uint8).reshape(28, 280)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("page") / "store")
    made.create()
    study(made)
    study(made, "second", seeds=2, failed=False)
    return made


@pytest.fixture(scope="module")
def page_of(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("reports")

    def make(*sweeps: str) -> str:
        path = folder / f"{'-'.join(sweeps)}.html"
        if not path.exists():
            report.write(store, sweeps, path, "source")
        return path.as_uri()

    return make


@pytest.fixture(scope="module")
def once(chromium: Any, page_of: Any) -> Iterator[Any]:  # noqa: F811
    with opened(chromium, page_of("study"), accept_downloads=True) as page:
        yield page


@pytest.fixture
def page(once: Any) -> Any:
    """Return the study's page as it opens; loading it anew for every test would take seconds each."""
    once.set_viewport_size({"width": 1180, "height": 1000})
    once.emulate_media(color_scheme="light", media="screen")
    once.evaluate("history.replaceState(null, '', location.pathname); recall(); scrollTo(0, 0); show()")
    return once


def drawn(page: Any) -> int:
    return int(page.evaluate("document.documentElement.dataset.drawn"))


def after(page: Any, act: Any) -> None:
    """Act on a page and wait until it has drawn what that changed."""
    before = drawn(page)
    act()
    until(lambda: drawn(page) > before, 10)


def points_drawn(page: Any) -> set[tuple[float, float]]:
    found = page.evaluate(f"{MARKS}.flatMap((trace) => trace.x.map((x, k) => [x, trace.y[k]]))")
    return rounded(found)


def rounded(pairs: Any) -> set[tuple[float, float]]:
    """Return pairs with as many digits as the page and the facts must have in common."""
    return {(float(f"{x:.6g}"), float(f"{y:.6g}")) for x, y in pairs}


def pixel(page: Any, row: int) -> tuple[float, float]:
    """Return where a trial's point is on the screen."""
    page.locator("#plot").scroll_into_view_if_needed()
    place = page.evaluate(
        """(row) => {
          const graph = document.getElementById("plot"), box = graph.getBoundingClientRect(), full = graph._fullLayout;
          const trace = graph.data.find((each) => each.customdata?.includes(row)), k = trace.customdata.indexOf(row);
          return [box.x + full._size.l + full.xaxis.c2p(trace.x[k]), box.y + full._size.t + full.yaxis.c2p(trace.y[k])];
        }""",
        row,
    )
    return place[0], place[1]


def loneliest(page: Any) -> int:
    """Return the trial whose point is farthest from all others: a pointer near it means no other."""
    found: int = page.evaluate(
        """() => {
          const sound = visible.filter((i) => !T.worse_than_rate0[i]), { of } = place();
          const far = (i, j) => Math.hypot(of(i)[0] - of(j)[0], of(i)[1] - of(j)[1]);
          const room = (i) => Math.min(...sound.filter((j) => j !== i).map((j) => far(i, j)));
          return sound.reduce((best, i) => (room(i) > room(best) ? i : best));
        }"""
    )
    return found


def chip(page: Any, name: str, value: str) -> Any:
    return page.locator(f"[data-filter={name}] label", has=page.locator(f"input[value='{value}']"))


def test_the_page_draws_every_point_of_the_facts(page: Any, store: Store):
    points = facts.fronts(facts.load(store, "study"))
    assert points_drawn(page) == rounded(points[["mse", "cross_entropy"]].to_numpy())
    assert f"{len(points)} of {len(points)} finished trials shown" in page.inner_text("#count")
    assert f"{int(points['on_front'].sum())} on a front" in page.inner_text("#count")


@pytest.mark.parametrize(
    ("x", "y"), [("mse", "cross_entropy"), ("mse", "accuracy"), ("rate_bits", "mse"), ("accuracy", "mse_centroid")]
)
@pytest.mark.parametrize("left_out", [None, 0])  # shares of four seeds and of three: the latter are rounded up
def test_fronts_and_bands_are_those_of_python(page: Any, store: Store, x: str, y: str, left_out: int | None):
    trials = facts.load(store, "study")
    trials = trials[trials["seed"] != left_out]
    points = facts.fronts(trials, x, y)
    told = page.evaluate(
        f"""(() => {{
          const {{ fronts, back }} = frontsOf(ALL.filter((i) => T.seed[i] !== {json.dumps(left_out)}), "{x}", "{y}");
          const bands = bandsOf(fronts).flatMap((band) =>
            [["low", 0.25], ["median", 0.5], ["high", 0.75]].flatMap(([name, share]) =>
              back(steps(band[name])).map((p) => [band.seeds, share, ...p])));
          return [fronts.flatMap((front) => front.members).map((i) => T.trial_id[i]), bands];
        }})()"""
    )
    assert set(told[0]) == set(points.loc[points["on_front"], "trial_id"])
    bands = facts.bands(trials, x, y)[["seeds", "share", "x", "y"]].to_numpy(float).tolist()
    assert len(bands) > 0
    assert {tuple(np.round(row, 6)) for row in told[1]} == {tuple(np.round(row, 6)) for row in bands}


def test_hover_shows_the_trial_and_a_click_pins_it(page: Any):
    loose = loneliest(page)
    page.mouse.move(*pixel(page, loose))
    weight = page.evaluate(f"short(T.lambda_c[{loose}])")
    until(lambda: page.evaluate(f"document.querySelector('#preview dl').textContent.includes('λc{weight}')"), 10)
    assert page.locator("#preview img.strip").first.evaluate("image => image.naturalWidth") == 280
    page.mouse.click(*pixel(page, loose))
    page.wait_for_selector("#pins .card")
    assert page.evaluate(f"nameOf({loose})") in page.evaluate("location.href")
    page.click("#pins button")
    assert page.locator("#pins .card").count() == 0
    assert "pin" not in page.evaluate("location.href")


def test_at_most_six_are_pinned_and_they_are_compared_with_the_encoders_own(page: Any):
    page.evaluate("for (const i of ALL.slice(0, 8)) togglePin(i)")
    assert page.locator("#pins .card").count() == 6
    assert page.locator("#pins .letter").all_inner_texts() == list("ABCDEF")
    assert page.evaluate("document.getElementById('plot').data.at(-2).text") == list("ABCDEF")
    page.click("#unpin")
    assert page.locator("#pins .card").count() == 0
    universal = page.evaluate("ALL.find((i) => OF.parent[i] != null)")
    page.evaluate(f"togglePin({universal})")
    assert page.locator("#pins img.strip").count() == 3  # original, end-to-end, universal
    assert "mean ± s.d., 4 seeds" in page.inner_text("#pins")


def test_filters_the_slider_and_axes(page: Any, store: Store):
    points = facts.fronts(facts.load(store, "study"))
    after(page, chip(page, "stage", "universal").click)
    ends = points[points["stage"] == "end_to_end"]
    assert page.inner_text("#count").startswith(f"{len(ends)} of {len(points)} ")
    after(page, lambda: page.fill("#step", "1"))
    low = ends[ends["rate_bits"] == ends["rate_bits"].min()]
    assert points_drawn(page) == rounded(low[["mse", "cross_entropy"]].to_numpy())
    assert "(2, 3) 3.17 bits" in page.inner_text("output[for=step]")
    after(page, lambda: page.fill("#step", "0"))
    after(page, lambda: page.select_option("#y", "accuracy"))
    assert points_drawn(page) == rounded(ends[["mse", "accuracy"]].to_numpy())
    after(page, chip(page, "seed", "0").dblclick)
    assert page.inner_text("#count").startswith(f"{len(ends[ends['seed'] == 0])} of")
    after(page, page.locator("label[for=logy]").click)
    assert page.evaluate("document.getElementById('plot').layout.yaxis.type") == "log"
    after(page, lambda: page.select_option("#y", "critic_gap"))
    assert f"{len(RATES)} have no place on a log axis" in page.inner_text("#count")


def test_a_link_brings_the_view_back(chromium: Any, page_of: Any):  # noqa: F811
    with opened(chromium, page_of("study", "second")) as page:
        after(page, lambda: page.select_option("#x", "accuracy"))
        after(page, chip(page, "seed", "1").click)
        after(page, chip(page, "sweep", "second").click)
        after(page, page.locator("label[for=bands]").click)
        after(page, page.locator("label[for=logx]").click)
        page.evaluate("togglePin(3)")
        page.evaluate("Plotly.relayout('plot', { 'xaxis.range': [-1, 0], 'yaxis.range': [0, 3] })")
        link, seen, pinned = page.evaluate("location.href"), points_drawn(page), page.inner_text("#pins")
    assert "#" in link
    with opened(chromium, link) as page:
        assert points_drawn(page) == seen
        assert page.inner_text("#pins") == pinned
        assert not page.is_checked("#bands")
        assert page.evaluate("document.getElementById('plot').layout.xaxis.type") == "log"
        assert page.evaluate("document.getElementById('plot')._fullLayout.xaxis.range") == [-1, 0]
        assert page.evaluate("location.href") == link
        after(page, lambda: page.evaluate("location.hash = ''"))  # the browser's back button does the same
        assert len(points_drawn(page)) > len(seen)
        assert page.locator("#pins .card").count() == 0
    with opened(chromium, f"{link.split('#')[0]}#x=nonsense&y=%3Cimg%3E&pin=nobody&without-stage=none") as page:
        assert page.input_value("#x") == "mse"
        assert page.locator("#pins .card").count() == 0


def test_the_keyboard_goes_from_point_to_point(page: Any):
    page.focus("#plot")
    for key in ("End", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    assert page.evaluate("state.pins") == [page.evaluate("nameOf(visible.at(-2))")]
    assert page.evaluate("document.getElementById('plot').data.at(-1).x") == [page.evaluate("T.mse[visible.at(-2)]")]
    page.keyboard.press("Escape")
    assert page.evaluate("document.getElementById('plot').data.at(-1).x") == []
    page.locator("[data-filter=stage] input").first.focus()
    after(page, lambda: page.keyboard.press("Space"))
    assert page.locator("[data-filter=stage] input").first.is_checked() is False
    page.locator("#listing summary").focus()
    page.keyboard.press("Enter")
    page.locator("#listing tbody button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#pins .card").count() == 2


def test_what_is_shown_is_what_the_csv_holds(page: Any, store: Store):
    points = facts.fronts(facts.load(store, "study"))
    after(page, chip(page, "stage", "universal").click)
    with page.expect_download() as caught:
        page.click("#points-csv")
    table = pd.read_csv(caught.value.path())
    ends = points[points["stage"] == "end_to_end"].set_index("trial_id")
    assert set(table["trial_id"]) == set(ends.index)
    own = ends.loc[table["trial_id"]]
    np.testing.assert_allclose(table["mse"], own["mse"], rtol=1e-8)
    assert table["on_front_mse_cross_entropy"].tolist() == own["on_front"].tolist()
    with page.expect_download() as caught:
        page.click("[data-csv=failures]")
    rows = list(csv.DictReader(Path(caught.value.path()).read_text().splitlines()))
    assert rows[0]["error_message"] == EVIL
    with page.expect_download() as caught:
        page.locator("#training").scroll_into_view_if_needed()
        page.click("#curves-csv")
    assert len(pd.read_csv(caught.value.path())) == 3 * 45  # three trials of 90 epochs, every second one
    assert "thinned to at most 60 epochs" in page.inner_text("#curves-note")


@pytest.mark.parametrize("format", ["png", "svg"])
def test_the_mode_bar_saves_pictures(page: Any, format: str):
    page.locator("#plot").hover()
    with page.expect_download() as caught:
        page.click(f"#plot .modebar-btn[data-title='Download as {format.upper()}']")
    data = Path(caught.value.path()).read_bytes()
    assert caught.value.suggested_filename == f"study-plot.{format}"
    assert data.startswith({"png": b"\x89PNG\r\n", "svg": b"<svg"}[format])
    assert len(data) > 10_000
    titles = page.eval_on_selector_all(".modebar-btn", "all => all.map((each) => each.dataset.title)")
    assert not any("hare" in title or "loud" in title for title in titles)


def test_light_dark_and_print_have_their_own_ink(page: Any):
    ink = f"{MARKS}.find((trace) => trace.marker.line.width > 1).marker.line.color"
    light = page.evaluate(ink)
    after(page, lambda: page.emulate_media(color_scheme="dark"))
    dark = page.evaluate(ink)
    assert light != dark
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(22, 24, 27)"
    page.emulate_media(color_scheme="dark", media="print")
    before = drawn(page)
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert drawn(page) > before
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (3840, 2160)])
def test_it_fits_every_screen(page: Any, width: int, height: int):
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("togglePin(0)")
    until(lambda: page.evaluate(f"document.documentElement.scrollWidth <= {width}"), 10)
    plot = page.locator("#plot").bounding_box()
    assert plot["width"] > (0.85 if width < 800 else 0.25) * width
    assert page.locator("#plot .xaxislayer-above").bounding_box()["width"] <= plot["width"]
    # The long names under its bars leave room for them.
    height = "document.getElementById('gap')._fullLayout._size.h"
    assert page.evaluate(f"(async () => {{ await drawGap(); return {height}; }})()") > 80


def test_3d_opens_when_it_is_asked_for(page: Any):
    assert page.locator("#surface canvas").count() == 0  # browsers allow few WebGL contexts
    page.click("#surface-opened summary")
    page.wait_for_selector("#surface canvas")
    kinds = page.evaluate("document.getElementById('surface').data.map((trace) => trace.type)")
    assert "scatter3d" in kinds
    assert page.evaluate("Object.keys(document.getElementById('surface')._fullLayout.scene._scene.traces).length") > 0


def test_names_from_strangers_are_text(page: Any):
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(200)
    assert page.title() == "study · urc-sweep"
    assert page.locator("img[src=x]").count() == 0
    assert EVIL in page.inner_text("#failures")
    assert EVIL in page.inner_text("footer pre >> nth=0")


def test_figures_of_what_universality_costs(page: Any):
    page.locator("#penalty").scroll_into_view_if_needed()
    until(lambda: page.evaluate("document.getElementById('gap').data?.length > 0"), 10)
    until(lambda: page.evaluate("document.getElementById('cost').data?.length > 0"), 10)
    rows = page.locator("[data-part=penalties] table").first.locator("tbody tr").count()
    assert rows == len(RATES) * len(WEIGHTS)


@pytest.mark.parametrize("status", ["pending", "running", "failed"])
def test_an_empty_sweep_says_so(chromium: Any, tmp_path: Path, status: str):  # noqa: F811
    store = Store(tmp_path / "store")
    store.create()
    row = {"trial_id": "a" * 64, "stage": "end_to_end", "seed": 0, "status": status, "dim": 2, "levels": 3}
    row |= {"rate_bits": 3.17, "lambda_c": 0.0, "dataset": "digits"}
    store.replace(store.layout.trials_table("s"), to_bytes(pa.Table.from_pylist([row], TRIALS)))
    store.replace(store.layout.curves("s") / "part-00000.parquet", to_bytes(CURVES.empty_table()))
    store.save_generation("s", {"launched_at": "", "trials": [], "command": "launch"})
    report.write(store, "s", tmp_path / "r.html", "")
    with opened(chromium, (tmp_path / "r.html").as_uri()) as page:
        assert "No compressor trial is done yet" in page.inner_text("#plot")
        assert "There is nothing to draw" in page.inner_text("[data-part=state]")
        assert "No reconstruction to show yet" in page.inner_text("#grid")


def test_a_later_state_keeps_what_the_reader_chose(page: Any, store: Store):
    later = report.data(report.read(store, ["study"]), linked="")
    shown = report.read(store, ["study"])
    part = shown.trials.iloc[: len(shown.trials) // 2]
    earlier = report.data(type(shown)(**{**shown.__dict__, "trials": part}), linked="")
    page.evaluate("(text) => urcSweep.update(text)", earlier)
    few = len(points_drawn(page))
    after(page, chip(page, "seed", "0").click)
    page.evaluate("togglePin(1)")
    page.locator("#plot").scroll_into_view_if_needed()
    box = page.locator("#plot .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 300, steps=5)
    page.mouse.up()
    zoomed = page.evaluate("document.getElementById('plot')._fullLayout.xaxis.range")
    pinned = page.inner_text("#pins h3")
    page.evaluate("(text) => urcSweep.update(text)", later)
    assert len(points_drawn(page)) > few
    assert page.inner_text("#pins h3") == pinned
    assert chip(page, "seed", "0").locator("input").is_checked() is False
    assert page.evaluate("document.getElementById('plot')._fullLayout.xaxis.range") == zoomed


def test_what_is_the_same_in_a_later_state_is_left_alone(page: Any, store: Store):
    page.evaluate("document.querySelector('#failures table').scrollMark = document.querySelector('#failures')")
    page.evaluate("(text) => urcSweep.update(text)", report.data(report.read(store, ["study"]), linked=""))
    assert page.evaluate("document.querySelector('#failures table').scrollMark != null")


def test_the_browsers_attainment_surface_is_that_of_the_definition(page: Any):
    rng = np.random.default_rng(0)
    for _ in range(40):
        sets = [rng.integers(0, 6, (rng.integers(1, 5), 2)).astype(float) for _ in range(rng.integers(1, 6))]
        points = np.vstack(sets)
        front = page.evaluate("(points) => nondominated(points)", points.tolist())
        assert sorted(front) == sorted(points[nondominated(points)].tolist())
        k = int(rng.integers(1, len(sets) + 1))
        corners = page.evaluate("([sets, k]) => attained(sets, k)", [[s.tolist() for s in sets], k])
        grid = [(a, b) for a in range(7) for b in range(7)]
        reached = {p: sum(bool((s <= p).all(axis=1).any()) for s in sets) >= k for p in grid}
        told = {p: any(c[0] <= p[0] and c[1] <= p[1] for c in corners) for p in grid}
        assert told == reached
        assert nondominated(np.array(corners).reshape(-1, 2)).all()


def test_overlays_say_what_they_are_and_stand_where_they_are(page: Any, store: Store):
    told = page.inner_text("#key")
    assert "dashed: near-floor" in told
    assert "asterisk: bound, bound of this encoder, up to sampling of its cells" in told
    assert "out of view: achievable, " in told
    assert "thin cross: worse than zero rate" in told
    drawn = page.evaluate(
        """document.getElementById("plot").data.filter((trace) => trace.marker?.symbol === "asterisk-open")
             .flatMap((trace) => trace.x.map((x, k) => [x, trace.y[k]]))"""
    )
    overlays = facts.overlays(facts.load(store, "study"))
    bounds = overlays[overlays["kind"] == "bound"].pivot(index="overlay", columns="metric", values="value")
    assert rounded(drawn) == rounded(bounds[["mse", "cross_entropy"]].to_numpy())
    lines = page.evaluate("document.getElementById('plot').layout.shapes.map((shape) => shape.x0)")
    assert set(lines) == {0.03}
    # They are within the view and not on its edge, on a log axis too, also where Plotly chooses it.
    left = "(([low, high]) => [low, high - low])(document.getElementById('plot')._fullLayout.xaxis.range)"
    for press, level in (
        (chip(page, "seed", "3"), 0.03),
        (page.locator("label[for=logx]"), math.log10(0.03)),
        (chip(page, "seed", "3"), math.log10(0.03)),
    ):
        after(page, press.click)
        low, width = page.evaluate(left)
        assert 0.02 * width < level - low < 0.2 * width
    after(page, page.locator("label[for=overlays]").click)
    assert page.evaluate("document.getElementById('plot').layout.shapes.length") == 0
    assert "near-floor" not in page.inner_text("#key")


def test_a_canvas_draws_what_is_too_much_for_svg(page: Any):
    inked = """() => {
      const canvas = document.getElementById("dots"), pen = canvas.getContext("2d");
      return pen.getImageData(0, 0, canvas.width, canvas.height).data.filter((value, k) => k % 4 === 3 && value).length;
    }"""
    page.evaluate("DATA.svg_points = 10")
    try:
        after(page, chip(page, "stage", "universal").click)
        assert page.evaluate(f"{MARKS}.length") == 0
        assert page.evaluate(inked) > 100
        loose = loneliest(page)
        page.locator("#plot").scroll_into_view_if_needed()
        spot = page.evaluate(
            """(row) => {
              const graph = document.getElementById("plot"), box = graph.getBoundingClientRect();
              const { xaxis, yaxis, _size: at } = graph._fullLayout; // as Plotly itself places it
              return [box.x + at.l + xaxis.c2p(T.mse[row]), box.y + at.t + yaxis.c2p(T.cross_entropy[row])];
            }""",
            loose,
        )
        page.mouse.move(spot[0] + 3, spot[1])
        until(lambda: page.locator("#tip").is_visible(), 5)
        assert EVIL in page.inner_text("#tip")
        page.mouse.click(spot[0] + 3, spot[1])
        assert page.evaluate("state.pins") == [page.evaluate(f"nameOf({loose})")]
        after(page, lambda: page.fill("#step", "1"))
        assert page.evaluate("dots.flatMap((each) => each.rows).length") == page.evaluate("shown().length")
        assert page.evaluate(inked) > 100
        page.evaluate("Plotly.relayout('plot', { 'xaxis.range': [1, 2] })")
        until(lambda: page.evaluate(inked) == 0, 5)
        # On paper ink and accent are one colour: only pins have letters.
        page.emulate_media(media="print")
        said = page.evaluate(
            """() => {
              const pen = $("dots").getContext("2d"), said = [];
              pen.fillText = (text) => said.push(String(text));
              cursor = visible[0];
              state.pins = [nameOf(visible[1])];
              drawDots();
              delete pen.fillText;
              return said.filter(Boolean);
            }"""
        )
        assert said == ["A"]
    finally:
        page.evaluate("DATA.svg_points = 3000")


def test_metrics_may_have_any_name(page: Any, store: Store):
    points = facts.fronts(facts.load(store, "study"))
    for name in NAMESAKES:
        after(page, lambda name=name: page.select_option("#y", name))
        assert points_drawn(page) == rounded(points[["mse", name]].to_numpy())
    assert "rate (less is better)" in page.inner_text("#y")
    after(page, lambda: page.fill("#step", "1"))
    assert len(points_drawn(page)) < len(points)
    with page.expect_download() as caught:
        page.click("#points-csv")
    table = pd.read_csv(caught.value.path(), keep_default_na=False)
    assert {*NAMESAKES, *facts.RATE, "parent_terms"} <= {*table.columns}
    assert not [name for name in table.columns if name.endswith(".1")]  # pandas' word for a name that is there twice


@contextmanager
def written(chromium: Any, folder: Path, rows: list[dict[str, Any]], curve: Any = None) -> Iterator[Any]:  # noqa: F811
    """Yield the page of these trials; all have a picture."""
    picture = Store(folder / "store").put(_png(), ".png")
    write(folder, [each | {"samples_sha256": picture, "originals_sha256": picture} for each in rows], curve=curve)
    with opened(chromium, (folder / "report.html").as_uri(), accept_downloads=True) as page:
        yield page


def families() -> list[dict[str, Any]]:
    """Return trials that only their encoder's settings, or a further term of their objective, set apart."""
    bases = [row(0, "end_to_end"), row(1, "end_to_end"), row(2, "control", variant="random")]
    rows, number = [*bases], 3
    for base, variant, terms in ((1, "", []), (1, "", [("edges", 1.0)]), (1, "batch", []), (2, "", [])):
        for weight in (0.0, 0.02, 0.01):
            of = {"parent_id": bases[base]["trial_id"], "parent_lambda_c": bases[base]["lambda_c"], "variant": variant}
            rows.append(row(number, "universal", **of) | {"lambda_c": weight, "weights": terms})
            number += 1
    return rows


def test_it_says_whose_encoder_and_which_terms(chromium: Any, tmp_path: Path):  # noqa: F811
    with written(chromium, tmp_path, families(), curve=[(1, "train", "loss", 0.5, 1.0)]) as page:
        points = facts.fronts(facts.load(Store(tmp_path / "store"), "s"))
        told = {each["trial_id"]: (gaps.weights(each), gaps.encoder(each)) for each in facts.records(points)}
        encoders = sorted({encoder for _, encoder in told.values() if encoder})
        assert len(encoders) == 4  # c 0.01, its decoders of another variant, the control, and decoders on that
        assert sorted(page.locator("[data-filter=parent] label").all_inner_texts()) == encoders
        # In the hover, the card and the table.
        for number, (trial, (weights, encoder)) in enumerate(told.items()):
            text, terms = page.evaluate(f"hover({number})"), weights.partition("edges")[1:]
            assert (f"<br>encoder {encoder}<br>" in text) == bool(encoder)
            assert "".join(terms) in text
            page.evaluate(f"preview({number})")
            card = page.inner_text("#preview dl >> nth=0")
            assert (f"encoder\n{encoder}" in card, "edges 1" in card) == (bool(encoder), terms[0] == "edges")
            assert trial[:12] in page.inner_html("#preview")
        page.click("#listing summary")
        page.wait_for_selector("#listing tbody tr")  # what a summary opens is drawn a moment later
        rows = [line.split("\t")[3:5] for line in page.locator("#listing tbody tr").all_inner_texts()]
        assert rows == [[weights, encoder] for weights, encoder in told.values()]
        # Reconstructions: a heading for each family, and in each the weights as they grow.
        lines = page.locator("#grid .group, #grid .line > span:first-child").all_inner_texts()
        heads = [line for line in lines if "end-to-end" in line or "universal" in line or "control" in line]
        assert len(heads) == len({*heads}) == 5
        start = lines.index("universal, encoder c 0.01") + 1
        series = [f"λc {weight:g}{terms}" for terms in ("", " edges 1") for weight in (0, 0.01, 0.02)]
        assert [line.replace("\n", "").strip() for line in lines[start : start + 6]] == series
        assert page.evaluate("new Set(OF.alike).size") == len(points)  # no trial is another's seed
        # Decoders on a control can be switched off, and the link knows.
        after(page, chip(page, "parent", "frozen control c 0.02 random").click)
        assert page.inner_text("#count").startswith(f"{len(points) - 3} of")
        link = page.evaluate("location.href")
        with page.expect_download() as caught:
            page.click("#points-csv")
        assert sorted(pd.read_csv(caught.value.path())["terms"].dropna()) == ["edges 1"] * 3
    assert "without-parent=" in link
    with opened(chromium, link) as page:
        assert page.inner_text("#count").startswith(f"{len(points) - 3} of")


def test_a_sweep_that_trades_perception_says_so(chromium: Any, tmp_path: Path):  # noqa: F811
    base = {"lambda_c": None, "cross_entropy": None, "val_cross_entropy": None}
    rows = [
        row(n, "end_to_end", **base, lambda_p=0.01 * n, sliced_w2=0.3 - 0.1 * n, val_sliced_w2=0.3 - 0.1 * n)
        for n in (0, 1, 2)
    ]
    with written(chromium, tmp_path, rows, curve=[(1, "train", "loss", 0.5, 1.0)]) as page:
        assert "3 on a front" in page.inner_text("#count")
        assert "3 of 3 points chosen for fronts over MSE and sliced-w2" in page.inner_text("[data-part=trust]")
        page.click("#listing summary")
        page.wait_for_selector("#listing tbody tr")
        assert [line.split("\t")[3] for line in page.locator("#listing tbody tr").all_inner_texts()] == [
            "p 0",
            "p 0.01",
            "p 0.02",
        ]
        page.click("#ends summary")
        assert page.locator("#ends tbody tr").inner_text().split("\t")[2] == "p 0"
        page.locator("#training").scroll_into_view_if_needed()
        until(lambda: page.evaluate("document.getElementById('curves').data?.length > 0"))
        assert "p 0" in page.evaluate("document.getElementById('curves').data[0].text[0]")


# What moves by itself from here on; what follows a reader's own input does not count.
MOVED = """window.moved = [];
new PerformanceObserver((list) => list.getEntries().forEach((entry) => moved.push(
  entry.sources.map((each) => each.node?.id || each.node?.className || each.node?.nodeName).join())
)).observe({ type: "layout-shift" })"""


def test_nothing_moves_while_figures_are_drawn_on_the_way(chromium: Any, page_of: Any):  # noqa: F811
    """Whoever aims at something must hit it, though figures below the window wait to be drawn."""
    with opened(chromium, page_of("study", "second")) as page:
        page.evaluate(MOVED)
        for figure in ("cost", "gap", "curves"):
            page.locator(f"#{figure}").scroll_into_view_if_needed()
            until(lambda figure=figure: page.evaluate(f"document.getElementById('{figure}').data?.length > 0"))
        # Bars that lie one below the other have the room that they ask for.
        wanted, had = page.evaluate("[DATA.costs[chosen('at')].gap.layout.height, $('gap').clientHeight]")
        assert had > wanted > 200
        page.locator("footer").scroll_into_view_if_needed()
        page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 200)))")
        assert page.evaluate("moved") == []
        page.evaluate("document.querySelector('footer').lastElementChild.before('one line')")  # the watch itself works
        until(lambda: len(page.evaluate("moved")) == 1)


def test_long_seeds_stay_apart(chromium: Any, tmp_path: Path):  # noqa: F811
    seeds = [2**60 + 1, 2**60 + 2, 123_456]  # the first two are the same number to a browser
    rows = [row(n, "end_to_end", seed=seed) for n, seed in enumerate(seeds)]
    with written(chromium, tmp_path, rows, curve=[(1, "train", "loss", 0.5, 1.0)]) as page:
        page.click("#listing summary")
        page.wait_for_selector("#listing tbody tr")
        listed = [line.split("\t")[5] for line in page.locator("#listing tbody tr").all_inner_texts()]
        assert sorted(map(int, listed)) == sorted(seeds)
        assert "seed 123456" in page.inner_text("#grid h3")
        after(page, chip(page, "seed", str(2**60 + 2)).click)
        assert page.inner_text("#count").startswith("2 of 3")
        page.click("#ends summary")
        assert str(2**60 + 1) in page.inner_text("#ends tbody")


def test_results_of_others_that_cannot_be_drawn_are_named(chromium: Any, store: Store, tmp_path: Path):  # noqa: F811
    curves = [
        exchange.Reference(name, {"bits_per_pixel": [0.1, 0.2], "psnr_db": [20.0, 22.0]}) for name in ("JPEG", "AVIF")
    ]
    curves.append(exchange.Reference("ours", {"mse": [0.04, 0.05], "cross_entropy": [2.0, 1.0]}))
    report.write(store, "study", tmp_path / "r.html", "", references=curves)
    with opened(chromium, (tmp_path / "r.html").as_uri()) as page:
        told = page.inner_text("#key")
        assert "grey: results of others, ours" in told
        others = "results of others that are not over these axes: JPEG and 1 more, over bits_per_pixel, psnr_db"
        assert others in told
