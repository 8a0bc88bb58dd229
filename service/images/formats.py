"""Which format a file is of, by how it begins; and its essence."""

from __future__ import annotations

from typing import Protocol

from service.images import bmp, gif, heic, heif, jpeg, png, tiff, webp
from service.images.limits import DecodeLimits, Essence, UnusableImage

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Formats that are always taken, by Pillow's names; HEIC is where its decoder is installed."""


class _Format(Protocol):
    """What every format's module has."""

    def essence(self, data: bytes | bytearray, limits: DecodeLimits) -> Essence: ...


_MODULES: dict[bytes | tuple[bytes, ...], _Format] = {
    jpeg.MAGIC: jpeg,
    png.MAGIC: png,
    gif.MAGICS: gif,
    tiff.MAGICS: tiff,
    bmp.MAGIC: bmp,
}
_OTHERS = {
    **{(b"JXL ", 4): "JPEG XL", (b"\xff\x0a", 0): "JPEG XL"},
    **{(b"jP  ", 4): "JPEG 2000", (b"\xff\x4f\xff\x51", 0): "JPEG 2000"},
}
"""Formats that are not taken, though people know them as photos: what stands in them, and where."""


def begins_like_an_image(data: bytes | bytearray) -> bool:
    """Return whether a file of a format that is taken may begin with these bytes, a dozen at least."""
    return _module_of(data) is not None


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return what of a file decides its pixels.

    Raises UnusableImage with code `empty_image`, `unsupported_format`, `unsupported_encoding`, `undecodable`,
    `too_many_pixels` or `too_complex`.
    """
    if not data:
        raise UnusableImage("empty_image", "The image holds no bytes.")
    module = _module_of(data)
    if module is not None:
        return module.essence(data, limits)
    taken = (*FORMATS, "HEIC") if heic.is_read() else FORMATS
    other = next((name for (magic, place), name in _OTHERS.items() if data.startswith(magic, place)), None)
    raise UnusableImage(
        "unsupported_format",
        f"{'Not an image in a format that is taken' if other is None else f'{other} is not taken'}: "
        f"{', '.join(taken[:-1])} or {taken[-1]}.",
    )


def _module_of(data: bytes | bytearray) -> _Format | None:
    if data.startswith(webp.MAGIC) and data[8:12] == webp.FORM:
        return webp
    if heif.begins(data):
        return heif
    return next((module for magic, module in _MODULES.items() if data.startswith(magic)), None)
