"""The framing of multipart bodies as clients write it, and wherever a network cuts it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import MalformedRequest, TooLarge
from service.http.bodies.multipart import ImagePart, MultipartImages

BOUNDARY = b"b0undary"
FILE = b"\x89PNG\r\n--b0undar\r\n--\r\n-\r"
"""Bytes that look like a boundary until their end."""
DISPOSITION = b'Content-Disposition: form-data; name="image"; filename="a.png"'


def images(*chunks: bytes, boundary: bytes = BOUNDARY, max_images: int = 3) -> list[ImagePart]:
    collected = MultipartImages(boundary, max_images=max_images)
    for chunk in chunks:
        collected.write(chunk)
    return collected.finish()


def body(*parts: bytes, preamble: bytes = b"", padding: bytes = b"", end: bytes = b"\r\n") -> bytes:
    """A body of files; `padding` is behind every boundary."""
    line = b"--" + BOUNDARY + padding + b"\r\n"
    written = b"".join(line + DISPOSITION + b"\r\n\r\n" + data + b"\r\n" for data in parts)
    return preamble + written + b"--" + BOUNDARY + b"--" + end


FRAMINGS = {
    "nothing more than is needed": body(FILE, b"2", end=b""),
    "preamble of a mailer": body(FILE, b"2", preamble=b"This is a multi-part message in MIME format.\r\n"),
    "preamble of lines": body(FILE, b"2", preamble=b"\r\n--\r\n-- b0undary\r\n\r\n--b0undarz\r\n\r\n"),
    "preamble of an empty line": body(FILE, b"2", preamble=b"\r\n"),
    "preamble that ends like a boundary": body(FILE, b"2", preamble=b"--b0und\r\n"),
    "blanks behind every boundary": body(FILE, b"2", padding=b" \t ", end=b" \t\r\n"),
    "epilogue": body(FILE, b"2", end=b"\r\nThe end.\r\n--b0undary\r\n\r\n"),
    "all of these": body(FILE, b"2", preamble=b"Preamble\r\n", padding=b"  ", end=b"  \r\nepilogue"),
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_framing_is_read_the_same_wherever_it_is_cut(framing: str) -> None:
    whole = FRAMINGS[framing]
    for first in range(len(whole) + 1):
        assert [part.data for part in images(whole[:first], whole[first:])] == [FILE, b"2"], first
    for size in range(1, 20):
        chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert [part.data for part in images(*chunks)] == [FILE, b"2"], size


alike = st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY, b"b0", b"-", b"\r", b"x"]), max_size=8).map(b"".join)


@given(alike, st.lists(alike, min_size=1, max_size=3), st.lists(st.integers(0, 400), max_size=4))
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_any_content_between_boundaries_is_kept_as_it_is(preamble: bytes, files: list[bytes], cuts: list[int]) -> None:
    delimiter = b"\r\n--" + BOUNDARY
    if any(delimiter in b"\r\n" + data + b"\r\n" for data in (preamble, *files)):
        return  # the boundary would not be one
    whole = body(*files, preamble=preamble + b"\r\n")
    edges = [0, *sorted(cuts), len(whole)]
    chunks = [whole[start:stop] for start, stop in itertools.pairwise(edges)]
    assert [part.data for part in images(*chunks)] == files


NAMES = {
    b'filename="a b.jpg"': "a b.jpg",
    b"filename=a.jpg": "a.jpg",
    b'filename=""': "",
    b"": None,
    'filename="ä b.jpg"'.encode(): "ä b.jpg",
    rb'filename="a\"b.jpg"': 'a"b.jpg',
    b'filename="a%22b.jpg"': "a%22b.jpg",
    b'filename="../../etc/a;b.jpg"': "../../etc/a;b.jpg",
    b"filename*=UTF-8''%C3%A4%20b.jpg": "ä b.jpg",
    b"filename=\"a.jpg\"; filename*=utf-8''%E4%BD%A0.jpg": "你.jpg",
    b'filename="x; filename*=y.jpg"': "x; filename*=y.jpg",
    b"filename*=no-charset''a.jpg": "a.jpg",
    b"filename*=undefined''a.jpg": "a.jpg",  # a codec that refuses everything
    b"filename*=utf-7''a%2B2AA-.jpg": "a?.jpg",  # half of a surrogate pair
    b'filename="\xe4.jpg"': "\ufffd.jpg",
}


@pytest.mark.parametrize("parameter", NAMES)
def test_file_name_is_what_the_client_meant(parameter: bytes) -> None:
    head = b"Content-Disposition: form-data; name=image; " + parameter
    (part,) = images(b"--b0undary\r\n" + head + b"\r\n\r\ndata\r\n--b0undary--")
    assert part.filename == NAMES[parameter]


def one(head: bytes, data: bytes = b"data") -> bytes:
    return b"--b0undary\r\n" + head + b"\r\n\r\n" + data + b"\r\n--b0undary--"


WRONG = {
    "another boundary": (b"--other\r\n" + DISPOSITION + b"\r\n\r\ndata\r\n--other--\r\n", "no line '--b0undary'"),
    "lines that end in LF": (b"--b0undary\n" + DISPOSITION + b"\n\ndata\n--b0undary--\n", "do not end in CRLF"),
    "no boundary at all": (b"data", "no line '--b0undary'"),
    "nothing": (b"", "no line '--b0undary'"),
    "cut short": (body(b"1", b"2")[:-9], "before its closing boundary"),
    "no parts": (b"--b0undary--", "holds no image. Files are sent as fields named image, images, file or files"),
    "folded head": (one(b'Content-Disposition: form-data;\r\n name="image"'), "not well-formed"),
    "head without a colon": (one(b"Content-Disposition"), "not well-formed multipart/form-data at byte"),
    "too many lines of a head": (one(DISPOSITION + b"\r\nX: y" * 8), "at most 8"),
    "too long a line of a head": (one(DISPOSITION + b"\r\nX: " + b"y" * 5000), "at most 4224 bytes"),
    "head that never ends": (b"--b0undary\r\nX: " + b"y" * 100_000, "at most 4224 bytes"),
    "parts within a part": (
        one(DISPOSITION + b"\r\nContent-Type: multipart/mixed; boundary=c"),
        "is multipart/mixed; send each file as a part of its own",
    ),
    "coding that is not taken": (
        one(DISPOSITION + b"\r\nContent-Transfer-Encoding: quoted-printable"),
        "Content-Transfer-Encoding 'quoted-printable'",
    ),
    "another name": (one(b'Content-Disposition: form-data; name="picture"'), "a field named 'picture'"),
    "a name that only begins like one": (one(b'Content-Disposition: form-data; name="image[0][1]"'), "'image[0][1]'"),
    "attachment": (one(b'Content-Disposition: attachment; name="image"'), "form-data with a name"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_alike_wherever_the_body_is_cut(wrong: str) -> None:
    whole, message = WRONG[wrong]
    with pytest.raises(MalformedRequest) as at_once:
        images(whole)
    assert message in str(at_once.value)
    for size in (1, 2, 3, 7):
        with pytest.raises(MalformedRequest) as in_pieces:
            images(*(whole[start : start + size] for start in range(0, len(whole), size)))
        assert without_place(str(in_pieces.value)) == without_place(str(at_once.value))


def without_place(message: str) -> str:
    return re.sub(r"at byte \d+", "", message)


def test_place_of_what_is_wrong_is_counted_over_all_chunks() -> None:
    whole = body(b"1")[: -len("--b0undary--\r\n")] + b"--b0undary\r\nContent?: x\r\n\r\n"
    place = f"at byte {whole.index(b'?')}."
    for size in (1, 5, len(whole)):
        with pytest.raises(MalformedRequest, match=place):
            images(*(whole[start : start + size] for start in range(0, len(whole), size)))


@pytest.mark.parametrize("coding", [b"binary", b"8bit", b"7BIT", b""])
def test_part_that_says_that_its_bytes_are_as_they_are_is_taken(coding: bytes) -> None:
    (part,) = images(one(DISPOSITION + b"\r\nContent-Transfer-Encoding: " + coding, FILE))
    assert part.file("Image 0") == FILE


@pytest.mark.parametrize("label", [b"multipart/form-data", b"text/plain", b"image", b""])
def test_label_of_a_part_does_not_matter_where_it_holds_a_file(label: bytes) -> None:
    (part,) = images(one(DISPOSITION + b"\r\nContent-Type: " + label, FILE))
    assert part.data == FILE


def test_fields_that_were_left_empty_are_bounded_and_do_not_count_as_images() -> None:
    empty = b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n'
    assert len(images(empty * 3 + body(b"1", b"2", b"3"))) == 3
    with pytest.raises(TooLarge, match="more than 3 file fields that were left empty"):
        images(empty * 4 + b"--b0undary--")


def test_boundary_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="boundary cannot be used"):
        images(b"", boundary=b"b" * 257)
