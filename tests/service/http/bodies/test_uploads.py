"""The three forms of a body and their common limits, against the application."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from service.model.directory import ModelDirectory
from tests.service.conftest import Served, serving
from tests.service.pictures import photo

URL = "/v1/classify"
PHOTO = photo("JPEG")
BOUNDARY = "boundary"


def multipart(*parts: tuple[str, bytes], end: bool = True) -> dict[str, Any]:
    """A multipart body of (headers, data), as an httpx request's arguments."""
    body = b"".join(f"--{BOUNDARY}\r\n{headers}\r\n\r\n".encode() + data + b"\r\n" for headers, data in parts)
    return {
        "content": body + (f"--{BOUNDARY}--\r\n".encode() if end else b""),
        "headers": {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
    }


def part(name: str = "image", filename: str | None = None) -> str:
    suffix = f'; filename="{filename}"' if filename is not None else ""
    return f'Content-Disposition: form-data; name="{name}"{suffix}'


def raw(data: bytes, content_type: str = "image/jpeg") -> dict[str, Any]:
    return {"content": data, "headers": {"Content-Type": content_type}}


def as_json(*images: bytes) -> dict[str, Any]:
    return {"json": {"images": [base64.b64encode(image).decode() for image in images]}}


FORMS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "raw": raw,
    "multipart": lambda data: multipart((part(filename="a.jpg"), data)),
    "json": as_json,
}


async def refused(served: Served, arguments: dict[str, Any], status: int, code: str) -> dict[str, Any]:
    response = await served.http.post(URL, **arguments)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize("form", FORMS)
async def test_all_forms_of_a_body_give_the_same_answer(served: Served, form: str) -> None:
    expected = (await served.http.post(URL, **raw(PHOTO))).json()["results"][0]["predictions"]
    response = await served.http.post(URL, **FORMS[form](PHOTO))
    assert response.status_code == 200, response.text
    assert response.json()["results"][0]["predictions"] == expected


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "image/jpg", "IMAGE/JPEG", "image/*; q=1", "application/octet-stream; charset=binary",
     "binary/octet-stream"],
)  # fmt: skip
async def test_raw_body_is_decoded_by_its_content_whatever_its_type_says(served: Served, content_type: str) -> None:
    assert (await served.http.post(URL, **raw(PHOTO, content_type))).status_code == 200


async def test_multipart_parts_keep_their_order_and_file_names(served: Served) -> None:
    body = multipart((part(filename="ä b.jpg"), PHOTO), (part(), photo("PNG")), (part(filename=""), PHOTO))
    results = (await served.http.post(URL, **body)).json()["results"]
    assert [(result["index"], result["filename"]) for result in results] == [(0, "ä b.jpg"), (1, None), (2, "")]


FIELDS = ["image", "images", "file", "files", "image[]", "images[]", "file[]", "files[]", "image[0]", "files[12]"]


async def test_fields_of_every_usual_name_are_images(served: Served) -> None:
    body = multipart(*((part(name, f"{index}.jpg"), PHOTO) for index, name in enumerate(FIELDS)))
    results = (await served.http.post(URL, **body)).json()["results"]
    assert [result["filename"] for result in results] == [f"{index}.jpg" for index in range(len(FIELDS))]


async def test_file_field_that_was_left_empty_is_no_image(served: Served) -> None:
    body = multipart((part("file", ""), b""), (part("file", "a.jpg"), PHOTO), (part("file", ""), b""))
    results = (await served.http.post(URL, **body)).json()["results"]
    assert [(result["index"], result["filename"]) for result in results] == [(0, "a.jpg")]


async def test_part_in_base64_is_the_file_that_it_stands_for(served: Served) -> None:
    head = part(filename="a.jpg") + "\r\nContent-Transfer-Encoding: Base64"
    response = await served.http.post(URL, **multipart((head, base64.encodebytes(PHOTO))))
    assert response.json()["results"][0]["filename"] == "a.jpg"
    problem = await refused(served, multipart((part(), PHOTO), (head, b"QUJ!")), 400, "malformed_request")
    assert problem["detail"] == "Image 1 is not base64: there is '!' at position 3."


