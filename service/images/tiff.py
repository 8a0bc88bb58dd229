"""TIFF: the first page and the tags that decide its pixels; and the orientation in an EXIF block, which is a TIFF too.

A page's tags stand in a directory, each with its type, its count and its value, or the place of that. Tags that are
not about pixels are taken out of a copy of the directory, so that decoders neither read them nor warn of them, and so
is the way to the next page.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from service.images.limits import DecodeLimits, Essence, GreyRange, UnusableImage, corrupt, not_taken

MAGICS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")
"""Byte order and number; the third and the fourth are wrong, and read all the same."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS_OF_A_STRIP, _PLANES = 273, 274, 277, 278, 284
_STRIP_BYTES, _TILE_BYTES = 279, 325
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 322, 323, 324, 338, 339
_KEPT = frozenset(
    (
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _SAMPLES, _ROWS_OF_A_STRIP),
        *(_PLANES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _EXTRA_SAMPLES, _SAMPLE_FORMAT),
        *(_STRIP_BYTES, _TILE_BYTES),
        *(292, 293, 317, 320, 332, 347),  # options of fax codings, predictor, palette, inks, tables of JPEG
        *range(512, 522),  # JPEG as it was coded first
        *(529, 530, 531, 532),  # how brightness and colour differences make colours
    )
)
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""The types of whole numbers, as struct has them; decoders take any of them for any other."""
_ORIENTATION_KINDS = (3, 4)
_MOST_SHARED = 8
"""How many times the file the strips or tiles together may be: some programs write equal ones once."""
_JPEGS = (6, 7)
_START_OF_SCAN = b"\xff\xda"
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 32773, 32809, 32946, 34676, 34677, 34925, 50000, 32771))
_MEANINGS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _LAB = 0, 1, 8
_UNSIGNED, _SIGNED = 1, 2


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a file writes its directories, as struct has it."""

    order: str
    count: str
    entry: str
    """Tag, type, count, and the value or its place."""
    place: str


@dataclass(frozen=True, slots=True)
class _Tag:
    kind: int
    count: int
    entry_place: int
    """Where its entry stands."""
    first: int | None
    """The first of its values; None where it is no whole number from 0 on, or lies beyond the file."""


@dataclass(frozen=True, slots=True)
class _Page:
    layout: _Layout
    place: int
    """Where the directory stands."""
    tags: Mapping[int, _Tag]

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag, or the default where there is none; raises UnusableImage for no number."""
        found = self.tags.get(tag)
        if found is None:
            return default
        if found.first is None:
            raise corrupt()
        return found.first


def orientation_in(exif: bytes | bytearray, limits: DecodeLimits) -> int:
    """Return the orientation that an EXIF block gives, 1 to 8; 1 where it gives none or cannot be read."""
    try:
        return _orientation(_first_page(exif, limits))
    except UnusableImage:
        return 1


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return the first page without metadata; raises UnusableImage where it costs too much, or is not taken."""
    page = _first_page(data, limits)
    width, height = page.number(_WIDTH, 0), page.number(_HEIGHT, 0)
    if not width or not height:
        raise corrupt()
    limits.check_pixels(width, height)
    _check_parts(data, page, width, height, limits)
    kind = _kind(page)
    if page.layout.place == ">Q":
        raise not_taken("A BigTIFF whose numbers are big-endian")
    compression, meaning = page.number(_COMPRESSION, 1), page.number(_PHOTOMETRIC, 0)
    if compression not in _COMPRESSIONS or meaning == _LAB:
        raise not_taken(kind)
    grey = _grey(page)
    return Essence(
        "TIFF",
        _first_page_alone(data, page, as_plain=grey is not None),
        orientation=_orientation(page),
        grey=grey,
        kind=kind,
    )


def _orientation(page: _Page) -> int:
    tag = page.tags.get(_ORIENTATION)
    if tag is None or tag.kind not in _ORIENTATION_KINDS or tag.first is None:
        return 1
    return tag.first if 1 <= tag.first <= 8 else 1


def _kind(page: _Page) -> str:
    meaning, form = page.number(_PHOTOMETRIC, 0), page.number(_SAMPLE_FORMAT, _UNSIGNED)
    return (
        f"A TIFF with {page.number(_SAMPLES, 1)} x {page.number(_BITS, 1)} bits a pixel, "
        f"{_FORMATS.get(form, f'of sample format {form}')}, {_MEANINGS.get(meaning, f'photometric {meaning}')}, "
        f"compression {page.number(_COMPRESSION, 1)},"
    )


def _grey(page: _Page) -> GreyRange | None:
    meaning, form = page.number(_PHOTOMETRIC, 0), page.number(_SAMPLE_FORMAT, _UNSIGNED)
    bits = page.number(_BITS, 1)
    if meaning not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) or form not in (_UNSIGNED, _SIGNED):
        return None
    if page.number(_SAMPLES, 1) != 1 or (bits <= 8 and form == _UNSIGNED):
        return None  # which the decoder brings to 0 to 255 by itself
    return GreyRange(bits, is_signed=form == _SIGNED, is_inverted=meaning == _WHITE_IS_ZERO)


