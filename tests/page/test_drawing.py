"""Digits drawn by mouse and by finger, and samples for those who use neither."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.integration.strokes import STROKES
from tests.page.conftest import Open
from tests.page.test_images import best


def draw_with_mouse(page: Page, digit: int) -> None:
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    for stroke in STROKES[digit]:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=2)
        page.mouse.up()


@pytest.mark.parametrize("digit", range(10))
def test_digit_drawn_with_the_mouse_is_read(page: Page, digit: int) -> None:
    expect(page.locator("#canvas")).to_be_visible()
    draw_with_mouse(page, digit)
    expect(best(page)).to_have_text(str(digit))


def test_finger_draws_and_does_not_scroll(open_page: Open) -> None:
    page = open_page(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    expect(page.locator("#canvas")).to_be_visible()
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    devices = page.context.new_cdp_session(page)
    for stroke in STROKES[7]:
        for index, (x, y) in enumerate(stroke):
            place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            kind = "touchStart" if index == 0 else "touchMove"
            devices.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
        devices.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(best(page)).to_have_text("7")
    assert page.evaluate("scrollY") == 0


def test_undo_and_clear_take_strokes_and_their_answer_away(page: Page) -> None:
    expect(page.locator("#canvas")).to_be_visible()
    draw_with_mouse(page, 9)  # a ring and a tail
    expect(best(page)).to_have_text("9")
    page.get_by_role("button", name="Undo").click()
    expect(best(page)).to_have_text("0")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#predictions li")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    draw_with_mouse(page, 1)
    expect(best(page)).to_have_text("1")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#predictions li")).to_have_count(0)


@pytest.mark.parametrize("digit", range(10))
def test_sample_of_each_digit_is_read(page: Page, digit: int) -> None:
    page.locator("#sample").select_option(str(digit))
    page.get_by_role("button", name="Draw it").click()
    expect(best(page)).to_have_text(str(digit))


def test_drawing_is_kept_while_another_source_is_shown(page: Page) -> None:
    page.get_by_role("button", name="Draw it").click()
    expect(best(page)).to_have_text("0")
    page.get_by_role("radio", name="File").check()
    expect(page.locator("#canvas")).to_be_hidden()
    page.get_by_role("radio", name="Draw").check()
    expect(page.locator("#canvas")).to_be_visible()
    expect(best(page)).to_have_text("0")


def test_model_that_knows_no_drawings_offers_none(open_page: Open) -> None:
    def change(page: Page) -> None:
        page.route("**/v1/models/*", lambda route: route.fulfill(json=route.fetch().json() | {"variant": "dat_tiny"}))

    page = open_page(prepare=change)
    expect(page.locator("#model")).to_contain_text("10 classes")
    expect(page.get_by_text("Draw", exact=True)).to_be_hidden()
    expect(page.get_by_text("Choose an image")).to_be_visible()
