"""Take a picture of a page for the README. Needs `pip install playwright` and a Chromium.

Run: python -m tests.show.screenshot URL PICTURE [--dark] [--width 1180] [--height 1020] [--from SELECTOR] [--pin N ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.show.browser import ARGUMENTS, CHROMIUM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--height", type=int, default=1020)
    parser.add_argument("--from", dest="top", default="body", help="what is at the top of the picture")
    parser.add_argument("--pin", type=float, nargs="*", default=[], help="shares of the way from left to right")
    told = parser.parse_args()
    from playwright.sync_api import sync_playwright

    url = told.url if "://" in told.url else Path(told.url).resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        options = {"viewport": {"width": told.width, "height": told.height}, "device_scale_factor": 1.5}
        page = browser.new_page(**options, color_scheme="dark" if told.dark else "light")
        page.goto(url)
        page.wait_for_selector("html[data-ready=true]", state="attached")
        for share in told.pin:
            page.evaluate("(share) => togglePin(visible[Math.floor(share * visible.length)])", share)
        page.evaluate("(top) => scrollTo(0, top === 'body' ? 0 : document.querySelector(top).offsetTop - 24)", told.top)
        page.wait_for_timeout(2_500)
        told.picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=told.picture)
        browser.close()


if __name__ == "__main__":
    main()
