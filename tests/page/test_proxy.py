"""The page and the interactive documentation behind nginx, with TLS and below a path."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import ExportOnce
from tests.integration.conftest import service_process
from tests.nginx import NOT_INSTALLED, PREFIX, PROGRAM, proxied
from tests.page.conftest import PATIENCE_MS, Open
from tests.page.test_drawing import draw_with_mouse
from tests.page.test_images import best, digit_png, file

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NOT_INSTALLED)


@pytest.fixture(scope="module", params=[False, True], ids=["prefix is taken off", "prefix is left on"])
def address(
    request: pytest.FixtureRequest, exported: ExportOnce, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The page's address, at nginx."""
    with (
        service_process(exported("dat_demo"), "--no-explain", "--root-path", PREFIX) as process,
        proxied(process.port, tmp_path_factory.mktemp("nginx"), prefix_is_left=request.param) as proxy,
    ):
        yield f"{proxy.url}/"


def test_page_classifies_files_and_drawings_below_the_path(open_page: Open, address: str) -> None:
    page = open_page(address, ignore_https_errors=True)
    page.set_input_files("#file", file(digit_png(3)))
    expect(best(page)).to_have_text("3")
    assert f"'{address}v1/classify?" in page.locator("#panel-curl code").inner_text()
    page.get_by_role("radio", name="Draw").check()
    draw_with_mouse(page, 7)
    expect(best(page)).to_have_text("7")


@pytest.fixture
def docs(browser: Browser, address: str) -> Iterator[tuple[Page, list[str]]]:
    """The interactive documentation, and all that it asks for."""
    with browser.new_context(ignore_https_errors=True) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}docs")
        yield page, asked


def test_documentation_loads_and_tries_requests_below_the_path(docs: tuple[Page, list[str]], address: str) -> None:
    page, asked = docs
    operation = page.locator(".opblock", has_text="/v1/models/{name}")
    expect(operation).to_be_visible()
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_placeholder("name").fill("dat_demo")
    with page.expect_response(f"{address}v1/models/dat_demo") as answered:
        operation.get_by_role("button", name="Execute").click()
    assert answered.value.status == 200
    addresses = [url for url in asked if not url.startswith("data:")]
    assert f"{address}openapi.json" in addresses
    assert {urlsplit(each).netloc for each in addresses} == {urlsplit(address).netloc}
    assert all(urlsplit(each).path.startswith(f"{PREFIX}/") for each in addresses)
