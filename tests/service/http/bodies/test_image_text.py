"""Images in JSON: every form in which clients write one, and what is said of all that is none."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from service.errors import MalformedRequest, TooLarge
from service.http.bodies.embeddings import read_embeddings
from service.http.bodies.image_text import check_structure, image_from, images_from
from tests.service.pictures import photo

PHOTO = photo("JPEG")
TEXT = base64.b64encode(PHOTO).decode()
URL = f"data:image/jpeg;base64,{TEXT}"

FORMS: dict[str, Any] = {
    "base64": TEXT,
    "base64 in lines": base64.encodebytes(PHOTO).decode(),
    "data URL": URL,
    "image": {"image": URL},
    "image in base64": {"image": TEXT},
    "image and b64": {"image": {"b64": TEXT}},
    "b64": {"b64": TEXT},
    "content": {"content": TEXT},
    "part of a chat": {"type": "image_url", "image_url": {"url": URL}},
    "part of a chat with its detail": {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
    "address alone": {"type": "image_url", "image_url": URL},
    "null beside it": {"image": TEXT, "text": None, "b64": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_image(form: str) -> None:
    value = FORMS[form]
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if key != "text"}
    assert image_from(value, "input[0]") == PHOTO
    assert images_from([value, TEXT], "input", 2) == [PHOTO, PHOTO]
    assert images_from(value, "input", 1) == [PHOTO]


NO_IMAGE = "input[1] is text, or no image. The model is a vision model"
WRONG: dict[str, tuple[Any, str]] = {
    "sentence": ("a cat, asleep", NO_IMAGE),
    "sentence in another script": ("ねこ", NO_IMAGE),
    "sentence with a colon": ("note: a cat", NO_IMAGE),
    "word that is base64 too": ("word", NO_IMAGE),
    "nothing": ("", NO_IMAGE),
    "token": (464, NO_IMAGE),
    "tokens": ([464, 3797], NO_IMAGE),
    "null": (None, NO_IMAGE),
    "part of a chat that is text": ({"type": "text", "text": "a cat"}, "input[1].text is text, or no image"),
    "address": ("https://example.com/a.jpg", "No image is fetched from an address"),
    "address in an object": ({"image_url": {"url": "http://example.com/a"}}, "input[1].image_url.url is not base64"),
    "bucket": ("s3://bucket/key", "No image is fetched from an address"),
    "data URL of text": ("data:text/plain,cat", "no ';base64' before its comma"),
    "image cut in the middle of a group": (TEXT[:401], "Was it cut short?"),
    "image with a character": (TEXT[:200] + "!" + TEXT[200:], "there is '!' at position 200"),
    "word that is said to be an image": ({"b64": "wor!"}, "input[1].b64 is not base64: there is '!' at position 3"),
    "nothing in an object": ({}, "input[1] has none of image, b64, content, image_url"),
    "two images in an object": ({"image": TEXT, "b64": TEXT}, "has image and b64 of"),
    "another key": ({"picture": TEXT}, "wrong at input[1].picture"),
    "number in an object": ({"image_url": {"url": 3}}, "wrong at input[1].image_url: "),
    "number too deep": ({"image": {"b64": 3}}, "wrong at input[1].image: "),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_with_its_place(wrong: str) -> None:
    value, message = WRONG[wrong]
    with pytest.raises(MalformedRequest) as raised:
        images_from([TEXT, value], "input", 4)
    assert message in str(raised.value)
    assert "input[1]" in str(raised.value)


def test_what_is_no_image_and_no_text_is_left_to_the_decoder() -> None:
    pdf = base64.b64encode(b"%PDF-1.7" + bytes(80)).decode()
    assert image_from(pdf, "input").startswith(b"%PDF")
    assert image_from({"image": ""}, "input") == b""


def test_most_images_are_those_of_every_request() -> None:
    assert len(images_from([TEXT] * 4, "input", 4)) == 4
    with pytest.raises(TooLarge, match="more than 3 images"):
        images_from([TEXT] * 4, "input", 3)
    with pytest.raises(MalformedRequest, match="input holds no image"):
        images_from([], "input", 3)


def test_structure_is_bounded_before_it_is_parsed_and_images_are_not_counted_in() -> None:
    largest = {"input": [{"type": "image_url", "image_url": {"url": URL, "detail": "auto"}}] * 64}
    check_structure(json.dumps(largest, indent=1).encode(), 64)
    for element in (b"1,", b"{},", b"[]," * 2, b'"",'):
        with pytest.raises(TooLarge, match="more parts"):
            read_embeddings(b'{"input":[' + element * 3000 + b"1]}", 64)


def test_a_chat_is_one_image() -> None:
    part = {"type": "image_url", "image_url": {"url": URL}}

    def read(*messages: Any) -> Any:
        return read_embeddings(json.dumps({"messages": list(messages)}).encode(), 4)

    (image,) = read({"role": "user", "content": [part]}).images
    assert image.data == PHOTO
    with pytest.raises(MalformedRequest, match="messages hold 2 images"):
        read({"role": "user", "content": [part, part]})
    with pytest.raises(MalformedRequest, match="messages hold 0 images"):
        read()
    with pytest.raises(MalformedRequest, match=r"messages\[0\]\.content\[1\]\.text is text"):
        read({"role": "user", "content": [part, {"type": "text", "text": "Represent it."}]})
    with pytest.raises(MalformedRequest, match=r"messages\[0\]\.content\[0\] is text"):
        read({"role": "user", "content": "a cat"})
    with pytest.raises(MalformedRequest, match=r"messages\[0\]\.content\[0\] is text"):
        read(7)
