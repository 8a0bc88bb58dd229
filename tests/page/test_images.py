"""Images that are chosen, dropped, pasted and photographed, and what is shown of them."""

from __future__ import annotations

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect

from tests.integration.strokes import draw
from tests.page.conftest import Open


def digit_png(digit: int) -> bytes:
    file = io.BytesIO()
    drawing = draw(digit, width=22, dark_on_light=True, random=np.random.default_rng(1))
    Image.fromarray(drawing).save(file, "PNG")
    return file.getvalue()


def file(data: bytes, name: str = "digit.png", media_type: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": media_type, "buffer": data}


def best(page: Page) -> object:
    return page.locator("#predictions li:first-child .label")


def test_chosen_file_is_classified_as_the_service_does(page: Page, origin: str) -> None:
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("#predictions li")).to_have_count(5)
    answer = httpx.post(f"{origin}/v1/classify", content=digit_png(3), headers={"Content-Type": "image/png"}).json()
    wanted = answer["results"][0]["predictions"]
    assert wanted[0]["label"] == "3"
    assert page.locator("#predictions .label").all_inner_texts() == [entry["label"] for entry in wanted]
    assert page.locator("#predictions .number").all_inner_texts() == [f"{entry['score']:.1%}" for entry in wanted]
    widths = page.locator("#predictions .fill").evaluate_all("bars => bars.map(bar => bar.offsetWidth)")
    track = page.locator("#predictions .track").first.evaluate("track => track.offsetWidth")
    assert widths[0] == pytest.approx(wanted[0]["score"] * track, abs=1.5)
    expect(page.locator("#announcement")).to_contain_text("Most likely 3,")
    expect(page.locator("#preview")).to_be_visible()


def test_timings_of_the_answer_are_shown_and_stacked(open_page: Open) -> None:
    timings = {"decode": 10, "preprocess": 20, "queue": 5, "inference": 40, "postprocess": 1, "total": 100}

    def change(page: Page) -> None:
        page.route("**/v1/classify*", lambda route: route.fulfill(json=route.fetch().json() | {"timings_ms": timings}))

    page = open_page(prepare=change)
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("#total")).to_have_text("100.0 ms")
    assert page.locator("#timing-list dd").all_inner_texts() == ["10.0 ms", "20.0 ms", "5.00 ms", "40.0 ms", "25.0 ms"]
    widths = page.locator("#timing-bar span").evaluate_all("parts => parts.map(part => part.offsetWidth)")
    assert [width / sum(widths) for width in widths] == pytest.approx([0.1, 0.2, 0.05, 0.4, 0.25], abs=0.01)


def test_dropped_file_is_classified(page: Page) -> None:
    data = base64.b64encode(digit_png(7)).decode()
    transfer = page.evaluate_handle(
        """data => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "seven.png", { type: "image/png" }));
          return transfer;
        }""",
        data,
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.locator("body")).to_have_class("dropping")
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.locator("body")).not_to_have_class("dropping")
    expect(best(page)).to_have_text("7")
    expect(page.locator("#image-note")).to_have_text("seven.png")


def test_pasted_image_is_classified(open_page: Open) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async data => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const blob = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(digit_png(4)).decode(),
    )
    page.keyboard.press("Control+V")
    expect(best(page)).to_have_text("4")


def test_text_file_shows_the_services_error_and_the_next_image_takes_it_away(page: Page) -> None:
    page.set_input_files("#file", file(b"not an image", "notes.txt", "text/plain"))
    problem = page.get_by_role("alert").filter(has_text="Images cannot be used")
    expect(problem).to_contain_text("Not an image in a format that is taken")
    expect(problem.get_by_role("listitem")).to_contain_text("unsupported_format")
    expect(problem).to_contain_text("422 · bad_image · request ")
    expect(page.locator("#predictions li")).to_have_count(0)
    expect(page.locator("#no-preview")).to_be_visible()
    page.set_input_files("#file", file(digit_png(3)))
    expect(best(page)).to_have_text("3")
    expect(problem).to_be_hidden()


