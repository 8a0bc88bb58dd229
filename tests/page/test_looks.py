"""Themes, narrow screens, the keyboard, and what a screen reader is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.test_images import best, digit_png, file
from tests.page.test_points import explain

CONTRASTS = """
() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = channels(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility() || node.closest(":disabled, .draw-hint, .skip, noscript, option")) continue;
    const [a, b] = [channels(getComputedStyle(node).color), ground(node)].map(luminance).sort((a, b) => b - a);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${node.tagName} ${node.className} ${node.textContent.slice(0, 30)}`);
  }
  return low;
}
"""


def show_everything(page: Page) -> None:
    expect(page.locator("#model")).to_contain_text("224 pixels")
    page.set_input_files("#file", file(digit_png(3)))
    expect(page.locator("circle.point")).to_have_count(12)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(open_page: Open, scheme: str) -> None:
    page = open_page(prepare=explain, color_scheme=scheme, reduced_motion="reduce")
    show_everything(page)
    assert page.evaluate(CONTRASTS) == []
    page.set_input_files("#file", file(b"text", "notes.txt", "text/plain"))
    expect(page.locator("#problem")).to_be_visible()
    assert page.evaluate(CONTRASTS) == []


def test_dark_scheme_is_dark(open_page: Open) -> None:
    grounds = [
        open_page(color_scheme=scheme).locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    light, dark = (sum(map(int, re.findall(r"\d+", ground))) for ground in grounds)
    assert light > 600
    assert dark < 100


@pytest.mark.parametrize("width", [320, 390, 768, 1600])
def test_page_never_scrolls_sideways(open_page: Open, width: int) -> None:
    page = open_page(prepare=explain, viewport={"width": width, "height": 700})
    show_everything(page)
    for name in ("Python", "TypeScript", "curl"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_input_files("#file", file(b"text", f"{'long' * 30}.txt", "text/plain"))
    expect(page.locator("#problem")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_can_be_done_with_the_keyboard_alone(open_page: Open) -> None:
    page = open_page(prepare=explain)
    expect(page.locator("#model")).to_contain_text("224 pixels")
    press = page.keyboard.press

    def tab_to(name: str) -> None:
        for _ in range(40):
            press("Tab")
            told = page.evaluate(
                "() => { const at = document.activeElement; return at.id || at.textContent.trim().slice(0, 40); }"
            )
            if told == name:
                return
        raise AssertionError(f"no {name} on the way")

    tab_to("sample")
    press("3")
    tab_to("draw-sample")
    press("Enter")
    expect(best(page)).to_have_text("3")
    expect(page.locator("circle.point")).to_have_count(12)
    tab_to("overlay")
    press("ArrowLeft")
    press("ArrowUp")
    press("Enter")
    expect(page.locator("rect.cell")).to_have_count(1)
    tab_to("layer")
    press("ArrowRight")
    expect(page.locator("#layer-name")).to_contain_text("2 of 3")
    tab_to("layer-play")
    press("Space")
    expect(page.locator("#layer-play")).to_have_attribute("aria-pressed", "true")
    press("Space")
    tab_to("query-clear")
    press("Enter")
    expect(page.locator("#overlay")).to_be_focused()
    tab_to("tab-curl")
    press("ArrowRight")
    expect(page.locator("#tab-python")).to_be_focused()


def test_screen_reader_is_told_the_parts_and_the_answer(page: Page) -> None:
    page.locator("#sample").select_option("3")
    page.get_by_role("button", name="Draw it").click()
    expect(page.get_by_role("status").filter(has_text="Most likely 3,")).to_have_count(1)
    expect(page.locator("body")).to_match_aria_snapshot(
        """
        - link "Skip to the results"
        - banner:
          - heading "DAT Serve" [level=1]
          - navigation "Documentation":
            - link "API reference"
        - main:
          - region "Image":
            - heading "Image" [level=2]
            - group "Where the image comes from":
              - radio "Draw" [checked]
              - radio "File"
              - radio "Camera"
            - img /Drawing area for a digit/
            - button "Undo"
            - button "Clear"
            - combobox "Sample"
            - button "Draw it"
            - paragraph:
              - link "Save it"
          - region "Predictions":
            - heading "Predictions" [level=2]
            - status: /Most likely 3/
            - list:
              - listitem: /3 \\d+\\.\\d%/
            - heading /Time on the server/ [level=3]
            - term: Decode
            - definition: /ms/
          - region "The same request":
            - heading "The same request" [level=2]
            - tablist "The same request":
              - tab "curl" [selected]
              - tab "Python"
              - tab "TypeScript"
            - tabpanel "curl":
              - region "Request in curl"
              - button "Copy"
        - contentinfo
        """
    )


@pytest.fixture
def proxied(origin: str) -> Iterator[str]:
    """The service below a path of another address, as a reverse proxy would put it."""
    port = int(origin.rsplit(":", 1)[1])

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            assert self.path.startswith("/some/where/"), self.path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            service = HTTPConnection("127.0.0.1", port, timeout=60)
            kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            service.request(self.command, self.path.removeprefix("/some/where"), body, kept)
            answer = service.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            service.close()

        do_GET = do_POST = forward  # noqa: N815  (the names that the base class calls)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/some/where/"
        server.shutdown()
        thread.join()


def test_page_works_below_a_path_of_a_reverse_proxy(open_page: Open, proxied: str) -> None:
    page = open_page(proxied)
    page.set_input_files("#file", file(digit_png(3)))
    expect(best(page)).to_have_text("3")
    expect(page.locator("#panel-curl code")).to_contain_text(f"{proxied}v1/classify?top_k=5")
