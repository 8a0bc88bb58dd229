"""Base64 in every form that encoders give it, and what is said of text that is none."""

from __future__ import annotations

import base64
import contextlib
import urllib.parse
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.calls.base64_text import from_base64
from service.errors import MalformedRequest
from tests.service.conftest import Served
from tests.service.http.routes.v2.bodies import PATH, document, tensor
from tests.service.pictures import photo

PHOTO = photo("JPEG")


@st.composite
def encoded(draw: st.DrawFn, data: bytes) -> str:
    """The base64 of some bytes as one encoder or another makes it."""
    text = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]))(data).decode()
    if draw(st.booleans()):
        text = text.rstrip("=")
    if width := draw(st.sampled_from([0, 1, 3, 64, 76])):
        ends = st.sampled_from(["\n", "\r\n", "\r", " \n", "\n  ", "\r\n\t", " \r\n \r\n"])
        text = draw(ends).join(text[start : start + width] for start in range(0, len(text), width))
        text += draw(st.sampled_from(["", "\n", "\r\n"]))
    escaped = draw(st.sampled_from(["", "+/=", "+/=\r\n"]))
    text = "".join(urllib.parse.quote(char, safe="") if char in escaped else char for char in text)
    if draw(st.booleans()):
        text = text.replace("%2B", "%2b").replace("%0A", "%0a").replace("%3D", "%3d")
    scheme = st.sampled_from(
        ["", "data:;base64,", "data:image/png;base64,", "DATA:Image/JPEG;Base64,",
         "data:image/png;charset=utf-8;name=a%20b.png;base64,", "data:image/png; base64 ,"]
    )  # fmt: skip
    edges = st.text(" \t\r\n", max_size=3)
    return draw(edges) + draw(scheme) + text + draw(edges)


@given(st.data(), st.binary(max_size=300))
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_what_any_encoder_makes_of_bytes_are_those_bytes(drawn: st.DataObject, data: bytes) -> None:
    text = drawn.draw(encoded(data))
    assert from_base64(text, "images[0]") == data
    assert from_base64(bytearray(text.encode()), "Image 0") == data


@pytest.mark.parametrize("text", ["QUI", "QUI=", "QUI==", "QUI====", "QUI%3D\n"])
def test_padding_says_nothing_that_the_length_does_not(text: str) -> None:
    assert from_base64(text, "images[0]") == b"AB"


FORMS = {
    "padded": base64.b64encode(PHOTO).decode(),
    "MIME": base64.encodebytes(PHOTO).decode().replace("\n", "\r\n"),
    "URL-safe and unpadded": base64.urlsafe_b64encode(PHOTO).decode().rstrip("="),
    "data URL": "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode(),
    "escaped data URL": "data:image/jpeg;base64," + urllib.parse.quote(base64.b64encode(PHOTO), safe=""),
}


async def answers(served: Served, text: str) -> tuple[Any, Any]:
    """What `/v1` and `/v2` give for an image in base64."""
    v1 = (await served.http.post("/v1/features?outputs=logits", json={"images": [text]})).json()
    v2 = (await served.http.post(PATH, json=document(tensor(datatype="BYTES", shape=[1], data=[text])))).json()
    return v1["results"], v2["outputs"]


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_is_taken_alike_by_both_interfaces(served: Served, form: str) -> None:
    assert await answers(served, FORMS[form]) == await answers(served, FORMS["padded"])


WRONG = {
    "another character": ("QUJD!UJD", "there is '!' at position 4"),
    "a character outside ASCII": ("QUäJD", r"there is '\xe4' at position 2"),
    "a long dash": ("QUJ\u2014", r"there is '\u2014' at position 3"),
    "a control character": ("QU\0JD", r"there is '\x00' at position 2"),
    "behind the head of a data URL": ("data:image/png;base64,QU*D", "there is '*' at position 24"),
    "on another line": ("\r\nQUJD\r\nQU#D", "there is '#' at position 10"),
    "padding with more behind it": ("QQ==QUJD", "there is '=' at position 2"),
    "escaped padding with more behind it": ("QQ%3D%3DQUJD", "there is '%' at position 2"),
    "an escape of something else": ("QUJD%41UJD", "there is '%' at position 4"),
    "an escape that is cut off": ("QUJD%2", "there is '%' at position 4"),
    "a blank inside a line": ("QUJD UJD", "a blank inside a line, at position 4"),
    "a blank inside a later line": ("QUJD\n  QUJ QQ", "a blank inside a line, at position 10"),
    "several blanks inside a line": ("QUJD \t UJDQ", "a blank inside a line, at position 4"),
    "an escaped blank": ("QUJD%20QUJD", "a blank inside a line, at position 4"),
    "one character": ("Q", "its 1 characters are one too many or too few"),
    "cut short": ("QUJDR", "its 5 characters are one too many or too few"),
    "web address": ("https://example.com/a.jpg", "No image is fetched from an address"),
    "bucket": (" s3://bucket/key", "begins like an address, 's3:'"),
    "browser's own": ("blob:http://localhost/1", "No image is fetched"),
    "text as a data URL": ("data:image/svg+xml,%3Csvg%3E", "no ';base64' before its comma"),
    "data URL without a comma": ("data:image/png;base64", "data URL without a comma"),
    "Python's repr": ("b'QUJD'", 'there is "\'" at position 1'),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_with_its_place(wrong: str) -> None:
    text, message = WRONG[wrong]
    with pytest.raises(MalformedRequest) as raised:
        from_base64(text, "images[2]")
    assert str(raised.value).startswith("images[2] is ")
    assert message in str(raised.value)


async def test_both_interfaces_say_the_same_of_it(served: Served) -> None:
    v1 = await served.http.post("/v1/classify", json={"images": ["", "QUJD!UJD"]})
    v2 = await served.http.post(PATH, json=document(tensor(datatype="BYTES", shape=[2], data=["", "QUJD!UJD"])))
    said = "is not base64: there is '!' at position 4."
    assert v1.json()["detail"] == f"images[1] {said}"
    assert v2.json()["error"] == f"Element 1 of 'image' {said}"


@given(st.text("QUJDab+/-_=% \n2BF3d:,", max_size=40))
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_text_is_bytes_or_an_error_and_nothing_else(text: str) -> None:
    with contextlib.suppress(MalformedRequest):
        assert isinstance(from_base64(text, "images[0]"), bytes)
