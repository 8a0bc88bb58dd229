"""Content codings of bodies: gzip and deflate, in both directions.

A compressed body is limited twice: as it arrives, and as it is decompressed, which stops at the limit. A small body
that holds gigabytes costs no more than one of the largest size.
"""

from __future__ import annotations

import gzip
import zlib

from service.errors import MalformedRequest, UnsupportedMediaType
from service.http.answers.negotiation import qualities
from service.http.bodies.uploads import too_many_bytes

CODINGS = ("gzip", "deflate")
IDENTITY = "identity"
WORTHWHILE_BYTES = 1024
"""A smaller answer is left as it is."""
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEVEL = 1
"""Numbers of a network hardly shrink, and not more for being tried harder."""


def request_coding(header: str | None) -> str:
    """Return the coding of a request's body; raises UnsupportedMediaType for one that is not taken, or several."""
    coding = (IDENTITY if header is None else header).strip().lower()
    if coding != IDENTITY and coding not in CODINGS:
        raise UnsupportedMediaType(
            f"The content coding {coding!r} is not taken; there are {', '.join(CODINGS)} and {IDENTITY}.",
            accept_encoding=", ".join(CODINGS),
        )
    return coding


def decompressed(body: bytes, coding: str, *, max_bytes: int) -> bytes:
    """Return what a gzip or deflate (zlib) body holds.

    Raises TooLarge where that is more than `max_bytes`, and MalformedRequest where the body is corrupt, ends early or
    goes on after its end.
    """
    parts: list[bytes] = []
    left_bytes = max_bytes + 1
    while True:
        decompressor = zlib.decompressobj(_WINDOW_BITS[coding])
        try:
            parts.append(decompressor.decompress(body, left_bytes))
        except zlib.error as error:
            raise MalformedRequest(f"The body is not well-formed {coding}.") from error
        left_bytes -= len(parts[-1])
        if left_bytes <= 0:
            raise too_many_bytes(max_bytes)
        if not decompressor.eof:
            raise MalformedRequest(f"The {coding} body ends too early.")
        body = decompressor.unused_data
        if not body:
            return b"".join(parts)
        if coding != "gzip":  # a gzip file may be several, one after the other
            raise MalformedRequest(f"The {coding} body goes on after its end.")


def answer_coding(accept: str | None) -> str:
    """Return the coding that Accept-Encoding likes best, `identity` where it names none of ours or likes it better."""
    liked = qualities(accept or "")
    acceptable = [coding for coding in (*CODINGS, IDENTITY) if liked.get(coding, 0.0) > 0]
    return max(acceptable, key=liked.__getitem__, default=IDENTITY)


def compressed(body: bytes, coding: str) -> bytes:
    """Return a body compressed by gzip or deflate (zlib)."""
    if coding == "gzip":
        return gzip.compress(body, compresslevel=_LEVEL, mtime=0)
    return zlib.compress(body, _LEVEL)
