"""From the bytes of an image file to the uint8 pixels that the model takes: the published preprocessing, exactly.

RGB by Pillow's own conversion, bicubic resize to a fixed size without regard to the aspect ratio, centre crop. The
normalisation is in the model's graph. Everything here is a pure function of its arguments and safe in any thread;
`prepare_pillow` is called once before.

Whatever a corrupt or hostile file makes Pillow raise leaves this module as `UnusableImage`; the number of pixels is
read from the header and checked before anything is decoded.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from service.repository import Manifest

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


class UnusableImage(Exception):
    """One image cannot be used; `code` is stable, `str(error)` a sentence for the caller."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to every image; sizes are (height, width) in pixels."""

    resize: tuple[int, int]
    crop: tuple[int, int]
    max_pixels: int
    exif_orientation: bool = False

    @classmethod
    def of(cls, manifest: Manifest, *, max_pixels: int, exif_orientation: bool) -> Preprocessing:
        """Return what a model's manifest asks for, within the service's own limits."""
        return cls(
            resize=(manifest.preprocess.resize_height, manifest.preprocess.resize_width),
            crop=(manifest.input.height, manifest.input.width),
            max_pixels=max_pixels,
            exif_orientation=exif_orientation,
        )


@dataclass(frozen=True, slots=True)
class ImageTimings:
    """How long one image took: `decode_s` from file to RGB, `preprocess_s` from RGB to the model's input."""

    decode_s: float
    preprocess_s: float


def prepare_pillow() -> None:
    """Set Pillow's process-wide state: load the decoders, and leave the limit on pixels to `Preprocessing`.

    Pillow's own limit warns or raises at numbers of its own, which would answer otherwise than the setting says.
    """
    Image.init()
    Image.MAX_IMAGE_PIXELS = None


def decode_into(data: bytes | bytearray, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> ImageTimings:
    """Decode an image file and write the model's input, uint8 (height, width, 3), into `pixels`.

    Raises UnusableImage with code `empty_image`, `unsupported_format`, `undecodable` or `too_many_pixels`.
    """
    started_s = time.monotonic()
    image = decode(data, preprocessing)
    decoded_s = time.monotonic()
    pixels[...] = resize_and_crop(image, preprocessing)
    return ImageTimings(decoded_s - started_s, time.monotonic() - decoded_s)


def decode(data: bytes | bytearray, preprocessing: Preprocessing) -> Image.Image:
    """Decode the first frame of an image file to RGB; raises as `decode_into`."""
    if not data:
        raise UnusableImage("empty_image", "The image holds no bytes.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, preprocessing.max_pixels)
            upright = ImageOps.exif_transpose(image) if preprocessing.exif_orientation else image
            return upright.convert("RGB")
    except UnusableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImage("unsupported_format", f"Not an image in a format that is taken: {_formats()}.") from error
    except Exception as error:  # a corrupt file makes Pillow's plugins raise nearly anything, down to struct.error
        raise UnusableImage("undecodable", "The image is truncated or corrupt.") from error


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize an RGB image and cut the centre out, giving uint8 (height, width, 3)."""
    (resize_height, resize_width), (height, width) = preprocessing.resize, preprocessing.crop
    top, left = round((resize_height - height) / 2.0), round((resize_width - width) / 2.0)
    # Resizing the crop's part alone (resize's `box`) would save a quarter of the work, but Pillow orders its two passes
    # by the box's shape and rounds between them: one image in fifty would come out with other pixels.
    resized = image.resize((resize_width, resize_height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise UnusableImage(
            "too_many_pixels",
            f"The image is {image.width} x {image.height} pixels; at most {max_pixels} in all are taken.",
        )


def _formats() -> str:
    return ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1]
