"""Boxes of the ISO base media file format (ISO/IEC 14496-12), which AVIF and HEIC files consist of.

Every box, and whatever of a box's parts is counted with it, goes into one account: a file is not walked any further
than `max_segments` allows, whatever its boxes say of their sizes and numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from service.images.limits import DecodeLimits, corrupt

_HEAD = struct.Struct(">I4s")
_TO_THE_END, _LONG_SIZE_FOLLOWS = 0, 1
_LONG_SIZE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Box:
    """A box and where its content lies in the file."""

    kind: bytes
    start: int
    end: int


class Account:
    """How many parts of a file were looked at."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._parts = 0

    def count(self, parts: int = 1) -> None:
        """Raise UnusableImage with code `too_complex` where these are too many."""
        self._parts += parts
        self._limits.check_segments(self._parts, what="boxes, items, properties, tiles and parts of them")


class Reader:
    """Reads the numbers of a box, big-endian; every read raises UnusableImage where the box ends before it."""

    def __init__(self, data: bytes | bytearray, box: Box) -> None:
        self._data = data
        self.place = box.start
        self._end = box.end

    def number(self, size_bytes: int) -> int:
        """Return an unsigned number of so many bytes; of none it is 0."""
        return int.from_bytes(self.take(size_bytes), "big")

    def take(self, size_bytes: int) -> bytes | bytearray:
        """Return the next bytes."""
        place = self.place
        if size_bytes > self._end - place:
            raise corrupt()
        self.place = place + size_bytes
        return self._data[place : self.place]

    def version(self) -> tuple[int, int]:
        """Return version and flags, which begin a full box."""
        return self.number(1), self.number(3)

    def rest(self) -> Box:
        """Return what is left, as the content of a box without a name."""
        return Box(b"", self.place, self._end)


def boxes(data: bytes | bytearray, within: Box, account: Account) -> Iterator[Box]:
    """Yield the boxes of a box's content, one after the other; raises UnusableImage for one that reaches beyond it."""
    place = within.start
    while place + _HEAD.size <= within.end:
        account.count()
        size, kind = _HEAD.unpack_from(data, place)
        start = place + _HEAD.size
        if size == _LONG_SIZE_FOLLOWS:
            size, start = int.from_bytes(data[start : start + _LONG_SIZE_BYTES], "big"), start + _LONG_SIZE_BYTES
        end = within.end if size == _TO_THE_END else place + size
        if not start <= end <= within.end:
            raise corrupt()
        yield Box(kind, start, end)
        place = end


_FILLING = (b"free", b"skip", b"uuid")


def one_of_each(data: bytes | bytearray, within: Box, account: Account) -> dict[bytes, Box]:
    """Return boxes by their kinds; raises UnusableImage where two are of a kind, since readers choose differently."""
    found: dict[bytes, Box] = {}
    for box in boxes(data, within, account):
        if box.kind in found and box.kind not in _FILLING:
            raise corrupt()
        found[box.kind] = box
    return found


def packed(kind: bytes, *content: bytes | bytearray) -> bytes:
    """Return a box as it is written."""
    return b"".join((_HEAD.pack(_HEAD.size + sum(map(len, content)), kind), *content))
