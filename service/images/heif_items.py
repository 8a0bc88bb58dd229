"""The picture of a HEIF file (ISO/IEC 23008-12), which AVIF and HEIC files are: its primary item, as the boxes have it.

A file holds items: coded images, grids of them, thumbnails, depths, metadata. What is read here is the primary item
alone, and the tiles that it is put together of. All else is neither read nor handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.images import av1, hevc
from service.images.isobmff import Account, Box, Reader, boxes, one_of_each
from service.images.limits import UnusableImage, corrupt, not_taken

GRID = b"grid"
_NAMES = {av1.CODING: "AVIF", hevc.CODING: "HEIC"}
_IN_THE_FILE, _IN_THE_BOX = 0, 1
_SIZES_BYTES = (0, 4, 8)
_SHARED_BYTES = 1 << 20
"""How much larger than the file its tiles together may be: some programs write equal ones once, which are flat."""
_PASSED_OVER = frozenset(
    (b"pixi", b"pasp", b"auxC", b"a1lx", b"clli", b"mdcv", b"cclv", b"amve", b"rloc", b"udes", b"colr")
)
"""Properties that may be called essential and change no pixel here: depths are the coding's own."""
_HANDED_ON = (b"a1op", b"lsel", b"colr")
"""Properties that choose among the layers of an item, and that say what its numbers stand for."""
_CONFIGURATION_BYTES = range(1, 1 << 16)
_SIZES = {
    **{kind: range(size, size + 1) for kind, size in {b"ispe": 12, b"irot": 1, b"imir": 1, b"clap": 32}.items()},
    **{b"a1op": range(1, 2), b"lsel": range(2, 3), b"colr": range(11, 12)},
    **{av1.CONFIGURATION: _CONFIGURATION_BYTES, hevc.CONFIGURATION: _CONFIGURATION_BYTES},
}
"""The properties that are read, and how many bytes each may have."""
_UNKNOWN = b""
"""Stands for properties that are essential and not known."""
TURNING = frozenset((b"irot", b"imir", b"clap"))


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of an item's data, as places in the file."""

    start: int
    end: int


@dataclass(slots=True)
class Item:
    """What of an item is read. `properties` are in the order in which they apply, and all that were known."""

    coding: bytes = b""
    is_protected: bool = False
    extents: Sequence[Extent] | None = None
    """None where its data are in another file, or made of other items; empty where they are not there."""
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    parts: Sequence[int] = ()
    """The numbers of the items that it is derived from."""

    def property_of(self, kind: bytes) -> bytes | None:
        """Return the content of the one property of a kind; raises UnusableImage where there are two."""
        found = [content for name, content in self.properties if name == kind]
        if len(found) > 1:
            raise corrupt()
        return found[0] if found else None


def primary(data: bytes | bytearray, account: Account) -> tuple[Item, list[Item]]:
    """Return the primary item, a coded image or a grid, and the coded images that it consists of.

    Raises UnusableImage with code `undecodable`, `unsupported_encoding` or `too_complex`.
    """
    reader = Reader(data, _meta(data, account))
    reader.version()
    meta = one_of_each(data, reader.rest(), account)
    if any(kind not in meta for kind in (b"pitm", b"iinf", b"iloc", b"iprp")):
        raise corrupt()
    number = _primary_number(Reader(data, meta[b"pitm"]))
    items = _items(data, meta[b"iinf"], account)
    _locate(data, meta, items, account)
    _describe(data, meta[b"iprp"], items, account)
    if b"iref" in meta:
        _derive(data, meta[b"iref"], items, account)
    if number not in items:
        raise corrupt()
    item = items[number]
    coded = [_part(items, part) for part in item.parts] if item.coding == GRID else [item]
    _check(item, coded)
    size = sum(extent.end - extent.start for part in coded for extent in part.extents or ())
    if size > len(data) + _SHARED_BYTES:
        raise UnusableImage("too_complex", "The tiles of the image lie upon each other too often.")
    return item, coded


def _meta(data: bytes | bytearray, account: Account) -> Box:
    """Return the box of what the file holds; what lies behind it is not looked at."""
    kinds = set()
    for box in boxes(data, Box(b"", 0, len(data)), account):
        if box.kind == b"meta":
            return box
        if box.kind == b"mini":
            raise not_taken("An AVIF or HEIC file with the small header of a mini box")
        kinds.add(box.kind)
    raise not_taken("A sequence of images without a still one") if b"moov" in kinds else corrupt()


def _part(items: dict[int, Item], number: int) -> Item:
    if number not in items:
        raise corrupt()
    return items[number]


def _check(item: Item, coded: list[Item]) -> None:
    """Raise UnusableImage where a picture is of items that are not taken."""
    codings = {part.coding for part in coded}
    if not coded:
        raise corrupt()
    if len(codings) > 1 or codings.isdisjoint(_NAMES):
        raise not_taken("A HEIF file whose picture is coded as neither AV1 (AVIF) nor HEVC (HEIC), or derived")
    name = _NAMES[codings.pop()]
    for part in (item, *coded):
        if part.is_protected or part.extents is None:
            raise not_taken(f"{name} that is encrypted, or has its data elsewhere,")
        if not part.extents:
            raise corrupt()
        if any(kind == _UNKNOWN for kind, _ in part.properties):
            raise not_taken(f"{name} with properties that are essential and not known")
    if item.coding == GRID and any(kind in TURNING for part in coded for kind, _ in part.properties):
        raise not_taken(f"{name} whose tiles are turned or cropped")


