"""What the head of an HTTP/1.1 request must be beyond what llhttp's strict parser has found right (RFC 9112).

Messages name what is wrong and hold nothing of the request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.errors import MalformedRequest

MAX_HEAD_BYTES = 64 * 1024

_HOST = re.compile(rb"(\[[0-9A-Za-z:.%_~-]+\]|([0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?")
"""uri-host and port, which may both be empty."""
_WITHOUT_PATH = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")
"""The beginning of a target in absolute form whose path, if there is none, is to be read as `/`."""
_FRAMING = (b"content-length", b"transfer-encoding")

Headers = Sequence[tuple[bytes, bytes]]


def check_head(method: bytes, target: bytes, headers: Headers, *, http_version: str) -> bytes:
    """Return a request's target, with a path; raises MalformedRequest. Names in `headers` are lower-case."""
    if len(target) + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise MalformedRequest("The head of the request is too large.")
    if method == b"CONNECT":
        raise MalformedRequest("This is no proxy: CONNECT is not offered.")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        raise MalformedRequest("The request has more than one Host.")
    if not hosts and http_version == "1.1":
        raise MalformedRequest("The request has no Host, which HTTP/1.1 wants.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise MalformedRequest(
            "The Host of the request is no name or address with, if it is not the usual one, a port."
        )
    for name, value in headers:
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise MalformedRequest("Of transfer codings chunked alone is taken.")
    absolute = _WITHOUT_PATH.match(target)
    if absolute is not None and target[absolute.end() :][:1] != b"/":
        return target[: absolute.end()] + b"/" + target[absolute.end() :]
    return target


def framing_of(headers: Headers) -> bytes:
    """Return the headers that say where a body ends, as lines; nothing where there is no body."""
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers if name in _FRAMING)
