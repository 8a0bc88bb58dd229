"""The page in a real browser, on a live service of the demo model.

Every page that a test opens is watched: it may not throw, may not break its own security policy, and may not ask
anything of another origin.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.conftest import ExportOnce
from tests.integration.conftest import Process, service_process

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""
PATIENCE_MS = 20_000
Open = Callable[..., Page]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser; it ends with the package, since its event loop would stand in the way of other tests' loops."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: neither CHROMIUM names one nor is `chromium` on the PATH")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="package")
def demo(exported: ExportOnce) -> Iterator[Process]:
    """The demo, of which the page shows no points; tests of these answer in its stead, or serve it otherwise."""
    with service_process(exported("dat_demo"), "--no-explain") as running:
        yield running


@pytest.fixture(scope="package")
def origin(demo: Process) -> str:
    return f"http://127.0.0.1:{demo.port}"


@pytest.fixture
def open_page(browser: Browser, origin: str) -> Iterator[Open]:
    """Open the page in a context of its own; `prepare` is called with the page before it loads."""
    opened: list[tuple[BrowserContext, Page, list[str], list[str], str]] = []

    def open_one(at: str = origin, *, prepare: Callable[[Page], object] | None = None, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.add_init_script(WATCH_POLICY)
        wrong: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if is_own_error(message) else None)
        page.on("request", lambda request: asked.append(request.url))
        if prepare is not None:
            prepare(page)
        page.goto(at)
        opened.append((context, page, wrong, asked, at))
        return page

    yield open_one
    for context, page, wrong, asked, at in opened:
        violations = page.evaluate("window.violations")
        context.close()
        assert wrong == []
        assert violations == []
        assert {origin_of(url) for url in asked if not url.startswith(("blob:", "data:"))} == {origin_of(at)}


def is_own_error(message: Any) -> bool:
    """Whether the page's scripts, or its policy, are at fault; the browser notes every refused request itself."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@pytest.fixture
def page(open_page: Open) -> Page:
    return open_page()
