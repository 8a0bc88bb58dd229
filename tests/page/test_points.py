"""The sampled points over the image.

The places are checked against an answer that the test gives in the service's stead, and against the served model's own
where it can explain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.conftest import ExportOnce
from tests.integration.conftest import service_process
from tests.page.conftest import Open
from tests.page.test_images import best, digit_png, file

WIDTH, HEIGHT = 280, 280
LAYERS = [  # stage, block, groups, and the sides of the map of queries
    (3, 2, 3, 14),
    (3, 4, 3, 14),
    (4, 2, 6, 7),
]
SEEN = {"resize_height": 256, "resize_width": 256, "input_height": 224, "input_width": 224}
MARGIN = 16 / 256  # of each side that the centre crop leaves away


def layer(number: int, query: tuple[float, float] | None) -> dict[str, Any]:
    """A layer of four points a group, each of another weight, that differ by layer and by query."""
    stage, block, groups, side = LAYERS[number]
    shift = 0 if query is None else 7
    points = [
        [[30 + 50 * k + 10 * group + shift, 40 + 20 * number + 45 * k] for k in range(4)] for group in range(groups)
    ]
    cell = None
    if query is not None:
        column, row = (math.floor((value / 280 - MARGIN) / (1 - 2 * MARGIN) * side) for value in query)
        cell = {"row": row, "column": column}
    return {
        "layer": number, "name": f"stages.{stage - 1}.attns.{block - 1}", "stage": stage, "block": block,
        "query_rows": side, "query_columns": side, "query": cell,
        "groups": [{"points": places, "weights": [0.4, 0.3, 0.2, 0.1]} for places in points],
    }  # fmt: skip


def answer(query: tuple[float, float] | None) -> dict[str, Any]:
    return {
        "model": {"name": "dat_demo", "version": 1},
        "results": [
            {
                "index": 0, "filename": None, "width": WIDTH, "height": HEIGHT,
                "layers": [layer(number, query) for number in range(len(LAYERS))],
            }
        ],
        "request_id": "abc",
        "timings_ms": {"decode": 1, "preprocess": 1, "queue": 1, "inference": 1, "postprocess": 1, "total": 5},
    }  # fmt: skip


def query_of(request: Request) -> tuple[float, float] | None:
    given = parse_qs(urlsplit(request.url).query).get("query")
    if given is None:
        return None
    x, y = given[0].split(",")
    return float(x), float(y)


def explain(page: Page) -> None:
    """Answer in the service's stead as a model of three layers that sees the centre of the image."""
    described = [
        {
            "layer": number, "name": f"stages.{stage - 1}.attns.{block - 1}", "stage": stage, "block": block,
            "groups": groups, "points": 4, "query_rows": side, "query_columns": side,
        }
        for number, (stage, block, groups, side) in enumerate(LAYERS)
    ]  # fmt: skip

    def describe(route: Route) -> None:
        route.fulfill(json=route.fetch().json() | SEEN | {"explain": {"layers": described}})

    page.route("**/v1/models/*", describe)
    page.route("**/v1/explain*", lambda route: route.fulfill(json=answer(query_of(route.request))))


@pytest.fixture
def explained(open_page: Open) -> Page:
    """The page with the points of a drawn digit."""
    page = open_page(prepare=explain)
    expect(page.locator("#model")).to_contain_text("224 pixels")
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("circle.point")).to_have_count(12)
    return page


def circles(page: Page) -> list[tuple[float, float, float, str]]:
    """Place, radius and group of each circle, in pixels of the image as the browser lays them out on the screen."""
    return [
        tuple(circle)
        for circle in page.locator("#plate").evaluate(
            """plate => {
              const { left, top, width, height } = plate.querySelector("img").getBoundingClientRect();
              return [...plate.querySelectorAll("circle.point")].map((circle) => {
                const at = circle.getScreenCTM();
                const { cx, cy, r } = circle;
                const x = at.a * cx.baseVal.value + at.e - left;
                const y = at.d * cy.baseVal.value + at.f - top;
                const group = circle.getAttribute("class").match(/group-\\d/)[0];
                return [(x / width) * 280, (y / height) * 280, r.baseVal.value, group];
              });
            }"""
        )
    ]


