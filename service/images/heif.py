"""AVIF and HEIC: the primary item's picture, bounded by the headers of its coding, in a file that is written anew.

Decoders are given a file that has this picture and nothing else: no metadata, thumbnail, alpha or other image, no
sequence, no box that was not understood here. What a file says of its size is not believed: the codings' own headers
are read too (`av1`, `hevc`), which decoders go by. How the picture is turned or cropped is read here, and done to its
pixels afterwards; the orientation in an EXIF block is none, as the standard has it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias

from service.images import av1, heic, hevc
from service.images.heif_items import GRID, TURNING, Extent, Item, handed_on, primary
from service.images.isobmff import Account, packed
from service.images.limits import DecodeLimits, Essence, UnusableImage, corrupt, not_taken

_BRANDS = frozenset(
    (
        *(b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
        *(b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"),
    )
)
_MOST_BRANDS = 64
_BRAND_BYTES = 4
_MOST_TILES = 900
"""libheif takes a thousand items at most, whatever they are."""
_ORIENTATIONS: dict[tuple[int, int | None], int] = {
    **{(0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6},
    **{(0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7},
    **{(0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5},
}
"""EXIF's orientation for quarter turns against the clock, and then a mirror: 0 upside down, 1 left to right."""

_PIXEL_COST = 4
"""A pixel of these codings takes as long as four of a scan of a JPEG."""

_Place: TypeAlias = tuple[Extent, ...]
"""Where an item's data lie, which items may share."""


class _Module(Protocol):
    """What every coding's module has."""

    CODING: bytes
    CONFIGURATION: bytes

    def configuration(self, content: bytes, /) -> bytes: ...

    def pixels(self, configuration: bytes, data: bytes, limits: DecodeLimits, account: Account, /) -> int: ...


@dataclass(frozen=True, slots=True)
class _Coding:
    """A coding of images, and the format that files of it have."""

    module: _Module
    form: str
    brands: tuple[bytes, ...]


_CODINGS: dict[bytes, _Coding] = {
    av1.CODING: _Coding(av1, "AVIF", (b"avif", b"mif1", b"miaf")),
    hevc.CODING: _Coding(hevc, heic.FORM, (b"heic", b"mif1", b"miaf")),
}


def begins(data: bytes | bytearray) -> bool:
    """Return whether a file begins as AVIF or HEIC do; of its first dozen bytes, by the first of its brands alone."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), 8 + _MOST_BRANDS * _BRAND_BYTES, len(data))
    return any(bytes(data[place : place + 4]) in _BRANDS for place in (8, *range(16, end, _BRAND_BYTES)))


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return the picture alone; raises UnusableImage where it costs too much, or is not taken or not read here."""
    account = Account(limits)
    item, coded = primary(data, account)
    coding = _CODINGS[coded[0].coding]
    size = _size(item)
    limits.check_pixels(*size)
    grid = _grid(data, item, coded, size, limits) if item.coding == GRID else b""
    if coding.module is hevc:
        heic.require()
    contents = {_key(part): b"".join(data[e.start : e.end] for e in _key(part)) for part in coded}
    _check_cost(coded, contents, coding.module, limits, account)
    orientation, crop = _turned(item, size)
    return Essence(
        coding.form,
        _written(coding, coded, contents, grid, item),
        orientation=orientation,
        crop=crop,
    )


def _check_cost(
    coded: list[Item], contents: Mapping[_Place, bytes], coding: _Module, limits: DecodeLimits, account: Account
) -> None:
    """Raise UnusableImage where decoding the images of a picture would go over too many pixels."""
    costs: dict[tuple[_Place, bytes], int] = {}
    for part in coded:
        configuration = _configuration(part, coding)
        key = _key(part), configuration
        if key not in costs:
            costs[key] = coding.pixels(configuration, contents[_key(part)], limits, account)
    pixels = sum(costs[_key(part), _configuration(part, coding)] for part in coded)
    if _PIXEL_COST * pixels > limits.max_scan_pixels:
        raise UnusableImage(
            "too_complex",
            f"The image has too many tiles, layers or slices: {pixels} pixels in all, which decoding would go over one "
            f"by one; at most {limits.max_scan_pixels // _PIXEL_COST} are taken.",
        )


def _key(part: Item) -> _Place:
    return tuple(part.extents or ())


def _size(item: Item) -> tuple[int, int]:
    """Return an item's width and height, which every image has to have."""
    content = item.property_of(b"ispe")
    if content is None:
        raise corrupt()
    width, height = struct.unpack_from(">II", content, 4)
    if not width or not height:
        raise corrupt()
    return width, height


def _configuration(part: Item, coding: _Module) -> bytes:
    content = part.property_of(coding.CONFIGURATION)
    if content is None:
        raise corrupt()
    return coding.configuration(content)


