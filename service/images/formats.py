"""Which format a file is of, by how it begins; and its essence."""

from __future__ import annotations

from service.images import bmp, gif, jpeg, png, tiff, webp
from service.images.limits import DecodeLimits, Essence, UnusableImage

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_OTHERS = {
    **{(b"ftyp" + brand, 4): "HEIC" for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")},
    **{(b"ftyp" + brand, 4): "AVIF" for brand in (b"avif", b"avis")},
    **{(b"JXL ", 4): "JPEG XL", (b"\xff\x0a", 0): "JPEG XL"},
    **{(b"jP  ", 4): "JPEG 2000", (b"\xff\x4f\xff\x51", 0): "JPEG 2000"},
}
"""Formats that are not taken, though people know them as photos: what stands in them, and where."""


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return what of a file decides its pixels.

    Raises UnusableImage with code `empty_image`, `unsupported_format`, `unsupported_encoding`, `undecodable`,
    `too_many_pixels` or `too_complex`.
    """
    if not data:
        raise UnusableImage("empty_image", "The image holds no bytes.")
    if data.startswith(jpeg.MAGIC):
        return jpeg.essence(data, limits)
    if data.startswith(png.MAGIC):
        return png.essence(data, limits)
    if data.startswith(webp.MAGIC) and data[8:12] == webp.FORM:
        return webp.essence(data, limits)
    if data.startswith(gif.MAGICS):
        return gif.essence(data, limits)
    if data.startswith(tiff.MAGICS):
        return tiff.essence(data, limits)
    if data.startswith(bmp.MAGIC):
        return bmp.essence(data, limits)
    other = next((name for (magic, place), name in _OTHERS.items() if data.startswith(magic, place)), None)
    raise UnusableImage(
        "unsupported_format",
        f"{'Not an image in a format that is taken' if other is None else f'{other} is not taken'}: "
        f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
    )
