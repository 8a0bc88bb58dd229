"""Which representation to answer with, by the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from service.errors import NotAcceptable


@dataclass(frozen=True, slots=True)
class _Range:
    """One media range of an Accept header."""

    type: str
    subtype: str
    quality: float

    def specificity(self, media_type: str) -> int:
        """Return how closely the range names `media_type`: 3 exactly, 2 its type, 1 anything, 0 not at all."""
        main, _, sub = media_type.partition("/")
        if (self.type, self.subtype) == (main, sub):
            return 3
        if (self.type, self.subtype) == (main, "*"):
            return 2
        return int((self.type, self.subtype) == ("*", "*"))


def negotiate(accept: str | None, offered: Sequence[str]) -> str:
    """Return the media type of `offered`, in the server's order of preference, that the caller likes best.

    No Accept header, or an empty one, takes the first. The most specific range decides a type's quality; a quality
    of 0 refuses it. Raises NotAcceptable where nothing is left.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [parsed for item in accept.split(",") if (parsed := _parse(item)) is not None]
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(f"None of the types in Accept can be produced; there are {', '.join(offered)}.")
    return best


def _quality(media_type: str, ranges: Sequence[_Range]) -> float:
    matching = [(found, item.quality) for item in ranges if (found := item.specificity(media_type))]
    return max(matching)[1] if matching else 0.0


def _parse(item: str) -> _Range | None:
    """Return one media range, or None where it is not well-formed: such a range asks for nothing."""
    name, parameters = parse_options_header(item.strip())
    main, slash, sub = name.decode("latin-1").lower().partition("/")
    try:
        quality = float(parameters.get(b"q", b"1"))
    except ValueError:
        return None
    return _Range(main, sub, quality) if slash and main and sub and 0.0 <= quality <= 1.0 else None
