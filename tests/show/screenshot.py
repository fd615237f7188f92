"""Take the README's picture of a report. Needs `pip install playwright` and a Chromium.

Run: python -m tests.show.screenshot results/sweeps/quickstart/report.html results/reference/quickstart.png [CHROMIUM]
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(report: str, picture: str, chromium: str = "/usr/bin/chromium") -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1020}, device_scale_factor=1.5)
        page.goto(Path(report).resolve().as_uri())
        page.wait_for_selector(".plotly path.point")
        page.evaluate("window.scrollTo(0, document.querySelector('h2').offsetTop - 24)")
        page.wait_for_timeout(800)
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