def assert_shown(page: Page, wanted: dict[str, Any]) -> None:
    shown = sorted(circles(page), key=lambda circle: (circle[3], circle[1]))
    places = [
        (x, y, weight, f"group-{group}")
        for group, entry in enumerate(wanted["groups"])
        for (x, y), weight in zip(entry["points"], entry["weights"], strict=True)
    ]
    places.sort(key=lambda place: (place[3], place[1]))
    assert [circle[3] for circle in shown] == [place[3] for place in places]
    for (x, y, radius, _), (wanted_x, wanted_y, weight, _) in zip(shown, places, strict=True):
        assert (x, y) == pytest.approx((wanted_x, wanted_y), abs=0.5)
        assert (radius / shown[0][2]) ** 2 == pytest.approx(weight / places[0][2], rel=0.01)  # area is weight


def asks(page: Page, act: Callable[[], object]) -> tuple[float, float] | None:
    """Do something that asks for an explanation, and return the place that is asked about."""
    with page.expect_response("**/v1/explain*") as response:
        act()
    return query_of(response.value.request)


def test_points_lie_where_the_answer_says_and_weigh_by_area(explained: Page) -> None:
    assert_shown(explained, layer(0, None))
    expect(explained.locator("#points-say")).to_have_text(
        "Stage 3, block 2: 4 points in each of 3 groups, the average over all places."
    )


def test_slider_shows_each_layer_without_asking_again(explained: Page) -> None:
    asked: list[str] = []
    explained.on("request", lambda request: asked.append(request.url))
    slider = explained.get_by_role("slider", name="Layer")
    slider.focus()
    slider.press("ArrowRight")
    assert_shown(explained, layer(1, None))
    expect(slider).to_have_attribute("aria-valuetext", "Stage 3, block 4 (2 of 3)")
    slider.press("End")
    assert_shown(explained, layer(2, None))
    expect(explained.get_by_role("button", name="Next")).to_be_disabled()
    explained.get_by_role("button", name="Back").press("Enter")
    assert_shown(explained, layer(1, None))
    assert [url for url in asked if not url.startswith("blob:")] == []


def test_play_goes_through_the_layers_and_pauses(open_page: Open) -> None:
    page = open_page(prepare=lambda page: (explain(page), page.clock.install()))
    expect(page.locator("#model")).to_contain_text("224 pixels")
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("circle.point")).to_have_count(12)
    name = page.locator("#layer-name")
    page.get_by_role("button", name="Play").press("Enter")
    for number in (2, 3, 1):
        page.clock.run_for(900)
        expect(name).to_contain_text(f"({number} of 3)")
    page.get_by_role("button", name="Pause").press("Enter")
    page.clock.run_for(5000)
    expect(name).to_contain_text("(1 of 3)")


def test_group_can_be_left_out(explained: Page) -> None:
    explained.get_by_role("checkbox", name="2").uncheck()
    assert {circle[3] for circle in circles(explained)} == {"group-0", "group-2"}


def test_tap_asks_for_the_attention_from_that_place(explained: Page) -> None:
    overlay = explained.locator("#overlay")
    box = overlay.bounding_box()
    assert box is not None
    tap = {"x": 0.4 * box["width"], "y": 0.27 * box["height"]}
    asked = asks(explained, lambda: overlay.click(position=tap))  # type: ignore[arg-type]
    assert asked == pytest.approx((0.4 * WIDTH, 0.27 * HEIGHT), abs=1)
    expect(explained.locator("rect.cell")).to_have_count(1)
    assert_shown(explained, layer(0, asked))
    expect(explained.locator("#points-say")).to_contain_text("from row 4, column 6 of 14")
    assert asks(explained, explained.get_by_role("button", name="Average over all places").click) is None
    expect(explained.locator("rect.cell")).to_have_count(0)
    assert_shown(explained, layer(0, None))


