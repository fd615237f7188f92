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
        ([row(1, "end_to_end"), row(2, "end_to_end", val_mse=0.2)], "1 run is worse than the best constant image"),
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
    assert data["trials"]["samples"] == [sha256, None, None]
    assert data["images"] == {sha256: base64.b64encode(PNG).decode()}
    # Axes that are all null are not offered.
    assert list(data["axes"]) == ["mse", "cross_entropy", "rate_bits", "bits_per_pixel"]
    assert data["curves"]["lines"][0]["values"] == {"train/loss": [[1, 2], [0.5, 0.25]]}
    floor = {"kind": "near-floor", "label": "k-means near-floor (not a bound)", "sweep": 0, "of": None}
    assert floor | {"rate": 0, "at": {"mse": 0.03}} in data["overlays"]
    # C = .9 is met by the universal trial (.7): 100 * (.053 - .051) / .051 = 3.9 %; one seed carries no interval.
    assert "<td>+0.00200</td><td>+3.9</td><td>none under 3 seeds</td><td>1 of 1</td>" in page
    assert "reference (0.1000, 2.0000 nats)" in page


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
