"""PNG: the chunks that decide the pixels; of an animated file, those of the still image that every PNG has."""

from __future__ import annotations

import struct

from service.images.limits import DecodeLimits, Essence, GreyRange, corrupt, not_taken
from service.images.tiff import orientation_in

MAGIC = b"\x89PNG\r\n\x1a\n"

_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBB")
_AROUND_BYTES = 12
"""Length, type and check sum of a chunk."""
_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_GREY = 0


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return the file without metadata; raises UnusableImage where it costs too much, or is no PNG."""
    if data[12:16] != b"IHDR" or len(data) < 16 + _HEADER.size:
        raise not_taken("Apple's own variant of PNG") if data[12:16] == b"CgBI" else corrupt()
    width, height, bits, color = _HEADER.unpack_from(data, 16)
    limits.check_pixels(width, height)
    kept, exif = _chunks(data, limits)
    return Essence(
        "PNG",
        b"".join((MAGIC, *(data[start:end] for start, end in kept))),
        orientation=orientation_in(exif, limits),
        grey=GreyRange(16) if color == _GREY and bits == 16 else None,
    )


def _chunks(data: bytes | bytearray, limits: DecodeLimits) -> tuple[list[tuple[int, int]], bytes]:
    """Return where the chunks to keep lie, neighbours as one, and the EXIF block."""
    kept: list[tuple[int, int]] = []
    exif, place, chunks = b"", len(MAGIC), 0
    while place + _CHUNK.size <= len(data):
        chunks += 1
        limits.check_segments(chunks, what="chunks")
        length, kind = _CHUNK.unpack_from(data, place)
        end = place + _AROUND_BYTES + length
        if kind in _KEPT:
            if kept and kept[-1][1] == place:
                kept[-1] = kept[-1][0], end
            else:
                kept.append((place, end))
        elif kind == b"eXIf":
            exif = bytes(data[place + _CHUNK.size : end - 4])
        if kind == b"IEND":
            break
        place = end
    return kept, exif
