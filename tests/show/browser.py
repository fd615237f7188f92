"""A headless Chromium for tests of pages: an error it reports, or a request to anybody else, is a failure."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 120.0  # of tests on a busy machine; none of them is about speed
# SwiftShader draws 3-D where there is no GPU.
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Yield a browser; skip where Playwright or a Chromium is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install '.[test]'")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, allowed: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
    """Yield a page at ``url`` that has drawn itself; fail on console errors, page errors and requests to others.

    ``allowed``: hosts with port that may be asked. ``options`` are those of a browser context: viewport, colour scheme.
    """
    context = browser.new_context(**{"viewport": {"width": 1180, "height": 1000}} | options)
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    problems: list[str] = []
    page.on("console", lambda said: problems.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.on("request", lambda asked: None if _own(asked.url, allowed) else problems.append(f"request: {asked.url}"))
    page.goto(url)
    page.wait_for_selector("html[data-ready=true]", state="attached")
    try:
        yield page
        if problems:
            pytest.fail("\n".join(problems))
    finally:
        context.close()


def _own(url: str, allowed: tuple[str, ...]) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("file", "data", "blob") or parts.netloc in allowed


def until(ask: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait until something is so, as the page itself tells: ``page.url`` is only the last news of it.

    Playwright's ``wait_for_function`` needs an eval that the page's policy forbids.
    """
    end = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
