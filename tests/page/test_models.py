"""A service of several models: the page asks the one that is chosen, and offers no choice where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect

from service.model.directory import ModelDirectory, open_model
from tests.integration.conftest import service_thread
from tests.page.conftest import Open
from tests.page.test_code import run_code, shown_code
from tests.page.test_images import digit_png, file
from tests.service import tiny_model
from tests.service.conftest import model as model
from tests.service.conftest import repository as repository

SIZE = 2 * tiny_model.SIZE


@pytest.fixture(scope="module")
def two(model: ModelDirectory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("large")
    large = open_model(tiny_model.write(root, name="large", version=1, size=SIZE, seed=8, explain=False))
    with service_thread(model, others=[large]) as running:
        yield f"http://127.0.0.1:{running.port}"


def test_one_model_is_no_choice(page: Page) -> None:
    expect(page.locator("#model")).to_contain_text("dat_demo")
    expect(page.locator("#models")).to_be_hidden()


def test_chosen_model_is_asked_and_described(open_page: Open, two: str, tmp_path: Path) -> None:
    page = open_page(two)
    choice = page.get_by_label("Model", exact=True)
    expect(page.locator("#model")).to_contain_text("tiny · version 3 · 7 classes · 56 ")
    assert choice.locator("option").all_inner_texts() == ["tiny", "large"]
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("circle.point")).not_to_have_count(0)
    with page.expect_response("**/v1/classify*") as answered:
        choice.select_option("large")
    assert parse_qs(urlsplit(answered.value.url).query) == {"top_k": ["5"], "model": ["large"]}
    predictions = answered.value.json()["results"][0]["predictions"]
    expect(page.locator("#model")).to_contain_text(f"large · version 1 · 7 classes · {SIZE} ")
    expect(page.locator("#predictions .label")).to_have_text([each["label"] for each in predictions])
    expect(page.locator("#points")).to_be_hidden()  # it cannot say where it looked
    (tmp_path / "digit.png").write_bytes(digit_png(3))
    for language in ("Python", "TypeScript"):
        ran = run_code(language, shown_code(page, language), tmp_path)
        assert [score for _, score in ran] == pytest.approx([each["score"] for each in predictions], abs=1e-3)
    with page.expect_request("**/v1/explain*") as asked:
        choice.select_option("tiny")
    assert parse_qs(urlsplit(asked.value.url).query) == {"model": ["tiny"]}
    expect(page.locator("#points")).to_be_visible()
