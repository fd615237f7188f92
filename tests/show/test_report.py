"""The report as a stranger would attack it and as an unfinished sweep would fill it."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from plotly.offline import get_plotlyjs

from urc_sweep.show import report
from urc_sweep.store.commits import Store
from urc_sweep.store.tables import CURVES, TRIALS, curve_table, to_bytes

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{spec}}"
PNG = b"\x89PNG not really"
SCRIPTS = 2 + len(report.SCRIPTS)  # the data, plotly.js, and the page's own
ANCHORS = [("label_entropy", 2.0), ("mse_kmeans", 0.03), ("mse_rate0", 0.1), ("val_mse_rate0", 0.1)]


def row(number: int, stage: str, status: str = "done", **more: Any) -> dict[str, Any]:
    values = {"trial_id": f"{number:064x}", "stage": stage, "seed": 0, "status": status, "dataset": "digits"}
    if stage != "classifier":
        values |= {"dim": 3, "levels": 3, "rate_bits": 3 * math.log2(3), "lambda_c": 0.01 * number, "lambda_d": 1.0}
    if status == "done" and stage != "classifier":
        cost = {"mse": 0.05 + 0.001 * number, "cross_entropy": 1.0 - 0.1 * number}
        values |= cost | {f"val_{name}": value for name, value in cost.items()} | {"metrics": ANCHORS}
    return values | more


def write(folder: Path, rows: list[dict[str, Any]], source: str = "abc", curve: list[Any] | None = None) -> str:
    """Write a report through a real store whose tables hold ``rows``; return its text without plotly.js."""
    store = Store(folder / "store")
    store.create()
    store.put(PNG, ".png")
    store.replace(store.layout.trials_table("s"), to_bytes(pa.Table.from_pylist(rows, TRIALS)))
    curves = curve_table(rows[0]["trial_id"], curve) if curve and rows else CURVES.empty_table()
    store.replace(store.layout.curves("s") / "part-00000.parquet", to_bytes(curves))
    store.replace(store.layout.spec("s"), b"name: s  # " + EVIL.encode())
    store.save_generation("s", {"launched_at": "", "trials": [], "command": f"urc-sweep launch {EVIL}"})
    report.write(store, "s", folder / "report.html", source)
    text = (folder / "report.html").read_text()
    assert text.count(get_plotlyjs()) == 1
    return text.replace(get_plotlyjs(), "")


def payload(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', page)
    assert found
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return data


class Tags(HTMLParser):
    """Collects every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_hostile_names_stay_text(tmp_path: Path):
    rows = [
        row(1, "end_to_end", dataset=EVIL, model=EVIL, host=EVIL, torch_version=EVIL),
        row(2, "end_to_end", "failed", error_type=EVIL, error_message=EVIL, host=EVIL),
        row(3, EVIL),
    ]
    page = write(tmp_path, rows, curve=[(1, EVIL, EVIL, 0.5, 1.0)])
    tags = Tags(page).tags
    assert [tag for tag, _ in tags].count("script") == SCRIPTS
    assert "img" not in [tag for tag, _ in tags]
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    # What is filled in is not a template: the name of a slot in data stays where it is.
    assert page.count("{{spec}}") > 3
    assert EVIL in {stage["name"] for stage in payload(page)["stages"]}


def test_a_hostile_sweep_name_stays_text(tmp_path: Path):
    write(tmp_path, [row(1, "end_to_end")])
    store = Store(tmp_path / "store")
    told = report.read(store, "s")
    told.trials["sweep"] = EVIL
    evil = dict.fromkeys(("source", "spec", "verified"), EVIL) | {"sweeps": [EVIL], "commands": [EVIL]}
    page = report.render(dataclasses.replace(told, **evil)).replace(get_plotlyjs(), "")
    assert [tag for tag, _ in Tags(page).tags].count("script") == SCRIPTS
    assert "<img" not in page


def test_the_page_asks_nobody_for_anything(tmp_path: Path):
    page = write(tmp_path, [row(1, "end_to_end")])
    for tag, attributes in Tags(page).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|\bimport\(|https?://", page)
    assert "default-src 'none'" in page


def test_the_page_says_what_it_was_written_from(tmp_path: Path):
    write(tmp_path, [row(1, "end_to_end")], source='5f"<&>')
    head = (tmp_path / "report.html").read_text()[:2_000]
    assert '<meta name="urc-sweep-source" content="5f&quot;&lt;&amp;&gt;">' in head


def test_nothing_half_written_is_left_behind(tmp_path: Path):
    write(tmp_path, [row(1, "end_to_end")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "store"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "No compressor is trained yet."),
        ([row(1, "classifier"), row(2, "end_to_end", "pending")], "Not finished: 1 of 2 trials are still to come."),
        ([row(1, "end_to_end", "diverged", error_message="nan")], "Every compressor that ran has failed"),
        ([row(1, "end_to_end")], "Only one trial is done: a point, not a front."),
        ([row(1, "end_to_end"), row(2, "end_to_end")], "nothing here speaks about universality"),
        ([row(1, "end_to_end"), row(2, "end_to_end", val_mse=0.2)], "1 run is worse than zero rate"),
    ],
)
def test_empty_and_partial_states_are_said_in_words(tmp_path: Path, rows: list[dict[str, Any]], said: str):
    page = write(tmp_path, rows)
    assert said in page
    assert len(payload(page)["trials"]["trial_id"]) == sum(r["status"] == "done" and "dim" in r for r in rows)


