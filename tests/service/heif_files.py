"""AVIF and HEIC files put together box by box, of data that a true encoder made; and such as no encoder makes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tests.service.pictures import photo

ESSENTIAL = 0x8000
CODINGS = {"AVIF": (b"av01", b"av1C", b"avif"), "HEIF": (b"hvc1", b"hvcC", b"heic")}


def box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


def ispe(width: int, height: int) -> bytes:
    return box(b"ispe", struct.pack(">III", 0, width, height))


def grid(rows: int, columns: int, width: int, height: int) -> bytes:
    return struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)


@dataclass
class Item:
    """An item of a file: its properties are whole boxes, those in `optional` not essential."""

    coding: bytes
    data: bytes
    properties: Sequence[bytes] = ()
    optional: Sequence[bytes] = ()
    parts: Sequence[int] = ()
    place: tuple[int, int] | None = None
    """Offset and length that the file says, where that is not where the data are."""


@dataclass
class Coded:
    """What an encoder made of a picture: its data, and its configuration as a box."""

    data: bytes
    configuration: bytes
    size: tuple[int, int]
    form: str
    options: dict[str, Any] = field(default_factory=dict)

    def item(self, **changes: Any) -> Item:
        return Item(
            CODINGS[self.form][0], changes.pop("data", self.data),
            properties=(self.configuration, ispe(*self.size), *changes.pop("properties", ())), **changes,
        )  # fmt: skip


@lru_cache(maxsize=32)
def coded(form: str, width: int = 64, height: int = 64, seed: int = 0, **options: Any) -> Coded:
    """Return the coded data of a picture of which an encoder makes a single item."""
    data = photo(form, width=width, height=height, seed=seed, **options)
    kind = CODINGS[form][1]
    start = data.index(kind) - 4
    configuration = data[start : start + int.from_bytes(data[start : start + 4], "big")]
    start = data.index(b"mdat") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    content = data[start : start + length]
    place = content.index(b"\x12\x00") if form == "AVIF" else 0
    return Coded(content[place:], configuration, (width, height), form)


def heif(
    items: Sequence[Item],
    *,
    primary: int = 1,
    brand: bytes = b"avif",
    compatible: Sequence[bytes] = (b"mif1", b"miaf"),
    before: bytes = b"",
    after: bytes = b"",
    more_meta: bytes = b"",
    references: int = 1,
) -> bytes:
    """Return a file of items, which are numbered from 1 on, with the boxes `before` and `after` the others."""
    head = box(b"ftyp", brand, bytes(4), *compatible) + before
    properties: dict[bytes, int] = {}
    links, kinds, derived = [], [], []
    for number, item in enumerate(items, 1):
        indices = [ESSENTIAL | properties.setdefault(one, len(properties) + 1) for one in item.properties]
        indices += [properties.setdefault(one, len(properties) + 1) for one in item.optional]
        links.append(struct.pack(f">HB{len(indices)}H", number, len(indices), *indices))
        kinds.append(box(b"infe", struct.pack(">IHH4sB", 2 << 24, number, 0, item.coding, 0)))
        if item.parts:
            numbers = struct.pack(f">HH{len(item.parts)}H", number, len(item.parts), *item.parts)
            derived.append(box(b"dimg", numbers) * references)

    def meta(data_place: int) -> bytes:
        places, place = [], data_place
        for number, item in enumerate(items, 1):
            where = item.place or (place, len(item.data))
            places.append(struct.pack(">HHHII", number, 0, 1, *where))
            place += len(item.data)
        return box(
            b"meta", bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", struct.pack(">IH", 0, primary)),
            box(b"iloc", struct.pack(">IHH", 0, 0x4400, len(items)), *places),
            box(b"iinf", struct.pack(">IH", 0, len(items)), *kinds),
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", struct.pack(">II", 1, len(items)), *links)),
            *((box(b"iref", bytes(4), *derived),) if derived else ()),
            more_meta,
        )  # fmt: skip

    place = len(head) + len(meta(0)) + 8
    return head + meta(place) + box(b"mdat", *(item.data for item in items)) + after


class Bitstring:
    """Bits put one behind the other."""

    def __init__(self) -> None:
        self.text = ""

    def put(self, number: int, bits: int) -> Bitstring:
        self.text += format(number, f"0{bits}b") if bits else ""
        return self

    def exponential(self, number: int) -> Bitstring:
        bits = (number + 1).bit_length()
        return self.put(0, bits - 1).put(number + 1, bits)

    def to_bytes(self) -> bytes:
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def obu(kind: int, content: bytes) -> bytes:
    size, leb = len(content), b""
    while True:
        leb += bytes((size & 0x7F | (0x80 if size > 0x7F else 0),))
        size >>= 7
        if not size:
            return bytes((kind << 3 | 2,)) + leb + content


def av1_sequence(width: int, height: int, *, bits: int = 16, reduced: bool = False) -> bytes:
    """A sequence header, whose sizes have so many bits."""
    out = Bitstring().put(0, 3).put(1, 1).put(reduced, 1)
    if reduced:
        out.put(0, 5)
    else:
        out.put(0, 1).put(0, 1).put(0, 5).put(0, 12).put(0, 5)
    out.put(bits - 1, 4).put(bits - 1, 4).put(width - 1, bits).put(height - 1, bits)
    if not reduced:
        out.put(0, 1)
    out.put(0, 3)
    if not reduced:
        out.put(0, 5).put(1, 1).put(1, 1)  # no order hints; screen content and vectors as frames choose
    return obu(1, out.put(0, 16).to_bytes())


def av1_frame(*, overrides_size: bool = False) -> bytes:
    """The beginning of a shown key frame."""
    out = Bitstring().put(0, 1).put(0, 2).put(1, 1).put(0, 1).put(0, 1).put(overrides_size, 1)
    return obu(6, out.put(0, 64).to_bytes())


def av1(width: int, height: int, *, frames: int = 1, overrides_size: bool = False, **sequence: Any) -> bytes:
    """The headers of an AV1 image, without data behind them."""
    frame = av1_frame(overrides_size=overrides_size)
    return obu(2, b"") + av1_sequence(width, height, **sequence) + frame * frames


def hevc_set(width: int, height: int, *, depth: int = 8, sublayers: int = 0) -> bytes:
    """A sequence's parameter set, with the bytes that keep it from looking like the beginning of a unit."""
    out = Bitstring().put(0, 4).put(sublayers, 3).put(1, 1).put(0, 88).put(30, 8)
    for _ in range(sublayers):
        out.put(3, 2)
    out.put(0, 2 * (8 - sublayers) if sublayers else 0)
    for _ in range(sublayers):
        out.put(0, 96)
    out.exponential(0).exponential(1).exponential(width).exponential(height).put(0, 1)
    content = out.exponential(depth - 8).exponential(depth - 8).put(0, 16).to_bytes()
    guarded, zeros = bytearray(), 0
    for byte in content:
        if zeros == 2 and byte <= 3:
            guarded.append(3)
            zeros = 0
        guarded.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\x42\x01" + bytes(guarded)


def hevc_configuration(*sets: bytes) -> bytes:
    units = b"".join(struct.pack(">H", len(one)) + one for one in sets)
    return box(b"hvcC", bytes(21), b"\3\1", b"\x21" + struct.pack(">H", len(sets)), units)


def hevc_slices(slices: int, *, pictures: int = 1) -> bytes:
    """Slices without data, of which so many begin a picture."""
    begins = [b"\x26\x01\xaf" if index < pictures else b"\x26\x01\x2f" for index in range(slices)]
    return b"".join(struct.pack(">I", len(one)) + one for one in begins)
