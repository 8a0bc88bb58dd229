"""HEIC's decoder, which is an optional set of requirements: pillow-heif with libheif and libde265."""

from __future__ import annotations

from PIL import Image

from service.images.limits import UnusableImage

FORM = "HEIF"
"""The format's name as Pillow's, from `load` on."""


def load() -> None:
    """Have Pillow read HEIC, each picture in one thread and without thumbnails, where pillow-heif is installed."""
    try:
        import pillow_heif
    except ModuleNotFoundError:
        return
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def is_read() -> bool:
    """Return whether HEIC is read here."""
    return FORM in Image.OPEN


def require() -> None:
    """Raise UnusableImage with code `unsupported_format` where HEIC is not read."""
    if not is_read():
        raise UnusableImage("unsupported_format", "HEIC is read where pillow-heif is installed: requirements/heic.txt.")