async def test_multipart_arriving_byte_by_byte_is_read_all_the_same(served: Served) -> None:
    body = multipart((part(filename="a.png"), photo("PNG", width=8, height=8)))

    async def trickle() -> AsyncIterator[bytes]:
        for byte in body["content"]:
            yield bytes([byte])

    response = await served.http.post(URL, content=trickle(), headers=body["headers"])
    assert response.status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "video/mp4", "application/x-npz", ""])
async def test_other_content_types_are_415(served: Served, content_type: str) -> None:
    problem = await refused(served, raw(PHOTO, content_type), 415, "unsupported_media_type")
    assert "multipart/form-data" in problem["detail"]


async def test_type_that_curl_gives_by_itself_is_answered_with_the_option_that_changes_it(served: Served) -> None:
    problem = await refused(served, raw(PHOTO, "application/x-www-form-urlencoded"), 415, "unsupported_media_type")
    assert "-H 'Content-Type: application/octet-stream'" in problem["detail"]


@pytest.mark.parametrize(
    "text",
    [base64.b64encode(PHOTO), base64.b64encode(photo("TIFF")), b"data:image/jpeg;base64," + base64.b64encode(PHOTO)],
    ids=["JPEG", "TIFF", "data URL"],
)
@pytest.mark.parametrize("form", ["raw", "multipart"])
async def test_base64_in_place_of_a_file_is_recognised_and_said(served: Served, form: str, text: bytes) -> None:
    problem = await refused(served, FORMS[form](text), 422, "bad_image")
    assert "base64, which is read as such in JSON only" in problem["errors"][0]["detail"]


@pytest.mark.parametrize("text", [b"text", b"<svg/>", b"data:,a", base64.b64encode(b"no image at all"), b"\xff" * 99])
async def test_what_is_no_image_either_way_is_not_called_base64(served: Served, text: bytes) -> None:
    problem = await refused(served, raw(text), 422, "bad_image")
    assert "base64" not in problem["errors"][0]["detail"]


async def test_json_may_begin_with_a_byte_order_mark(served: Served) -> None:
    text = json.dumps(as_json(PHOTO)["json"]).encode("utf-8-sig")
    assert (await served.http.post(URL, **raw(text, "application/json"))).status_code == 200


async def test_content_coding_is_415(served: Served) -> None:
    arguments = {"content": PHOTO, "headers": {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}}
    await refused(served, arguments, 415, "unsupported_media_type")


