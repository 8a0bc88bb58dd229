"""What a caller likes best of what can be answered (RFC 9110, section 12.5): media types by Accept, and codings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from python_multipart.multipart import parse_options_header

from service.errors import NotAcceptable


def qualities(header: str) -> dict[str, float]:
    """Return what an Accept or Accept-Encoding header names, in lower case, with its quality from 0 (refused) to 1.

    What is named several times has the highest; an item that is not well-formed asks for nothing.
    """
    named: dict[str, float] = {}
    for item in header.split(","):
        name, parameters = parse_options_header(item.strip())
        try:
            quality = float(parameters.get(b"q", b"1"))
        except ValueError:
            continue
        if 0.0 <= quality <= 1.0:
            key = name.decode("latin-1").lower()
            named[key] = max(quality, named.get(key, 0.0))
    return named


def negotiate(accept: str | None, offered: Sequence[str]) -> str:
    """Return the media type of `offered`, in the server's order of preference, that the caller likes best.

    No Accept header, or an empty one, takes the first. The most specific range decides a type's quality; a quality
    of 0 refuses it. Raises NotAcceptable where nothing is left.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = qualities(accept)
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(f"None of the types in Accept can be produced; there are {', '.join(offered)}.")
    return best


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    main_type = media_type.partition("/")[0]
    return next((ranges[name] for name in (media_type, f"{main_type}/*", "*/*") if name in ranges), 0.0)