def test_tap_outside_of_what_the_model_saw_is_told_and_not_asked(explained: Page) -> None:
    asked: list[str] = []
    explained.on("request", lambda request: asked.append(request.url))
    explained.locator("#overlay").click(position={"x": 3, "y": 3})
    expect(explained.locator("#points-say")).to_contain_text("The model did not see that place")
    assert asked == []


def test_keyboard_cursor_moves_by_cells_and_asks(explained: Page) -> None:
    overlay = explained.get_by_role("application", name="Query cursor over the image")
    overlay.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        overlay.press(key)
    expect(explained.locator("#points-announcement")).to_have_text("Row 11, column 9")
    side = WIDTH * (1 - 2 * MARGIN) / 14
    wanted = (WIDTH * MARGIN + 8.5 * side, HEIGHT * MARGIN + 10.5 * side)
    assert asks(explained, lambda: overlay.press("Enter")) == pytest.approx(wanted, abs=0.01)
    expect(explained.locator("#points-say")).to_contain_text("from row 11, column 9")
    assert asks(explained, lambda: overlay.press("Escape")) is None
    expect(explained.locator("#points-say")).to_contain_text("the average over all places")


def test_frame_shows_what_the_model_saw(explained: Page) -> None:
    box = explained.locator("path.frame").evaluate(
        "path => { const { x, y, width, height } = path.getBBox(); return [x, y, width, height]; }"
    )
    assert box == pytest.approx([17.5, 17.5, 245, 245])


def test_explanation_that_is_refused_is_told_and_the_predictions_stay(open_page: Open) -> None:
    page = open_page(prepare=explain)
    expect(page.locator("#model")).to_contain_text("224 pixels")
    problem = {"title": "Off", "status": 404, "detail": "Not exported with it.", "code": "explain_unavailable"}
    page.route(
        "**/v1/explain*",
        lambda route: route.fulfill(status=404, json=problem, content_type="application/problem+json"),
    )
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("#points-problem")).to_contain_text("Not exported with it.")
    expect(best(page)).to_have_text("3")


def test_points_are_hidden_where_the_model_has_none(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    expect(page.locator("#model")).to_contain_text("dat_demo")
    page.set_input_files("#file", file(digit_png(3)))
    expect(best(page)).to_have_text("3")
    expect(page.locator("#points")).to_be_hidden()
    assert "/v1/explain" not in asked


@pytest.fixture
def explaining(exported: ExportOnce) -> Iterator[str]:
    """The address of a service that explains."""
    with service_process(exported("dat_demo")) as process:
        yield f"http://127.0.0.1:{process.port}"


def test_points_are_the_served_models_own(open_page: Open, explaining: str) -> None:
    page = open_page(explaining)
    expect(page.locator("#model")).to_contain_text("dat_demo")
    page.set_input_files("#file", file(digit_png(3)))
    expect(best(page)).to_have_text("3")
    expect(page.locator("#points")).to_be_visible()
    headers = {"Content-Type": "image/png"}
    live = httpx.post(f"{explaining}/v1/explain", content=digit_png(3), headers=headers).json()["results"][0]
    for number, wanted in enumerate(live["layers"]):
        page.locator("#layer").fill(str(number))
        shown = {(round(x, 1), round(y, 1)) for x, y, _, _ in circles(page)}
        inside = {(round(x, 1), round(y, 1)) for entry in wanted["groups"] for x, y in entry["points"]}
        assert len(circles(page)) == sum(len(entry["points"]) for entry in wanted["groups"])
        assert len(shown & inside) > 0.9 * len(inside)  # the rest are rounded to the other side
    centre = page.locator("#overlay")
    assert asks(page, centre.click) == pytest.approx((140, 140), abs=1)
    expect(page.locator("rect.cell")).to_have_count(1)