def _grid(data: bytes | bytearray, item: Item, tiles: list[Item], size: tuple[int, int], limits: DecodeLimits) -> bytes:
    """Return a grid's own data, checked against its tiles; raises UnusableImage."""
    content = b"".join(data[extent.start : extent.end] for extent in (item.extents or ())[:1])
    if len(content) < 8 or content[0] != 0:
        raise corrupt()
    rows, columns = content[2] + 1, content[3] + 1
    output = struct.unpack_from(">II" if content[1] & 1 else ">HH", content.ljust(12, b"\0"), 4)
    if len(tiles) != rows * columns or output != size:
        raise corrupt()
    if len(tiles) > _MOST_TILES:
        raise UnusableImage("too_complex", f"The image has {len(tiles)} tiles; at most {_MOST_TILES} are taken.")
    sizes = {_size(tile) for tile in tiles}
    width, height = sizes.pop()
    if sizes:
        raise corrupt()
    limits.check_pixels(width, height)
    if not (columns - 1) * width < size[0] <= columns * width or not (rows - 1) * height < size[1] <= rows * height:
        raise corrupt()
    return struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, *size)


def _turned(item: Item, size: tuple[int, int]) -> tuple[int, tuple[int, int, int, int] | None]:
    """Return the orientation of a picture, and what of it is cropped before it is turned; None for all."""
    order = [kind for kind, _ in item.properties if kind in TURNING]
    clap, irot, imir = (item.property_of(kind) for kind in (b"clap", b"irot", b"imir"))
    if b"clap" in order[1:]:
        raise not_taken("An AVIF or HEIC file that is cropped after it is turned")
    turns = 0 if irot is None else irot[0] & 3
    mirror = None if imir is None else imir[0] & 1
    if order[-2:] == [b"imir", b"irot"]:  # a mirror before a turn is one behind the opposite turn
        turns = -turns & 3
    return _ORIENTATIONS[turns, mirror], None if clap is None else _aperture(clap, size)


def _aperture(clap: bytes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a clean aperture (left, top, right, bottom) in pixels of the picture; raises UnusableImage."""
    numbers = struct.unpack(">IIIIiIiI", clap)
    if not all(numbers[1::2]):
        raise corrupt()
    width, height, across, down = (Fraction(*numbers[place : place + 2]) for place in range(0, 8, 2))
    left, top = across + (size[0] - width) / 2, down + (size[1] - height) / 2
    sides = left, top, left + width, top + height
    if any(side.denominator != 1 for side in sides):
        raise not_taken("An AVIF or HEIC file that is cropped within its pixels")
    box = int(left), int(top), int(left + width), int(top + height)
    if not (0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]):
        raise corrupt()
    return box


def _written(coding: _Coding, coded: list[Item], contents: dict[_Place, bytes], grid: bytes, item: Item) -> bytes:
    """Return a file of the picture alone: its kind, the data, and behind them what says where and what they are."""
    kind = packed(b"ftyp", coding.brands[0], bytes(4), *coding.brands)
    places: dict[_Place, tuple[int, int]] = {}
    place = len(kind) + 8 + len(grid)
    for key, content in contents.items():
        places[key] = place, len(content)
        place += len(content)
    first = 2 if grid else 1  # the picture is item 1
    parts = [(number, coding.module.CODING, places[_key(part)], part) for number, part in enumerate(coded, first)]
    if grid:
        parts.insert(0, (1, GRID, (len(kind) + 8, len(grid)), item))
    properties: dict[tuple[bytes, bytes], int] = {}
    links = []
    for number, _, _, part in parts:
        wanted = [(b"ispe", bytes(4) + struct.pack(">II", *_size(part))), *handed_on(part)]
        if part.coding != GRID:
            wanted.insert(0, (coding.module.CONFIGURATION, _configuration(part, coding.module)))
        indices = [properties.setdefault(one, len(properties) + 1) for one in wanted]
        essential = [_is_essential(name) << 15 | index for index, (name, _) in zip(indices, wanted, strict=True)]
        links.append(struct.pack(f">HB{len(indices)}H", number, len(indices), *essential))
    meta = [
        bytes(4),
        packed(b"hdlr", bytes(8), b"pict", bytes(13)),
        packed(b"pitm", bytes(4), struct.pack(">H", 1)),
        packed(
            b"iloc",
            struct.pack(">IHH", 1 << 24, 0x4400, len(parts)),
            *(struct.pack(">HHHHII", number, 0, 0, 1, *where) for number, _, where, _ in parts),
        ),
        packed(
            b"iinf",
            struct.pack(">IH", 0, len(parts)),
            *(packed(b"infe", struct.pack(">IHH4sB", 2 << 24, number, 0, name, 0)) for number, name, _, _ in parts),
        ),
        packed(
            b"iprp",
            packed(b"ipco", *(packed(name, content) for name, content in properties)),
            packed(b"ipma", struct.pack(">II", 1, len(parts)), *links),
        ),
    ]
    if grid:
        numbers = struct.pack(f">HH{len(coded)}H", 1, len(coded), *range(first, first + len(coded)))
        meta.append(packed(b"iref", bytes(4), packed(b"dimg", numbers)))
    return b"".join((kind, packed(b"mdat", grid, *contents.values()), packed(b"meta", *meta)))


def _is_essential(name: bytes) -> bool:
    return name not in (b"ispe", b"colr")