MALFORMED = {
    "empty raw body": (raw(b""), "empty"),
    "boundary not given": (raw(PHOTO, "multipart/form-data"), "boundary"),
    "boundary too long": (raw(PHOTO, f"multipart/form-data; boundary={'b' * 400}"), "boundary"),
    "not multipart": (raw(PHOTO, "multipart/form-data; boundary=x"), "multipart"),
    "multipart without its end": (multipart((part(), PHOTO), end=False), "closing boundary"),
    "multipart without parts": (multipart(), "multipart"),
    "part of another name": (
        multipart((part("photo", "a.jpg"), PHOTO)),
        "'photo'. Files are sent as fields named image",
    ),
    "parameter as a field": (multipart((part(), PHOTO), (part("top_k"), b"5")), "'top_k'. Files are sent as fields"),
    "file field left empty": (multipart((part(filename=""), b"")), "left empty"),
    "part without a name": (multipart(("Content-Disposition: form-data", PHOTO)), "name"),
    "part without a disposition": (multipart(("Content-Type: image/jpeg", PHOTO)), "name"),
    "json of no images": (as_json(), "no images"),
    "not json": ({"content": b"{images", "headers": {"Content-Type": "application/json"}}, "JSON"),
    "json of another shape": ({"json": [1, 2]}, "JSON"),
    "json without images": ({"json": {}}, "images"),
    "json with another key": ({"json": {"images": [""], "image": ""}}, "image"),
    "json with a number": ({"json": {"images": ["", 5]}}, "images[1]"),
    "json with null": ({"json": {"images": None}}, "images"),
    "bad base64": ({"json": {"images": [base64.b64encode(PHOTO).decode(), "?not base64?"]}}, "images[1]"),
    "json under the name of a field": ({"json": {"image": "QUJD"}}, """'image'. A body in JSON is {"images": """),
    "json as TensorFlow Serving has it": ({"json": {"instances": [{"b64": "QUJD"}]}}, "'instances'. A body in JSON is"),
    "json with an object": ({"json": {"images": [{"b64": "QUJD"}]}}, "images[0]: Input should be a valid string"),
    "json with a string": ({"json": {"images": "QUJD"}}, "images: Input should be a valid array"),
    "json with a parameter": ({"json": {"images": ["QUJD"], "top_k": 5}}, "'top_k'. A body in JSON is"),
    "json with its key twice": (
        {"content": b'{"images": ["QUJD"], "images": ["QUJD"]}', "headers": {"Content-Type": "application/json"}},
        "more than once",
    ),
    "json in UTF-16": (
        {"content": '{"images": []}'.encode("utf-16"), "headers": {"Content-Type": "application/json"}},
        "sent in UTF-8",
    ),
    "json nested deeply": (
        {"content": b'{"images":' + b"[" * 100_000, "headers": {"Content-Type": "application/json"}},
        "recursion limit",
    ),
    "base64 cut short": ({"json": {"images": ["", "QUJDR"]}}, "images[1] is not base64: its 5 characters"),
    "address": ({"json": {"images": ["https://example.com/cat.jpg"]}}, "No image is fetched from an address"),
    "base64 of other characters": ({"json": {"images": ["äöü="]}}, "images[0]"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_body_is_400_and_named(served: Served, name: str) -> None:
    arguments, word = MALFORMED[name]
    assert word in (await refused(served, arguments, 400, "malformed_request"))["detail"]


@pytest.mark.parametrize("form", ["multipart", "json"])
async def test_empty_image_among_others_is_a_bad_image(served: Served, form: str) -> None:
    body = multipart((part(), PHOTO), (part(), b"")) if form == "multipart" else as_json(PHOTO, b"")
    problem = await refused(served, body, 422, "bad_image")
    assert [(fault["index"], fault["code"]) for fault in problem["errors"]] == [(1, "empty_image")]


@pytest.mark.parametrize("form", ["multipart", "json"])
async def test_one_image_too_many_is_413_in_every_form(model: ModelDirectory, form: str) -> None:
    images = [PHOTO] * 4
    body = multipart(*((part(), image) for image in images)) if form == "multipart" else as_json(*images)
    async with serving(model, max_images=3) as served:
        await refused(served, body, 413, "too_large")
        fewer = multipart(*((part(), image) for image in images[1:])) if form == "multipart" else as_json(*images[1:])
        assert (await served.http.post(URL, **fewer)).status_code == 200


@pytest.mark.parametrize("form", FORMS)
async def test_byte_limit_is_inclusive_and_the_same_in_every_form(model: ModelDirectory, form: str) -> None:
    arguments = FORMS[form](PHOTO)
    size = (
        len(arguments["content"])
        if "content" in arguments
        else len(json.dumps(arguments["json"], separators=(",", ":")))
    )
    async with serving(model, max_body_bytes=size) as served:
        assert (await served.http.post(URL, **arguments)).status_code == 200
    async with serving(model, max_body_bytes=size - 1) as served:
        await refused(served, arguments, 413, "too_large")


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", f"multipart/form-data; boundary={BOUNDARY}", "application/json"]
)
async def test_body_of_unknown_length_is_cut_off_at_the_limit(model: ModelDirectory, content_type: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield (multipart((part(), b""), end=False)["content"])[:-2]
        while sent < 10_000_000:
            sent += 1000
            yield b" " * 1000

    async with serving(model, max_body_bytes=20_000) as served:
        response = await served.http.post(URL, content=endless(), headers={"Content-Type": content_type})
    assert response.status_code == 413
    assert response.json()["code"] == "too_large"
    assert response.headers["connection"] == "close"
