"""The report of 10,000 trials as a reader gets it: seconds to write, megabytes, and how it feels in a browser.

Headless Chromium as it is installed, without a GPU. ``drawn`` is from the navigation's
start to the frontier being drawn (the page sets ``data-ready``); a filter's time is from the click to the second frame
after the redraw (the page counts redraws in ``data-drawn``); medians of several.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import tables
from urc_sweep.show.report import pack

ARGUMENTS = ("--no-sandbox",)
ROUNDS, CLICKS = 3, 10
FILTERS = "#filters input[type=checkbox], #filters button"
WAIT = """async () => {
  while (document.documentElement.dataset.ready !== "true") {
    if (performance.now() > 60000) throw new Error("the page is not drawn after a minute");
    await new Promise(requestAnimationFrame);
  }
  return performance.now();
}"""
CLICK = """async ([selector, index]) => {
  const root = document.documentElement, before = Number(root.dataset.drawn);
  const began = performance.now();
  document.querySelectorAll(selector)[index].click();
  while (Number(root.dataset.drawn) === before) {
    if (performance.now() - began > 20000) throw new Error(`no redraw after filter ${index}`);
    await new Promise(requestAnimationFrame);
  }
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


def measure(quick: bool) -> Iterator[tuple[str, str]]:
    """Yield what was measured and its value."""
    with tempfile.TemporaryDirectory(prefix="urc-bench-") as name:
        folder = Path(name)
        count = tables.prepare(folder, quick)
        tables.run_python(f"from tests.benchmarks.tables import publish; publish({str(folder / 'store')!r})")
        yield from measure_store(folder / "store", f"{count:,} trials", 1 if quick else ROUNDS, folder / "report.html")


def bare(page: str) -> int:
    """Return how long a page would be without its images."""
    found = re.search(r'id="data">([A-Za-z0-9+/=]*)<', page)
    assert found is not None
    data = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return len(page) - len(found[1]) + len(pack(data | {"images": {}}))


def measure_store(root: Path, size: str, rounds: int, page: Path) -> Iterator[tuple[str, str]]:
    """Yield the same of a store that is there, its sweep ``many``."""
    runs = [tables.run("report", "many", "--store", str(root), "-o", str(page)) for _ in range(rounds)]
    seconds = statistics.median(run.seconds for run in runs)
    yield f"{size}: report, the whole command", f"{seconds:.2f} s, {runs[0].peak_mb:.0f} MB of memory"
    whole, without = page.stat().st_size / 1e6, bare(page.read_text()) / 1e6
    yield f"{size}: its file", f"{whole:.1f} MB, {without:.1f} MB without images"
    chromium = shutil.which("chromium")
    if chromium is None:
        yield f"{size}: in a browser", "not measured: no chromium here"
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        ready, clicks, filters = [], list[float](), 0
        for _ in range(rounds):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            problems: list[str] = []
            tab.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
            tab.goto(page.as_uri(), wait_until="commit")
            ready.append(float(tab.evaluate(WAIT)))
            filters = tab.locator(FILTERS).count()
            # Each filter off and on again, so that most clicks redraw all but a few of the points.
            order = [n // 2 % filters for n in range(CLICKS if filters else 0)]
            clicks += [float(tab.evaluate(CLICK, [FILTERS, index])) for index in order]
            if problems:
                raise RuntimeError(problems[0])
            tab.close()
        browser.close()
    yield f"{size}: opened, the frontier drawn", f"{statistics.median(ready):.0f} ms"
    told = f"{statistics.median(clicks):.0f} ms, at most {max(clicks):.0f} ms" if clicks else "not measured: no filter"
    yield f"{size}: a filter clicked, redrawn ({filters} filters)", told
