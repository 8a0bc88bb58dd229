"""WebP: its size, from the header, and its EXIF block; the decoder passes over metadata by itself."""

from __future__ import annotations

import struct

from service.images.limits import DecodeLimits, Essence, corrupt
from service.images.tiff import orientation_in

MAGIC, FORM = b"RIFF", b"WEBP"

_CHUNK = struct.Struct("<4sI")
_FIRST_CHUNK = 12
_HAS_EXIF = 0x08


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return the file; raises UnusableImage where it has too many pixels or chunks, or no whole header."""
    if len(data) < 30:
        raise corrupt()
    limits.check_pixels(*_size(data))
    return Essence("WEBP", data, orientation=orientation_in(_exif(data, limits), limits))


def _size(data: bytes | bytearray) -> tuple[int, int]:
    """Return width and height; the canvas's, where there is one."""
    kind, content = data[12:16], data[20:30]
    if kind == b"VP8 " and content[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and content[0] == 0x2F:
        bits = int.from_bytes(content[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(content[4:7], "little") + 1, int.from_bytes(content[7:10], "little") + 1
    raise corrupt()


def _exif(data: bytes | bytearray, limits: DecodeLimits) -> bytes:
    if data[12:16] != b"VP8X" or not data[20] & _HAS_EXIF:
        return b""
    place, chunks = _FIRST_CHUNK, 0
    while place + _CHUNK.size <= len(data):
        chunks += 1
        limits.check_segments(chunks, what="chunks")
        kind, length = _CHUNK.unpack_from(data, place)
        place += _CHUNK.size
        if kind == b"EXIF":
            return bytes(data[place : place + length]).removeprefix(b"Exif\0\0")
        place += length + length % 2
    return b""
