"""GIF: the screen and the first frame, without comments and other extensions."""

from __future__ import annotations

import struct

from service.images.limits import DecodeLimits, Essence, corrupt

MAGICS = (b"GIF87a", b"GIF89a")

_SCREEN = struct.Struct("<HHB")
_FRAME = struct.Struct("<HHHHB")
_HEAD_BYTES = 13
_EXTENSION, _FRAME_BEGINS, _GRAPHIC_CONTROL = 0x21, 0x2C, 0xF9
_HAS_COLOURS, _HAS_TRANSPARENCY = 0x80, 0x01


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return the file up to its first frame's end or further; raises UnusableImage where it costs too much."""
    if len(data) < _HEAD_BYTES:
        raise corrupt()
    width, height, flags = _SCREEN.unpack_from(data, 6)
    head_end = _HEAD_BYTES + (3 * 2 ** ((flags & 7) + 1) if flags & _HAS_COLOURS else 0)
    frame, transparent = _first_frame(data, head_end, limits)
    left, top, across, down, _ = _FRAME.unpack_from(data, frame + 1)
    limits.check_pixels(max(width, left + across), max(height, top + down))
    # Of the graphic control, the transparent colour alone says something of a still image: the ground beside the frame.
    control = (
        b"" if transparent is None else bytes((0x21, _GRAPHIC_CONTROL, 4, _HAS_TRANSPARENCY, 0, 0, transparent, 0))
    )
    return Essence("GIF", b"".join((data[:head_end], control, data[frame:])))


def _first_frame(data: bytes | bytearray, place: int, limits: DecodeLimits) -> tuple[int, int | None]:
    """Return where the first frame begins, and its transparent colour, if any."""
    transparent = None
    blocks = 0
    while place + 1 + _FRAME.size <= len(data):
        if data[place] == _FRAME_BEGINS:
            return place, transparent
        if data[place] != _EXTENSION:  # nothing that the format knows; decoders look further
            place += 1
            blocks += 1
            limits.check_segments(blocks, what="blocks")
            continue
        if data[place + 1] == _GRAPHIC_CONTROL and data[place + 2] >= 4:
            transparent = data[place + 6] if data[place + 3] & _HAS_TRANSPARENCY else transparent
        place += 2
        while True:
            blocks += 1
            limits.check_segments(blocks, what="blocks")
            if place >= len(data):
                raise corrupt()
            size = data[place]
            place += 1 + size
            if size == 0:
                break
    raise corrupt()
