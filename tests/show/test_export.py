"""Files for a paper: what they hold, down to fonts and sizes. Drawing needs a Chromium; tables and citations do not."""

from __future__ import annotations

import base64
import csv
import io
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.show.browser import CHROMIUM
from tests.show.test_facts import frame, study, trial
from tests.show.test_figures import seeds
from tests.show.test_gaps import run, save
from urc_sweep.errors import ResourceError, SpecError
from urc_sweep.maths.penalty import paired_interval
from urc_sweep.maths.streams import FIXED_SEED
from urc_sweep.show import export, facts, figures, gaps

EVIL = r"a_b & 50% $x$ #1 {y} ~ ^ \input{/etc/passwd} <é|λ>"
SOURCE = "5f" * 32
drawing = pytest.mark.skipif(CHROMIUM is None, reason="drawing needs a Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """One frontier in every format, 3.25 in wide, as a paper has it."""
    pytest.importorskip("kaleido", reason="drawing needs kaleido: pip install '.[export]'")
    figure = figures.frontier(seeds(3))
    return {
        form: export.render(figure, form, "print", export.pixels("--width", "3.25in")) for form in ("pdf", "svg", "png")
    }


# -- figures -----------------------------------------------------------------------------------------------------------


@drawing
def test_a_pdf_is_vector_with_its_fonts_and_as_wide_as_asked(drawn: dict[str, bytes]):
    pdf = drawn["pdf"]
    assert pdf.startswith(b"%PDF-")
    box = [float(number) for number in re.search(rb"/MediaBox \[([\d. ]+)\]", pdf)[1].split()]  # type: ignore[index]
    assert box[2] - box[0] == pytest.approx(3.25 * 72, abs=0.5)
    assert pdf.count(b"/Type /Page\n") == 1
    assert b"/Subtype /Image" not in pdf
    described = len(re.findall(rb"/Type /FontDescriptor", pdf))
    assert described > 0
    assert len(re.findall(rb"/FontFile[23]? ", pdf)) == described  # every font comes with its glyphs
    assert b"http" not in re.sub(rb"/(Creator|Producer) \(.*?\)", b"", pdf)


@drawing
def test_an_svg_holds_its_fonts_and_asks_for_nothing(drawn: dict[str, bytes]):
    text = drawn["svg"].decode()
    root = ElementTree.fromstring(text)
    assert root.get("width") == "3.25in"
    assert float(root.get("height", "")[:-2]) == pytest.approx(float(root.get("viewBox", "").split()[3]) / 96, rel=1e-3)
    links = re.findall(r"url\(([^)]*)\)|href=\"([^\"]*)\"", text)
    assert all(link.startswith(("data:", "#", '"#', "'#")) for pair in links for link in pair if link)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert "<script" not in text

    ttlib = pytest.importorskip("fontTools.ttLib")
    held: set[int] = set()
    for data in re.findall(r"url\(data:font/woff;base64,([^)]*)\)", text):
        held |= set(ttlib.TTFont(io.BytesIO(base64.b64decode(data))).getBestCmap())
    shown = {ord(c) for element in root.iter() if element.tag.endswith(("}text", "}tspan")) for c in element.text or ""}
    assert shown - held <= {0x200B}  # Plotly's own mark of an empty place


@drawing
def test_a_png_has_300_dots_to_the_inch(drawn: dict[str, bytes]):
    picture = Image.open(io.BytesIO(drawn["png"]))
    assert picture.width == pytest.approx(3.25 * 300, abs=1)
    assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    ink = np.asarray(picture.convert("RGBA"))
    assert (ink[..., 3] > 0).any()
    assert ink[0, 0, 3] == 0  # no background


@drawing
@pytest.mark.parametrize("kind", ["gap", "surface"])
def test_other_figures_draw_too(kind: str):
    pytest.importorskip("kaleido")
    rows = [row | {"mse_centroid": row["mse"] - 0.002} for row in study(0, 0.005)]
    figure = export.figure(frame(rows), kind, lambda sha256: b"")
    data = export.render(figure, "png", "screen", 288, 192)
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert picture.shape == (600, 900, 4)
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 20


def test_what_draws_reaches_no_network(monkeypatch: pytest.MonkeyPatch):
    kaleido, asked = pytest.importorskip("kaleido"), []
    monkeypatch.setattr(kaleido, "calc_fig_sync", lambda *args, **options: asked.append(options["kopts"]) or b"%PDF-")
    assert export.render(figures.frontier(seeds(1)), "pdf", "screen", 300) == b"%PDF-"
    assert asked == [{"mathjax": False, "proxy_server": "127.0.0.1:9"}]


def test_print_is_black_thin_and_has_one_entry_per_rate_and_stage():
    drawn = figures.frontier(seeds(3))
    page = export.printed(drawn, 312)
    shown = [trace.name for trace in page.data if trace.name and trace.showlegend is not False]
    assert {"(3, 3) 4.755 bits", "end-to-end", "universal"} <= set(shown)
    assert len(shown) == len(set(shown))
    assert page.layout.font.size == pytest.approx(8 * 96 / 72)
    assert {page.layout.font.color, page.layout.xaxis.linecolor} == {"black"}
    assert figures.PALETTE[0] not in page.to_json()
    assert not [trace for trace in page.data if trace.visible == "legendonly"]
    assert page.layout.height > 0.72 * 312  # what the legend needs is added
    assert drawn.layout.font.color == figures.INK  # the figure itself is as it was


def test_a_crowded_gap_figure_is_as_high_as_its_bars_need_and_its_note_fits():
    rows = [row | {"levels": n, "rate_bits": 2.0 * n} for n in (2, 3, 4, 5) for row in study(0, 0.005)]
    rows = [row | {"mse_centroid": row["mse"] - 0.002, "trial_id": f"{n}"} for n, row in enumerate(rows)]
    rows = [row | {"parent_id": row["parent_id"] and f"{n // 5 * 5 + 1}"} for n, row in enumerate(rows)]
    page = export.printed(export.figure(frame(rows), "gap", lambda sha256: b""), 312)
    assert len(page.data[0].y) > figures.CROWDED
    assert page.data[0].orientation == "h"
    margin = page.layout.margin
    assert page.layout.height - margin.t - margin.b > 15 * page.layout.yaxis.range[0]
    (note,) = (note.text for note in page.layout.annotations if "paired seeds" in note.text)
    assert note == "means of n = 1 paired seeds;<br>95 % intervals from 3 on"
    assert page.layout.margin.t == 30


def test_rates_differ_in_grey_too():
    rows = [row | {"levels": levels, "rate_bits": 3.0 * levels} for levels in (2, 3, 4, 5) for row in study(0, 0.005)]
    rows = [row | {"trial_id": f"{row['trial_id']}{row['levels']}"} for row in rows]
    page = export.printed(figures.frontier(frame(rows)), 312)
    shades = {trace.line.color for trace in page.data if trace.mode == "lines" and trace.line.width == 4}
    grey = sorted(np.dot([int(n) for n in re.findall(r"\d+", shade)], (0.299, 0.587, 0.114)) for shade in shades)
    assert len(grey) == 4
    assert min(np.diff(grey)) > 20
    assert max(grey) < 200  # on white paper


def test_an_image_grid_is_as_high_as_its_rows():
    rows = [row | {"samples_sha256": "s", "originals_sha256": "s"} for row in study(0, 0.005)]
    buffer = io.BytesIO()
    Image.new("L", (80, 8)).save(buffer, "PNG")
    page = export.printed(export.figure(frame(rows), "images", lambda sha256: buffer.getvalue()), 312)
    margin = page.layout.margin
    strip = (312 - margin.l - margin.r) / 80
    assert strip > 1
    assert page.layout.height == pytest.approx(strip * page.layout.yaxis.range[0])


@pytest.mark.parametrize(
    ("size", "wanted"), [("3.25in", 312), ("2.54cm", 96), ("25.4 mm", 96), ("72pt", 96), ("640px", 640)]
)
def test_sizes_have_units(size: str, wanted: float):
    assert export.pixels("--width", size) == pytest.approx(wanted)


@pytest.mark.parametrize("size", ["3.25", "in", "-3in", "1e9in", "0in", "101in", "3em", "9" * 400 + "in", "3in;", ""])
def test_other_sizes_are_one_line(size: str):
    with pytest.raises(SpecError, match="expected a number and a unit") as told:
        export.pixels("--width", size)
    assert len(told.value.lines) == 1


def test_a_missing_browser_or_kaleido_is_one_line(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("kaleido")
    figure = figures.frontier(frame([]))
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    with pytest.raises(ResourceError, match="BROWSER_PATH=/nowhere/chromium is none: install one") as told:
        export.render(figure, "pdf", "print", 300)
    assert len(told.value.lines) == 1
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(SpecError, match=r"^kaleido is not installed: pip install '\.\[export\]' in the checkout"):
        export.render(figure, "pdf", "print", 300)


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoders", "gap", "hypervolume", "penalty", "points"])
def test_csv_equals_the_facts(kind: str):
    trials = frame([row | {"mse_centroid": row["mse"] - 0.002} for seed in range(3) for row in study(seed, 0.005)])
    made = {
        "encoders": facts.encoders,
        "gap": gaps.splits,
        "hypervolume": facts.hypervolumes,
        "penalty": gaps.penalties,
    }
    told = made.get(kind, facts.fronts)(trials)
    read = pd.read_csv(io.StringIO(export.csv(export.table(trials, kind, ""))))
    numbers = told.select_dtypes("number").columns
    assert len(read) == len(told) > 0
    pd.testing.assert_frame_equal(
        read[numbers], told[numbers].reset_index(drop=True), check_dtype=False, check_exact=True
    )


def test_csv_holds_no_formula():
    assert export.csv(pd.DataFrame({"a": ["=1+1", "@x", "fine"], "b": [-1.0, 2.0, 3.0]})).splitlines()[1:] == [
        "'=1+1,-1.0",
        "'@x,2.0",
        "fine,3.0",
    ]
    link = '=HYPERLINK("http://evil.invalid";"mse")'  # a plugin's metric may have any name
    trials = frame([row | {"metrics": {link: 1.0, f"val_{link}": 1.0}} for row in study(0, 0.005)])
    heads = next(csv.reader(io.StringIO(export.csv(export.table(trials, "points", "")))))
    assert f"'{link}" in heads
    assert not [head for head in heads if head.startswith(("=", "+", "-", "@"))]


def test_latex_says_n_intervals_and_what_was_chosen_where():
    trials = seeds(3)
    text = export.latex(trials, "penalty", "", "study (5f5f)")
    assert re.search(r"caption\{.*chosen on the validation split; numbers are of the test split.*study \(5f5f\)", text)
    loose, _, tight = facts.records(gaps.penalties(trials))
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len({line.count(" & ") for line in body}) == 1
    assert f"${loose['penalty']:.5f}$ & $[{loose['low']:.5f}, {loose['high']:.5f}]$ & 3 " in text
    assert r"$\lambda_c$~0.05" in body[-1]
    assert body[-1].endswith(r"-- & infeasible & 0 of 3 \\")
    assert tight["infeasible"]
    assert "-- & 2 " in export.latex(seeds(2), "penalty", "", "")  # under three seeds no interval


@pytest.mark.parametrize("kind", ["encoders", "hypervolume", "points"])
def test_latex_of_facts_has_means_over_seeds(kind: str):
    rows = [
        row | {"mse_centroid": row["mse"] - 0.002, "accuracy": 0.5} for seed in range(3) for row in study(seed, 0.0)
    ]
    text = export.latex(frame(rows), kind, "", "")
    assert "$0.04100$" in text or kind == "hypervolume"
    assert all(line.endswith(r"& 3 \\") for line in text.splitlines() if line.startswith("(3, 3)"))


def body(text: str) -> list[list[str]]:
    """The cells of a LaTeX table's rows, without its head."""
    lines = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    return [line.removesuffix(r" \\").split(" & ") for line in lines]


def test_only_a_constraint_is_infeasible():
    joint = [trial("joint", seed, 0.01, (None, None), (None, None), mse_centroid=0.03 + seed / 100) for seed in (0, 1)]
    (row,) = body(export.latex(frame(joint), "encoders", "", ""))
    assert row[4:] == ["--", "--", "--", "$0.03500$", "--", "2"]
    rows = [row | {"metrics": {}} for row in study(0, 0.005)]  # no reference, no hypervolume
    assert [row[4:] for row in body(export.latex(frame(rows), "hypervolume", "", ""))] == [["--", "--", "0 of 1"]] * 2


def test_intervals_from_ten_seeds_on_are_the_bootstrap():
    values = 0.02 + 0.01 * np.linspace(0, 1, 10) ** 3
    rows = [trial("end_to_end", n, 0.01, (0.04, 1.0), (mse, 1.0)) for n, mse in enumerate(values)]
    ((*_, interval, n),) = body(export.latex(frame(rows), "points", "", ""))
    told = paired_interval(values, FIXED_SEED)
    assert (interval, n) == (f"$[{told.low:.5f}, {told.high:.5f}]$", "10")
    assert told.low != pytest.approx(paired_interval(values).low, abs=1e-5)


def test_points_say_in_how_many_seeds_they_are_on_the_front():
    rows = [trial("end_to_end", seed, 0.0, (0.04, 1.0), (0.04, 1.0)) for seed in range(3)]
    rows += [trial("end_to_end", seed, 0.1, (0.05, 0.5 + seed), (0.05 + seed, 0.5)) for seed in range(3)]
    rows += [trial("end_to_end", seed, 0.2, (0.06, 3.0), (0.06, 3.0)) for seed in range(3)]
    told = body(export.latex(frame(rows), "points", "", ""))
    assert [(row[-3], row[-1]) for row in told] == [("$0.04000$", "3"), ("$0.05000$", "1 of 3")]


def test_collapsed_runs_and_other_objectives_are_in_no_mean_of_encoders():
    cells = [(0, 0.04), (1, 0.06), (2, 0.2)]  # the last is worse than the best constant image
    rows = [trial("end_to_end", seed, 0.1, (mse, 1.0), (mse, 1.0), mse_centroid=mse) for seed, mse in cells]
    rows += [trial("end_to_end", seed, 0.3, (0.2, 1.0), (0.2, 1.0), mse_centroid=0.2) for seed in range(3)]
    rows += [trial("control", seed, 0.1, (0.2, 1.0), (0.2, 1.0), mse_centroid=0.05) for seed in range(3)]
    told = {(row[1], row[3]): (row[7], row[-1]) for row in body(export.latex(frame(rows), "encoders", "", ""))}
    assert told == {
        ("control", r"$\lambda_c$~0.1"): ("$0.05000$", "3"),  # its own decoder is untrained on purpose
        ("end-to-end", r"$\lambda_c$~0.1"): ("$0.05000$", "2 of 3"),
        ("end-to-end", r"$\lambda_c$~0.3"): ("--", "0 of 3"),
    }
    edges = [row | {"weights": {"edges": float(n)}} for n, row in enumerate(rows[:2])]
    for kind in ("encoders", "points"):
        seeds = [(row[3], row[-1]) for row in body(export.latex(frame(edges), kind, "", ""))]
        assert seeds == [(rf"$\lambda_c$~0.1 edges {n}", "1") for n in (0, 1)]


def test_points_of_a_sweep_that_trades_perception_are_on_its_fronts():
    rows = [
        trial("end_to_end", 0, None, (mse, 1.0), (mse, 1.0), lambda_p=p, val_sliced_w2=w2, sliced_w2=w2)
        for mse, p, w2 in ((0.03, 0.0, 0.4), (0.04, 0.01, 0.2))
    ]
    text = export.latex(frame(rows), "points", "", "")
    assert "Points on a front in (MSE, sliced-w2)" in text
    assert r" & sliced\_w2 & cross\_entropy & accuracy & mse & " in text
    assert [row[4] for row in body(text)] == ["$0.40000$", "$0.20000$"]


@pytest.mark.parametrize("kind", ["gap", "penalty", "hypervolume"])
def test_a_table_without_rows_says_why(kind: str):
    with pytest.raises(SpecError) as told:
        export.latex(frame(study(0, 0.005)[:3] if kind != "hypervolume" else []), kind, "", "")
    why = "nothing to show yet" if kind == "hypervolume" else gaps.obstacle(frame(study(0, 0.005)[:3]))
    assert told.value.lines == [f"export --table {kind}: {why}"]


@pytest.mark.parametrize("kind", ["hypervolume", "points"])
def test_reduced_trials_of_two_rates_are_no_seeds_of_each_other(kind: str):
    rows = [trial("end_to_end", 0, 0.01, (0.04, 1.0), (0.04, 1.0), dim=dim, rate_bits=2.0 * dim) for dim in (3, 4)]
    rows += [
        trial("reduced", 0, 0.01, (mse, 1.0), (mse, 1.0), dim=2, rate_bits=4.0)
        | {"parent_id": parent["trial_id"], "parent_lambda_c": 0.01}
        for parent, mse in zip(rows, (0.05, 0.06), strict=True)
    ]
    told = [row for row in body(export.latex(frame(rows), kind, "", "")) if row[1].startswith("reduced")]
    assert [(row[1], row[-1]) for row in told] == [("reduced, from 6 bits", "1"), ("reduced, from 8 bits", "1")]


def test_latex_escapes_what_came_from_data():
    rows = [row | {"variant": EVIL, "parent_variant": EVIL} for row in study(0, 0.005)]
    text = export.latex(frame(rows).assign(sweep=EVIL), "penalty", "", EVIL)
    assert r"\input" not in text
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert text.isascii()
    plain = re.sub(r"\\[&%$#_{}]", "", text)  # what is left are the table's own
    assert all(line.count("&") == 9 for line in plain.splitlines() if line.startswith("(3, 3)"))
    assert plain.count("{") == plain.count("}")
    assert "%" not in plain.replace(r"% \usepackage", "")


# -- citations ---------------------------------------------------------------------------------------------------------


def test_a_sweep_cites_what_it_uses():
    everything = export.citations(seeds(1), "study", SOURCE)
    for key in ("nguyen2025universal", "zhang2021universal", "wang2024lossy", "digits", "urc-sweep"):
        assert f"{{{key}," in everything
    assert SOURCE in everything
    assert "fashion_mnist" not in everything
    plain = frame([row | {"lambda_c": None} for row in study(0, 0.005)[:1]])
    told = export.citations(plain.assign(dataset="my\nown"), EVIL, SOURCE)
    assert not re.search("zhang2021|wang2024", told)
    assert "% data set my\\nown: cite its own source" in told
    assert told.count("@") == 2


def test_no_name_becomes_an_entry_or_breaks_one():
    rows = frame(study(0, 0.005)).assign(dataset="x @misc{evil, title={y}}", code_version="1.0{")
    told = export.citations(rows, "study", SOURCE)
    assert "% data set x (at)misc(evil, title=(y)): cite its own source" in told
    assert re.findall(r"@\w+\{(.*?),", told) == [
        "nguyen2025universal",
        "zhang2021universal",
        "wang2024lossy",
        "urc-sweep",
    ]
    assert told.count("{") == told.count("}")  # BibTeX counts those behind a backslash too
    assert "trained by code 1.0" in told


def test_every_entry_is_whole_and_has_authors():
    entries = re.split(r"\n(?=@)", (Path(export.__file__).parent / "references.bib").read_text())
    assert len(entries) == 8
    for entry in entries:
        assert entry.count("{") == entry.count("}")
        assert re.search(r"author\s+= \{\w", entry)
        assert re.search(r"year\s+= \{\d{4}\}", entry)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    save(tmp_path / "store", "study", [row for seed in range(3) for row in study(seed, 0.005)])
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "name one of --figure, --table and --to"),
        (["--figure", "gap", "--table", "gap"], "name one of"),
        (["--figure", "fronti"], "--figure fronti: did you mean 'frontier'? choices: frontier, gap, images, penalty"),
        (["--figure", "gap", "--x", "foo"], "export --figure gap takes no --x; choices: --at, --format, --height"),
        (["--table", "penalty", "--width", "bar"], "--table penalty takes no --width; choices: --at, --format, -o"),
        (["--table", "points", "--at", "accuracy"], "--table points takes no --at"),
        (["--to", "mlflow", "-o", "OUT", "--format", "pdf"], "export --to mlflow takes no --format; choices: -o"),
        (["--to", "compressai", "-o", "FILE"], "export --to compressai: name a folder with -o: "),
        (["--to", "compressai", "-o", "FILE/in"], "cannot be written: Not a directory"),
        (["--table", "gap"], "export --table gap: "),
        (["--figure", "gap", "--format", "csv"], "--format csv: did you mean 'svg'? choices: pdf, png, svg"),
        (["--table", "gap", "--format", "pdf"], "choices: csv, latex"),
        (["--figure", "gap", "--width", "3"], "--width 3: expected"),
        (["--figure", "frontier", "--x", "msee"], "--x msee: did you mean 'mse'"),
        (["--figure", "penalty", "--at", "mse"], "--at mse: choices"),
        (["--table", "penalty", "--at", "mse"], "--at mse: choices"),
        (["--to", "mlflow"], "name a folder with -o"),
        (["nobody", "--table", "gap"], "no sweep 'nobody'"),
    ],
)
def test_errors_are_one_line(options: list[str], said: str, store: Path, monkeypatch: Any, capsys: Any):
    (store.parent / "FILE").touch()
    monkeypatch.chdir(store.parent)
    assert run(monkeypatch, "export", *options, "--store", store) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_tables_go_to_stdout_or_to_a_file(store: Path, tmp_path: Path, monkeypatch: Any, capsys: Any):
    assert run(monkeypatch, "export", "--table", "penalty", "--format", "csv", "--store", store) == 0
    text = capsys.readouterr().out
    assert text.startswith("sweep,dim,levels")
    path = tmp_path / "table.csv"
    assert run(monkeypatch, "export", "--table", "penalty", "--format", "csv", "-o", path, "--store", store) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text() == text
    assert run(monkeypatch, "export", "--table", "penalty", "-o", tmp_path, "--store", store) == 2
    assert "cannot be written" in capsys.readouterr().err


@drawing
def test_a_figure_is_named_after_its_sweep(store: Path, tmp_path: Path, monkeypatch: Any, capsys: Any):
    pytest.importorskip("kaleido")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "export", "--figure", "penalty", "--store", store) == 0
    assert capsys.readouterr().out == "study-penalty.pdf\n"
    assert (tmp_path / "study-penalty.pdf").read_bytes().startswith(b"%PDF-")


def test_cite_prints_bibtex(store: Path, monkeypatch: Any, capsys: Any):
    assert run(monkeypatch, "cite", "study", "--store", store) == 0
    assert capsys.readouterr().out.startswith("@misc{nguyen2025universal,")