def test_overload_can_be_tried_again(open_page: Open) -> None:
    page = open_page()
    problem = {"title": "Full", "status": 429, "detail": "The queue is full.", "code": "full", "request_id": "abc"}
    page.route(
        "**/v1/classify*",
        lambda route: route.fulfill(
            status=429, json=problem, headers={"Retry-After": "2"}, content_type="application/problem+json"
        ),
        times=1,
    )
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("#problem")).to_contain_text("The server asks to wait 2 s.")
    page.get_by_role("button", name="Try again").click()
    expect(best(page)).to_have_text("3")


def test_answer_that_never_comes_is_said_so(page: Page) -> None:
    page.route("**/v1/classify*", lambda route: route.abort())
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("#problem")).to_contain_text("The server could not be reached")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


@pytest.mark.parametrize(("orientation", "sent"), [(1, False), (6, True), (3, True)])
def test_photo_that_lies_is_sent_upright(page: Page, orientation: int, sent: bool) -> None:
    """A seven that the camera stored turned, with a note of how to turn it back."""
    turns = {1: 0, 6: 90, 3: 180}  # what a viewer turns clockwise
    seven = Image.open(io.BytesIO(digit_png(7))).convert("RGB")
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    seven.rotate(turns[orientation], expand=True).save(stored, "JPEG", exif=exif)
    page.set_input_files("#file", file(stored.getvalue(), "seven.jpg", "image/jpeg"))
    expect(best(page)).to_have_text("7")
    expect(page.locator("#image-note")).to_have_text("seven-upright.jpg · Turned upright." if sent else "seven.jpg")


def test_broken_photo_that_lies_is_left_to_the_service(page: Page) -> None:
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(stored, "JPEG", exif=exif)
    head = stored.getvalue()[: stored.getvalue().index(b"\xff\xdb")]  # all that comes before the picture
    page.set_input_files("#file", file(head, "broken.jpg", "image/jpeg"))
    expect(page.locator("#problem")).to_contain_text("bad_image")
    expect(page.locator("#image-note")).to_have_text("broken.jpg")


def test_camera_takes_a_photo(page: Page) -> None:
    page.get_by_role("radio", name="Camera").check()
    page.get_by_role("button", name="Start the camera").click()
    page.get_by_role("button", name="Take the photo").click()
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("#image-note")).to_have_text("photo.jpg")
    assert page.locator("#preview").evaluate("image => image.naturalWidth") > 0
    assert page.locator("#video").evaluate("video => video.srcObject") is None


def test_camera_that_is_refused_is_said_so(open_page: Open) -> None:
    refuse = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); };"
    page = open_page(prepare=lambda page: page.add_init_script(refuse))
    page.get_by_role("radio", name="Camera").check()
    page.get_by_role("button", name="Start the camera").click()
    expect(page.locator("#camera-error")).to_have_text("The browser was not allowed to use the camera.")
    expect(page.get_by_role("button", name="Start the camera")).to_be_enabled()


@pytest.mark.parametrize(("has_touch", "offered"), [(False, False), (True, True)])
def test_without_a_live_camera_phones_are_offered_their_camera_app(
    open_page: Open, has_touch: bool, offered: bool
) -> None:
    none = "Object.defineProperty(navigator, 'mediaDevices', { value: undefined });"
    page = open_page(prepare=lambda page: page.add_init_script(none), has_touch=has_touch, is_mobile=has_touch)
    expect(page.get_by_text("Draw", exact=True)).to_be_visible()
    camera = page.get_by_text("Camera", exact=True)
    expect(camera).to_be_visible(visible=offered)
    if offered:
        page.get_by_role("radio", name="Camera").check()
        expect(page.get_by_text("Use the camera app")).to_be_visible()
        page.set_input_files("#capture", file(digit_png(3)))
        expect(best(page)).to_have_text("3")