def _check_parts(data: bytes | bytearray, page: _Page, width: int, height: int, limits: DecodeLimits) -> None:
    """Raise UnusableImage where the strips or tiles of a page, which may lie upon each other, cost too much."""
    rows = page.number(_ROWS_OF_A_STRIP, height) or height
    tile = page.number(_TILE_WIDTH, 0), page.number(_TILE_HEIGHT, 0)
    kinds = ((_STRIPS, _STRIP_BYTES, (width, min(rows, height))), (_TILES, _TILE_BYTES, tile))
    if not any(places in page.tags for places, _, _ in kinds):
        raise corrupt()
    for places_tag, sizes_tag, (across, down) in kinds:
        if places_tag not in page.tags:
            continue
        limits.check_segments(page.tags[places_tag].count, what="strips or tiles")
        places = _values(data, page, places_tag)
        if not any(places):
            raise corrupt()
        limits.check_pixels(across, down)
        limits.check_scans(len(places), across * down, what="strips or tiles")
        sizes = _values(data, page, sizes_tag) if sizes_tag in page.tags else ()
        if len(sizes) != len(places) or not all(sizes):
            sizes = (len(data),) * len(places)  # decoders then read on, as far as that is
        if len(places) > 1 and sum(min(size, len(data)) for size in sizes) > _MOST_SHARED * len(data):
            raise UnusableImage("too_complex", "The strips or tiles of the TIFF lie upon each other too often.")
        if page.number(_COMPRESSION, 1) in _JPEGS:
            parts = zip(places, sizes, strict=True)
            scans = sum(data.count(_START_OF_SCAN, place, place + size) for place, size in parts)
            limits.check_scans(scans, across * down, what="scans")


def _first_page(data: bytes | bytearray, limits: DecodeLimits) -> _Page:
    try:
        layout, place = _head(data)
        if place >= len(data):
            raise corrupt()
        (count,) = struct.unpack_from(layout.count, data, place)
        if count * struct.calcsize(layout.entry) > len(data) - place:
            raise corrupt()
        limits.check_segments(count, what="tags")
        tags: dict[int, _Tag] = {}
        entry_place = place + struct.calcsize(layout.count)
        for _ in range(count):
            number, kind, values, _ = struct.unpack_from(layout.entry, data, entry_place)
            if number in _KEPT or number == _ORIENTATION:
                if number in tags:  # of two, one decoder takes the first and another the last
                    raise corrupt()
                first = next(iter(_numbers(data, layout, entry_place, most=1)), None)
                tags[number] = _Tag(kind, values, entry_place, None if first is None or first < 0 else first)
            entry_place += struct.calcsize(layout.entry)
    except struct.error as error:
        raise corrupt() from error
    return _Page(layout, place, tags)


def _head(data: bytes | bytearray) -> tuple[_Layout, int]:
    """Return how directories are written, and where the first one stands."""
    order = "<" if data[:2] == b"II" else ">"
    if b"+" in data[2:4]:
        layout = _Layout(order, f"{order}Q", f"{order}HHQ8s", f"{order}Q")
        (place,) = struct.unpack_from(layout.place, data, 8)
    else:
        layout = _Layout(order, f"{order}H", f"{order}HHI4s", f"{order}I")
        (place,) = struct.unpack_from(layout.place, data, 4)
    return layout, place


def _values(data: bytes | bytearray, page: _Page, tag: int) -> tuple[int, ...]:
    """Return all values of a tag; raises UnusableImage where they are no whole numbers from 0 on, or not there."""
    found = page.tags[tag]
    values = _numbers(data, page.layout, found.entry_place, most=found.count)
    if len(values) != found.count or not values or min(values) < 0:
        raise corrupt()
    return values


def _numbers(data: bytes | bytearray, layout: _Layout, entry_place: int, *, most: int) -> tuple[int, ...]:
    """Return the first values of an entry, none where they are no whole numbers or lie beyond the file."""
    _, kind, count, value = struct.unpack_from(layout.entry, data, entry_place)
    if kind not in _NUMBERS:
        return ()
    size = struct.calcsize(_NUMBERS[kind])
    source: bytes | bytearray = value
    place = 0
    if count * size > len(value):
        source, (place,) = data, struct.unpack(layout.place, value)
    taken = min(count, most)
    if place + taken * size > len(source):
        return ()
    return struct.unpack_from(f"{layout.order}{taken}{_NUMBERS[kind]}", source, place)


def _first_page_alone(data: bytes | bytearray, page: _Page, *, as_plain: bool) -> bytearray:
    """Return a copy whose first directory has the tags that are kept, and no next one.

    `as_plain` makes numbers out to be unsigned, with 0 for black, whatever the file says: Pillow does not know all that
    can be otherwise, and swaps the bytes of some that it knows.
    """
    layout = page.layout
    entry_bytes = struct.calcsize(layout.entry)
    value_place = entry_bytes - struct.calcsize(layout.place)
    plain = {_PHOTOMETRIC: _BLACK_IS_ZERO, _SAMPLE_FORMAT: _UNSIGNED} if as_plain else {}
    entries = []
    for number, tag in page.tags.items():
        entry = bytearray(data[tag.entry_place : tag.entry_place + entry_bytes])
        if number in plain and tag.kind in _NUMBERS:
            struct.pack_into(layout.order + _NUMBERS[tag.kind], entry, value_place, plain[number])
        if number != _ORIENTATION:
            entries.append(entry)
    directory = b"".join((struct.pack(layout.count, len(entries)), *entries, struct.pack(layout.place, 0)))
    copy = bytearray(data)
    copy[page.place : page.place + len(directory)] = directory
    return copy