def _primary_number(reader: Reader) -> int:
    version, _ = reader.version()
    return reader.number(2 if version == 0 else 4)


def _items(data: bytes | bytearray, box: Box, account: Account) -> dict[int, Item]:
    reader = Reader(data, box)
    version, _ = reader.version()
    reader.number(2 if version == 0 else 4)
    items: dict[int, Item] = {}
    for entry in boxes(data, reader.rest(), account):
        reader = Reader(data, entry)
        version, _ = reader.version()
        if entry.kind != b"infe" or version not in (2, 3):  # the older ones name no type, and are of no image
            continue
        number = reader.number(2 if version == 2 else 4)
        if number in items:
            raise corrupt()
        is_protected = reader.number(2) != 0
        items[number] = Item(bytes(reader.take(4)), is_protected)
    return items


def _locate(data: bytes | bytearray, meta: dict[bytes, Box], items: dict[int, Item], account: Account) -> None:
    """Read where the data of items lie."""
    reader = Reader(data, meta[b"iloc"])
    version, _ = reader.version()
    sizes = reader.number(2)
    offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 0xF for shift in (12, 8, 4, 0))
    index_bytes = index_bytes if version in (1, 2) else 0
    if version > 2 or any(size not in _SIZES_BYTES for size in (offset_bytes, length_bytes, base_bytes, index_bytes)):
        raise corrupt()
    for _ in range(reader.number(2 if version < 2 else 4)):
        account.count()
        number = reader.number(2 if version < 2 else 4)
        method = reader.number(2) & 0xF if version else _IN_THE_FILE
        is_elsewhere = reader.number(2) != 0 or method not in (_IN_THE_FILE, _IN_THE_BOX)
        base = reader.number(base_bytes)
        extents = []
        source = meta.get(b"idat", Box(b"", 0, 0)) if method == _IN_THE_BOX else Box(b"", 0, len(data))
        for _ in range(reader.number(2)):
            account.count()
            reader.take(index_bytes)
            start = source.start + base + reader.number(offset_bytes)
            extents.append((Extent(start, start + reader.number(length_bytes)), source.end))
        if number not in items or is_elsewhere:
            continue
        item = items[number]
        if item.extents is not None:
            raise corrupt()
        is_whole = all(extent.start < extent.end <= end for extent, end in extents)
        item.extents = [extent for extent, _ in extents] if is_whole else ()


def _describe(data: bytes | bytearray, box: Box, items: dict[int, Item], account: Account) -> None:
    """Read the properties of items."""
    properties: list[Box] = []
    contents: dict[int, bytes] = {}  # items share them, as they do in the file
    associations = []
    for part in boxes(data, box, account):
        if part.kind == b"ipco":
            if properties:
                raise corrupt()
            properties = list(boxes(data, part, account))
        elif part.kind == b"ipma":
            associations.append(part)
    for part in associations:
        reader = Reader(data, part)
        version, flags = reader.version()
        size_bytes = 2 if flags & 1 else 1
        essential = 1 << 8 * size_bytes - 1
        for _ in range(reader.number(4)):
            account.count()
            item = items.get(reader.number(2 if version < 1 else 4))
            for _ in range(reader.number(1)):
                account.count()
                index = reader.number(size_bytes)
                place = index & essential - 1
                if item is None or not place or item.coding not in (GRID, *_NAMES):
                    continue
                if place > len(properties):
                    raise corrupt()
                described = properties[place - 1]
                if described.kind in _SIZES and not _is_profile(data, described):
                    if place not in contents:
                        contents[place] = _content(data, described)
                    item.properties.append((described.kind, contents[place]))
                elif index & essential and described.kind not in _PASSED_OVER:
                    item.properties.append((_UNKNOWN, b""))


def _is_profile(data: bytes | bytearray, box: Box) -> bool:
    """Return whether a property is a profile of colours, which nothing here uses, and not numbers for them."""
    return box.kind == b"colr" and data[box.start : box.start + 4] != b"nclx"


def _content(data: bytes | bytearray, box: Box) -> bytes:
    if box.end - box.start not in _SIZES[box.kind]:
        raise corrupt()
    return bytes(data[box.start : box.end])


def handed_on(item: Item) -> list[tuple[bytes, bytes]]:
    """Return the properties of a coded image that its decoder is given, beside its size and configuration."""
    found = ((kind, item.property_of(kind)) for kind in _HANDED_ON)
    return [(kind, content) for kind, content in found if content is not None]


def _derive(data: bytes | bytearray, box: Box, items: dict[int, Item], account: Account) -> None:
    """Read which items grids consist of."""
    reader = Reader(data, box)
    version, _ = reader.version()
    size_bytes = 2 if version == 0 else 4
    for reference in boxes(data, reader.rest(), account):
        if reference.kind != b"dimg":
            continue
        reader = Reader(data, reference)
        item = items.get(reader.number(size_bytes))
        count = reader.number(2)
        account.count(count)
        parts = [reader.number(size_bytes) for _ in range(count)]
        if item is not None:
            if item.parts:
                raise corrupt()
            item.parts = parts
