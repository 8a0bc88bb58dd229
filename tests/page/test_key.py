"""A service that wants an API key: the page asks for it when it is refused, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.api_keys import entry_of
from tests.conftest import ExportOnce
from tests.integration.conftest import service_process
from tests.page.conftest import Open
from tests.page.test_code import assert_same, run_code, shown_code
from tests.page.test_images import best, digit_png, file

KEY = "correct-horse"


@pytest.fixture(scope="module")
def locked(exported: ExportOnce) -> Iterator[str]:
    with service_process(exported("dat_demo"), "--no-explain", "--api-keys", entry_of(KEY)) as running:
        yield f"http://127.0.0.1:{running.port}"


def test_service_without_keys_is_asked_for_none(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#model")).to_contain_text("dat_demo")
    expect(page.get_by_label("Key", exact=True)).to_be_hidden()


def test_key_is_asked_for_kept_for_the_tab_alone_and_forgotten(open_page: Open, locked: str) -> None:
    page = open_page(locked)
    field = page.get_by_label("Key", exact=True)
    expect(field).to_be_visible()
    expect(page.locator("#key-note")).to_contain_text("session storage, gone when the tab is closed")
    field.fill("wrong")
    field.press("Enter")
    expect(page.get_by_text("The server does not take this key.")).to_be_visible()
    expect(field).to_be_focused()
    field.fill(KEY)
    field.press("Enter")
    expect(field).to_be_hidden()
    expect(page.locator("#results")).to_be_focused()
    page.set_input_files("#file", file(digit_png(3)))
    expect(best(page)).to_have_text("3")

    page.reload()
    expect(page.locator("#model")).to_contain_text("dat_demo")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert KEY not in page.content()
    page.get_by_role("button", name="Forget the API key").click()
    expect(field).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_image_that_was_refused_for_want_of_a_key_is_classified_with_it(open_page: Open, locked: str) -> None:
    page = open_page(locked)
    page.set_input_files("#file", file(digit_png(3)))
    field = page.get_by_label("Key", exact=True)
    expect(field).to_be_focused()
    field.fill(KEY)
    field.press("Enter")
    expect(best(page)).to_have_text("3")


@pytest.mark.parametrize("language", ["curl", "Python", "TypeScript"])
def test_code_takes_the_key_from_the_environment(open_page: Open, locked: str, tmp_path: Path, language: str) -> None:
    page = open_page(locked)
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    page.set_input_files("#file", file(digit_png(3)))
    expect(best(page)).to_have_text("3")
    (tmp_path / "digit.png").write_bytes(digit_png(3))
    assert_same(page, run_code(language, shown_code(page, language), tmp_path, API_KEY=KEY))
