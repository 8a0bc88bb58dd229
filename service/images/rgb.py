"""From the modes that Pillow opens images in to RGB, each by the range that its numbers really have.

Pillow's own conversion takes every number for 0 to 255 and clips what lies beyond, so that a 16-bit picture would come
out white. Numbers of 9 to 16 bits become the highest 8 of them, as Pillow itself does to 16-bit colour.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from service.images.limits import GreyRange, not_taken

_DIRECT = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"))
"""Modes of 8 bits a channel or fewer."""
_DEEP = frozenset(("I;16", "I;16L", "I;16B", "I;16N"))
"""Modes of one channel of 16 bits."""
_NAMES = {"I": "A grey image of 32-bit whole numbers", "F": "An image of floating-point numbers", "LAB": "CIELAB"}


def as_rgb(image: Image.Image, grey: GreyRange | None, kind: str) -> Image.Image:
    """Return an image in RGB; `grey` and `kind` are those of its file's essence.

    Raises UnusableImage with code `unsupported_encoding`, naming the mode, where the range of its numbers is not known.
    """
    if grey is not None and (image.mode == "L" or (image.mode in _DEEP and 8 < grey.bits <= 16)):
        return _by_range(image, grey).convert("RGB")
    if image.mode in ("La", "RGBa"):  # Pillow converts these to their straight form alone
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]).convert("RGB")
    if image.mode in _DIRECT:
        return image.convert("RGB")
    raise not_taken(kind or f"{_NAMES.get(image.mode, 'An image')} (mode {image.mode})")


def _by_range(image: Image.Image, grey: GreyRange) -> Image.Image:
    """Return an image of unsigned numbers as its light, in 8 bits."""
    light = (np.asarray(image) >> max(grey.bits - 8, 0)).astype(np.uint8)
    if grey.is_signed:
        light ^= np.uint8(0x80)
    return Image.fromarray(~light if grey.is_inverted else light)