def test_what_the_script_draws_from_is_what_facts_say(tmp_path: Path):
    sha256 = Store(tmp_path / "store").put(PNG, ".png")
    encoder = {"parent_id": row(1, "end_to_end")["trial_id"], "parent_lambda_c": 0.01}
    rows = [
        row(1, "end_to_end", samples_sha256=sha256, originals_sha256=sha256),
        row(2, "end_to_end", samples_sha256="0" * 64, originals_sha256=sha256),  # artifact missing: no image, no crash
        row(3, "universal", **encoder),
    ]
    page = write(tmp_path, rows, curve=[(2, "train", "loss", 0.25, 1.0), (1, "train", "loss", 0.5, 1.0)])
    data = payload(page)
    assert data["trials"]["mse"] == pytest.approx([0.051, 0.052, 0.053])
    assert data["of"]["samples"] == [sha256, None, None]
    assert data["images"] == {sha256: base64.b64encode(PNG).decode()}
    # Axes that are all null are not offered.
    assert list(data["axes"]) == ["mse", "cross_entropy", "rate_bits", "bits_per_pixel"]
    assert data["curves"]["lines"][0]["values"] == {"train/loss": [[1, 2], [0.5, 0.25]]}
    floor = {"kind": "near-floor", "label": "k-means near-floor (not a bound)", "sweep": 0, "of": None}
    assert floor | {"rate": 0, "at": {"mse": 0.03}} in data["overlays"]
    # C = .9 is met by the universal trial (.7): 100 * (.053 - .051) / .051 = 3.9 %; one seed carries no interval.
    assert "<td>+0.00200</td><td>+3.9</td><td>none under 3 seeds</td><td>1 of 1</td>" in page
    assert "reference: the zero-rate point (0.1000, 2.0000 nats)" in page
    assert not re.search("no bits|without bits|rate 0", page)


def test_csv_holds_no_formula(tmp_path: Path):
    page = write(tmp_path, [row(1, "end_to_end", "failed", error_message='=HYPERLINK("evil")')])
    assert "\"'=HYPERLINK" in payload(page)["csv"]["failures"]


def test_images_stop_at_the_budget_of_an_attachment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "IMAGE_BYTES", 2 * len(PNG))
    rows = [row(n, "end_to_end", samples_sha256=f"{n:064x}", originals_sha256=f"{0:064x}") for n in (1, 2, 3)]
    write(tmp_path, rows)
    store = Store(tmp_path / "store")
    data = payload(report.render(dataclasses.replace(report.read(store, "s"), image=lambda sha256: PNG)))
    assert list(data["images"]) == [f"{0:064x}", f"{1:064x}"]


def cells(page: str, table: str) -> list[list[str]]:
    """Return the cells of the table whose file is called that, its headings first."""
    body = page[: page.index(f'data-csv="{table}"')].rpartition("<table>")[2]
    text = re.sub(r"</?sub>", "", body)
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", each) for each in rows]


def column(page: str, table: str, name: str) -> list[str]:
    head, *rows = cells(page, table)
    return [each[head.index(name)] for each in rows]


def test_collapsed_runs_are_in_no_mean(tmp_path: Path):
    costs = (0.05, 0.06, 0.4)  # of the third seed, worse than the best constant image
    rows = [row(1, "end_to_end", seed=seed) | {"mse": cost, "val_mse": cost} for seed, cost in enumerate(costs)]
    rows.append(row(2, "control", variant="random", mse=0.5, val_mse=0.5, mse_centroid=0.08))
    page = write(tmp_path, [each | {"trial_id": f"{n:064x}"} for n, each in enumerate(rows)])
    assert column(page, "encoders", "MSE") == ["0.50000", "0.05500"]
    assert column(page, "encoders", "seeds") == ["1 of 1", "2 of 3"]
    assert column(page, "encoders", "MSE of best decoder")[0] == "0.08000"


def test_further_terms_of_an_objective_tell_rows_apart(tmp_path: Path):
    edges = {"weights": [("edges", 1.0)]}
    bases = [row(n, "end_to_end") for n in (1, 2)] + [row(n, "end_to_end", **edges) for n in (3, 4)]
    rows = [*bases]
    for base in (bases[1], bases[3]):
        of = {"parent_id": base["trial_id"], "parent_lambda_c": 0.02}
        rows += [row(len(rows) + 1, "universal", **of), row(len(rows) + 2, "universal", **of)]
    for base in bases:
        base["lambda_c"] = 0.01 * (2 - int(base["trial_id"], 16) % 2)
    page = write(tmp_path, rows)
    assert {*column(page, "encoders", "further terms")} == {"", "edges 1"}
    for table in ("penalties-cross_entropy", "hypervolumes"):
        assert {*column(page, table, "encoder&#x27;s further terms")} == {"", "edges 1"}
    assert {*column(page, "penalties-cross_entropy", "further terms")} == {"", "edges 1"}


def test_failures_are_told_by_all_their_weights(tmp_path: Path):
    lost = row(2, "end_to_end", "failed", error_message="no")
    page = write(tmp_path, [row(1, "end_to_end"), lost | {"lambda_c": None, "lambda_p": 0.01}])
    assert column(page, "failures", "weights") == ["p 0.01"]


def test_the_trust_strip_names_every_code_and_the_axes_of_its_fronts(tmp_path: Path):
    commits = ["0123456789abcdef" * 2, "fedcba9876543210" * 2]
    page = write(tmp_path, [row(n, "end_to_end", git_sha=commits[n]) for n in (0, 1)])
    assert "0123456789, fedcba9876<" in page
    assert "2 of 2 points chosen for fronts over MSE and cross-entropy on the validation split" in page
