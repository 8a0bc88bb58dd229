from __future__ import annotations

import gzip
import zlib

import pytest

from service.errors import MalformedRequest, TooLarge
from service.http.routes.v2.coding import answer_coding, compressed, decompressed


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("br", "identity"),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", "identity"),
        ("identity, gzip;q=0.5", "identity"),
        ("gzip;q=nonsense", "identity"),
        ("GZIP; q=1", "gzip"),
    ],
)
def test_answer_has_the_coding_that_is_liked_best(accept: str | None, coding: str) -> None:
    assert answer_coding(accept) == coding


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_bodies_up_to_the_limit_come_back_whole(coding: str, size: int) -> None:
    body = bytes(range(256)) * 4
    assert decompressed(compressed(body[:size], coding), coding, max_bytes=1000) == body[:size]


def test_limit_holds_over_all_members_of_a_gzip_file() -> None:
    two = gzip.compress(bytes(600)) * 2
    assert decompressed(two, "gzip", max_bytes=1200) == bytes(1200)
    with pytest.raises(TooLarge):
        decompressed(two, "gzip", max_bytes=1199)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"", "gzip"),
        (b"text", "deflate"),
        (gzip.compress(b"x" * 99, mtime=0)[:-1], "gzip"),
        (zlib.compress(b"x") + b"y", "deflate"),
        (gzip.compress(b"x", mtime=0) + b"y", "gzip"),
    ],
)
def test_what_is_not_one_whole_compressed_body_is_malformed(body: bytes, coding: str) -> None:
    with pytest.raises(MalformedRequest):
        decompressed(body, coding, max_bytes=1000)
