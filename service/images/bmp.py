"""BMP: its size, and what its run-length coding costs, which Pillow decodes a run at a time, in Python."""

from __future__ import annotations

import struct

from service.images.limits import DecodeLimits, Essence, UnusableImage, corrupt

MAGIC = b"BM"

_FILE_HEADER_BYTES = 14
_SHORT_HEADER_BYTES = 12
_LONG_HEADER_BYTES = (40, 52, 56, 64, 108, 124)
_RUN_LENGTHS = (1, 2)
_RUN_PIXEL_COST = 1024
_RUN_BYTE_COST = 2048
"""What a pixel and a byte of runs cost, in pixels of a scan: by default 1.25 million pixels and 0.6 MB are the most."""


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return the file; raises UnusableImage where it costs too much, or has no whole header."""
    try:
        width, height, compression = _header(data)
    except struct.error as error:
        raise corrupt() from error
    limits.check_pixels(width, height)
    if compression in _RUN_LENGTHS:
        cost = max(width * height * _RUN_PIXEL_COST, len(data) * _RUN_BYTE_COST)
        if cost > limits.max_scan_pixels:
            raise UnusableImage(
                "too_complex",
                f"A BMP in run-length coding may have {limits.max_scan_pixels // _RUN_PIXEL_COST} pixels and "
                f"{limits.max_scan_pixels // _RUN_BYTE_COST} bytes; this one has {width * height} and {len(data)}.",
            )
    return Essence("BMP", data)


def _header(data: bytes | bytearray) -> tuple[int, int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, _FILE_HEADER_BYTES)
    if header_bytes == _SHORT_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", data, _FILE_HEADER_BYTES + 4)
        return width, height, 0
    if header_bytes not in _LONG_HEADER_BYTES:
        raise corrupt()
    width, height = struct.unpack_from("<Ii", data, _FILE_HEADER_BYTES + 4)
    (compression,) = struct.unpack_from("<I", data, _FILE_HEADER_BYTES + 16)
    return width, abs(height), compression
