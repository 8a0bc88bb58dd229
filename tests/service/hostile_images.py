"""Image files that cost as much as their format lets a small file cost; and a table of what each costs here.

    python -m tests.service.hostile_images

prints for every file its size, its pixels, how it ends, and the milliseconds that a kilobyte and a megapixel buy. Files
are as large as `LARGEST_BYTES` and `LARGEST_PIXELS` allow, which tests make smaller.
"""

from __future__ import annotations

import io
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.limits import UnusableImage
from service.images.preprocessing import Preprocessing, decode_into, prepare_pillow

PUBLISHED = Preprocessing(resize=(256, 256), crop=(224, 224))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *, bits: int = 8, color: int = 0, before: bytes = b"", idat: int = 1 << 30) -> bytes:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    packer = zlib.compressobj(9)
    row = bytes(1 + (width * bits * channels + 7) // 8)
    at_once = max(1, min(height, (1 << 20) // len(row)))
    many, rest = divmod(height, at_once)
    data = b"".join(packer.compress(row * at_once) for _ in range(many)) + packer.compress(row * rest) + packer.flush()
    parts = b"".join(_chunk(b"IDAT", data[i : i + idat]) for i in range(0, len(data), idat))
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    palette = _chunk(b"PLTE", bytes(3)) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + before + palette + parts + _chunk(b"IEND", b"")


def _packed_text() -> bytes:
    return b"k\0\0" + zlib.compress(bytes(10**6))


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes((marker,)) + struct.pack(">H", len(content) + 2) + content


def _bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return b"".join(
        bytes((b, 0) if b == 255 else (b,)) for b in (int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    )


def jpeg_scans(width: int, height: int, scans: int, *, refining: bool = False, empty: bool = False) -> bytes:
    """A progressive grey JPEG: a scan of nothing, and many more that add nothing to it.

    `refining` scans look at every coefficient again; `empty` ones have no data, so that each costs ten bytes.
    """
    blocks = -(-width // 8) * (-(-height // 8))
    frame = _segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    tables = _segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\0")
    tables += _segment(0xC4, b"\x10" + bytes([1, 1] + [0] * 14) + b"\xe0\x00")
    left, runs = blocks, ""
    while left >= 1 << 14:
        run = min(left, (1 << 15) - 1)
        runs, left = runs + "0" + format(run - (1 << 14), "014b"), left - run
    data = b"" if empty else _bits(runs + "10" * left)
    first = _segment(0xDA, b"\1\1\0\0\0\0") + _bits("0" * blocks)
    if refining:
        start = _segment(0xDA, b"\1\1\0\x01\x3f\x01") + data
        more = start + (_segment(0xDA, b"\1\1\0\x01\x3f\x10") + data) * scans
    else:
        more = (_segment(0xDA, b"\1\1\0\x01\x3f\x00") + data) * scans
    return b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64) + frame + tables + first + more + b"\xff\xd9"


def jpeg_segments(count: int, *, mode: str = "CMYK") -> bytes:
    data = _encoded(Image.new(mode, (16, 16)), "JPEG")
    return data[:2] + _segment(0xE5, b"") * count + data[2:]


def jpeg_restarts(count: int) -> bytes:
    """A small photo with restart markers, which have no length, before its first segment."""
    data = _encoded(Image.new("RGB", (32, 32)), "JPEG")
    return data[:2] + b"\xff\xd0" * count + data[2:]


def jpeg_warned(side: int) -> bytes:
    """A photo with bytes that do not belong there before its end."""
    noise = np.random.default_rng(0).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    data = _encoded(Image.fromarray(noise).resize((side, side)), "JPEG", quality=90, progressive=True)
    return data[:-2] + bytes(9) + data[-2:]


def gif(
    width: int, height: int, *, before: bytes = b"", frame: tuple[int, int] | None = None, control: int = 0
) -> bytes:
    data = _encoded(Image.new("P", (16, 16)), "GIF")
    body = data.index(b",", 13)
    across, down = frame or (width, height)
    head = data[:6] + struct.pack("<HH", width, height) + data[10:13] + data[13 : 13 + (3 << ((data[10] & 7) + 1))]
    extension = bytes((0x21, 0xF9, 4, control, 0, 0, 0, 0)) if control else b""
    return head + before + extension + b"," + struct.pack("<HHHH", 0, 0, across, down) + data[body + 9 :]


def gif_whole(side: int) -> bytes:
    return _encoded(Image.new("P", (side, side)), "GIF")


def bmp_runs(width: int, height: int, runs: bytes) -> bytes:
    palette = bytes(range(256)) * 4
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(runs), 0, 0, 14 + 40 + 1024) + info + palette + runs


def tiff(
    width: int,
    height: int,
    tags: dict[int, tuple[int, int, bytes]],
    *,
    order: str = "<",
    pages: int = 1,
    data: bytes = b"",
    more_tags: int = 0,
) -> bytes:
    """A TIFF; `tags` by number: type, count and value, beside the size. `data` lies from the eighth byte on."""
    entries = {256: (4, 1, struct.pack(order + "I", width)), 257: (4, 1, struct.pack(order + "I", height)), **tags}
    for number in range(more_tags):
        entries.setdefault(40000 + number, (3, 1, b"\0\0"))
    place = 8 + len(data)
    size = 2 + 12 * len(entries) + 4
    behind, rest = b"", place + size * pages
    directory = b""
    for number, (kind, count, value) in sorted(entries.items()):
        if len(value) > 4:
            at, behind = struct.pack(order + "I", rest + len(behind)), behind + value
        else:
            at = value.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", number, kind, count) + at
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", place) + data
    for page in range(pages):
        following = 0 if page == pages - 1 else place + size * (page + 1)
        out += struct.pack(order + "H", len(entries)) + directory + struct.pack(order + "I", following)
    return out + behind


def _numbers(*values: int) -> tuple[int, int, bytes]:
    return 4, len(values), struct.pack(f"<{len(values)}I", *values)


def tiff_strips(width: int, height: int, strips: int, *, rows: int, compression: int = 1, data: bytes = b"") -> bytes:
    """A bilevel TIFF whose strips all lie upon each other."""
    size = len(data) or (width + 7) // 8 * rows
    tags = {
        258: _numbers(1), 259: _numbers(compression), 262: _numbers(1), 277: _numbers(1), 278: _numbers(rows),
        273: _numbers(*[8] * strips), 279: _numbers(*[size] * strips),
    }  # fmt: skip
    return tiff(width, height, tags, data=data or bytes(size))


def tiff_of_nothing(strips: int, size: int) -> bytes:
    """A TIFF whose strips all lie upon the same long data, which unpacks to nothing."""
    return tiff_strips(8, strips, strips, rows=1, compression=32773, data=b"\x80" * size)


def tiff_of_shared_jpeg(side: int, strips: int, scans: int) -> bytes:
    """A TIFF whose strips are all the same JPEG of many scans."""
    data = jpeg_scans(side, 8, scans)
    tags = {258: _numbers(8), 259: _numbers(7), 262: _numbers(1), 277: _numbers(1), 278: _numbers(8)}
    places = {273: _numbers(*[8] * strips), 279: _numbers(*[len(data)] * strips)}
    return tiff(side, 8 * strips, {**tags, **places}, data=data)


def tiff_signed_tile(side: int, tile: int) -> bytes:
    """A TIFF whose one tile is far larger than its image, with the tile's size in signed numbers."""
    signed = {322: (9, 1, struct.pack("<i", tile)), 323: (9, 1, struct.pack("<i", tile))}
    tags = {258: _numbers(8), 259: _numbers(8), 262: _numbers(1), 277: _numbers(1), **signed}
    data = zlib.compress(bytes(tile * tile))
    return tiff(side, side, {**tags, 324: _numbers(8), 325: _numbers(len(data))}, data=data)


def big_tiff_of_nothing() -> bytes:
    """The head of a BigTIFF whose directory would lie at 2^64 - 1."""
    return b"II+\0\x08\0\0\0" + b"\xff" * 8


def tiff_of_jpeg(side: int, scans: int) -> bytes:
    data = jpeg_scans(side, side, scans)
    tags = {258: _numbers(8), 259: _numbers(7), 262: _numbers(1), 277: _numbers(1), 278: _numbers(side)}
    return tiff(side, side, {**tags, 273: _numbers(8), 279: _numbers(len(data))}, data=data)


def tiff_plain(side: int, **more: int) -> bytes:
    tags = {258: _numbers(8), 259: _numbers(1), 262: _numbers(1), 277: _numbers(1), 278: _numbers(side)}
    return tiff(side, side, {**tags, 273: _numbers(8), 279: _numbers(side * side)}, data=bytes(side * side), **more)


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP of one frame of one pixel on a canvas of any size."""
    frame = _encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]

    def three(number: int) -> bytes:
        return number.to_bytes(3, "little")

    head = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + three(width - 1) + three(height - 1)
    loop = b"ANIM" + struct.pack("<I", 6) + bytes(6)
    content = bytes(6) + three(0) + three(0) + three(100) + b"\0" + frame
    body = b"WEBP" + head + loop + b"ANMF" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp(side: int, *, lossless: bool, noise: bool = False) -> bytes:
    image = Image.new("RGB", (side, side))
    if noise:
        image = Image.fromarray(
            np.random.default_rng(0).integers(0, 2, (side, side, 3), dtype=np.uint8) * np.uint8(255)
        )
    return _encoded(image, "WEBP", lossless=lossless, quality=20, method=0)


def files(scale: int = 8) -> dict[str, Callable[[], bytes]]:
    """The files by their names, made when called; `scale` 8 is as large as the default limits allow, 1 is small."""
    side, many = 1000 * scale, 20_000 * scale
    return {
        "an ordinary photo": lambda: jpeg_warned(640)[:-11] + b"\xff\xd9",
        "jpeg: largest, one colour": lambda: _encoded(Image.new("RGB", (side, side)), "JPEG"),
        "jpeg: largest progressive": lambda: _encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True),
        "jpeg: largest in CMYK": lambda: _encoded(Image.new("CMYK", (side, side)), "JPEG", progressive=True),
        "jpeg: many scans": lambda: jpeg_scans(side // 2, side // 2, 190 * scale),
        "jpeg: scans within the budget": lambda: jpeg_scans(side, side, 18),
        "jpeg: refining scans within the budget": lambda: jpeg_scans(side, side, 18, refining=True),
        "jpeg: many scans without data": lambda: jpeg_scans(side // 2, side // 2, many // 40, empty=True),
        "jpeg: many scans of 8 x 8": lambda: jpeg_scans(8, 8, 10 * many, empty=True),
        "jpeg: scans of 8 x 8 within the budget": lambda: jpeg_scans(8, 8, 2000 * scale, empty=True),
        "jpeg: many scans of a line": lambda: jpeg_scans(65_500, 1, many // 8),
        "jpeg: empty segments, CMYK": lambda: jpeg_segments(10 * many // 8),
        "jpeg: segments within the limit, CMYK": lambda: jpeg_segments(2000 * scale),
        "jpeg: restart markers before the frame": lambda: jpeg_restarts(50 * many),
        "jpeg: a warning": lambda: jpeg_warned(side),
        "png: largest, one colour": lambda: _png(side, side, bits=1),
        "png: largest, 16 bit colour with alpha": lambda: _png(side, side, bits=16, color=6),
        "png: largest, 16 bit grey": lambda: _png(side, side, bits=16),
        "png: one pixel wide": lambda: _png(1, side * side // 8, bits=1),
        "png: one line": lambda: _png(side * side, 1, bits=1),
        "png: empty private chunks": lambda: _png(16, 16, before=_chunk(b"prIv", b"") * many),
        "png: chunks within the limit": lambda: _png(16, 16, before=_chunk(b"prIv", b"") * (2000 * scale)),
        "png: image data in single bytes": lambda: _png(side, side, bits=2, color=3, idat=1),
        "png: texts": lambda: _png(16, 16, before=_chunk(b"zTXt", _packed_text()) * (125 * scale)),
        "gif: largest, one colour": lambda: gif_whole(side),
        "gif: comment in many blocks": lambda: gif(16, 16, before=b"!\xfe" + (b"\xff" + bytes(255)) * many + b"\0"),
        "gif: empty extensions": lambda: gif(16, 16, before=b"!\xff\0" * (many * 2)),
        "gif: a frame of 4 gigapixels": lambda: gif(16, 16, frame=(65_535, 65_535), control=8),
        "webp: largest, lossless": lambda: webp(side, lossless=True),
        "webp: largest, lossy": lambda: webp(side, lossless=False),
        "webp: large, lossless, noise": lambda: webp(side // 3, lossless=True, noise=True),
        "webp: largest, on a canvas": lambda: webp_canvas(side, side),
        "webp: a canvas of few long lines": lambda: webp_canvas(side * side // 4, 4),
        "bmp: one line": lambda: _encoded(Image.new("RGB", (side * side // 8, 1)), "BMP"),
        "bmp: largest, runs of one pixel": lambda: bmp_runs(side, side // 8, (b"\1\7" * side + b"\0\0") * (side // 8)),
        "bmp: lines that end at once": lambda: bmp_runs(side * side, 1, b"\1\7\0\0"),
        "bmp: runs within the budget": lambda: bmp_runs(
            1250, 30 * scale, (b"\1\7" * 1250 + b"\0\0") * (30 * scale)
        ),
        "bmp: lines within the budget": lambda: bmp_runs(1250, 125 * scale, b"\1\7\0\0" * (125 * scale)),
        "tiff: strips upon each other": lambda: tiff_strips(side, side, 250 * scale, rows=side - 1),
        "tiff: strips of a line": lambda: tiff_strips(8, 12_500 * scale, 12_500 * scale, rows=1),
        "tiff: strips within the limit": lambda: tiff_strips(8, 2000 * scale, 2000 * scale, rows=1),
        "tiff: packed strips upon each other": lambda: tiff_strips(
            side, side, 2000 * scale, rows=1, compression=8, data=zlib.compress(bytes(side // 8))
        ),
        "tiff: strips upon the same long nothing": lambda: tiff_of_nothing(2000 * scale, 12_500 * scale),
        "tiff: strips of one JPEG of many scans": lambda: tiff_of_shared_jpeg(side, 125 * scale, 90),
        "tiff: a tile of signed size": lambda: tiff_signed_tile(64, 1100 * scale),
        "tiff: a directory beyond all": big_tiff_of_nothing,
        "tiff: tags": lambda: tiff_plain(64, more_tags=3000 * scale),
        "tiff: tags within the limit": lambda: tiff_plain(64, more_tags=2000 * scale),
        "tiff: pages": lambda: tiff_plain(64, pages=1000 * scale),
        "tiff: a JPEG of many scans": lambda: tiff_of_jpeg(side // 2, 90),
        "tiff: largest, packed": lambda: tiff_strips(
            side, side, 1, rows=side, compression=8, data=zlib.compress(bytes(side * side // 8))
        ),
    }  # fmt: skip


def _end_of(data: bytes, pixels: NDArray[np.uint8]) -> tuple[str, float]:
    """How a file ends, and the megapixels that were decoded."""
    try:
        timings = decode_into(data, pixels, PUBLISHED)
    except UnusableImage as error:
        return f"{error.fault.code}: {error}", 0.0
    return "decoded", timings.width * timings.height / 1e6


def main() -> None:
    """Print the table; with arguments, of the files whose names hold one of them."""
    prepare_pillow()
    pixels = np.zeros((224, 224, 3), np.uint8)
    lines = [f"{'file':42}{'kB':>9}{'MP':>8}{'CPU ms':>9}{'ms/kB':>11}{'ms/MP':>9}  end"]
    for name, make in files().items():
        if len(sys.argv) > 1 and not any(part in name for part in sys.argv[1:]):
            continue
        data = make()
        took_ms = []
        for _ in range(3):
            began_s = time.thread_time()
            end, megapixels = _end_of(data, pixels)
            took_ms.append((time.thread_time() - began_s) * 1000)
        ms, kilobytes = statistics.median(took_ms), len(data) / 1000
        a_megapixel = f"{ms / megapixels:9.1f}" if megapixels >= 0.01 else " " * 9
        figures = f"{kilobytes:9.1f}{megapixels:8.2f}{ms:9.1f}{ms / kilobytes:11.3f}{a_megapixel}"
        lines.append(f"{name:42}{figures}  {end[:70]}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
