"""From the bytes of an image file to the uint8 pixels that the model takes: the published preprocessing, exactly.

RGB by Pillow's own conversion, bicubic resize to a fixed size without regard to the aspect ratio, centre crop. The
normalisation is in the model's graph. Everything here is a pure function of its arguments and safe in any thread;
`prepare_pillow` is called once before.

Two short cuts give the same pixels in less time. Usual JPEG files are decoded by simplejpeg, which drives the same
library as Pillow with the same settings, but whole, at once and into memory that each thread keeps; whatever it does
not decode without so much as a warning goes Pillow's way, so that Pillow alone says what is wrong with a file. And
where the arithmetic is exact, only the crop's part of the resized image is computed.

Whatever a corrupt or hostile file makes Pillow raise leaves this module as `UnusableImage`; the number of pixels is
read from the header and checked before anything is decoded.
"""

from __future__ import annotations

import io
import threading
import time
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from service.repository import Manifest

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_JPEG_MAGIC = b"\xff\xd8\xff"
_USUAL_COLORSPACES = ("YCbCr", "Gray")
_EXACT_FLOAT32 = 1 << 24
"""Whole numbers up to this, and these over powers of two, have an exact 32-bit float."""
_MOST_KEPT_BYTES = 16 * 1024 * 1024
"""The largest image, 4 bytes a pixel, that a thread keeps memory for."""


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

    @property
    def crop_origin(self) -> tuple[int, int]:
        """Where the crop begins in the resized image: (top, left) in pixels."""
        (resize_height, resize_width), (height, width) = self.resize, self.crop
        return round((resize_height - height) / 2.0), round((resize_width - width) / 2.0)


@dataclass(frozen=True, slots=True)
class ImageTimings:
    """How long one image took: `decode_s` from file to RGB, `preprocess_s` from RGB to the model's input.

    The one follows upon the other, and `started_s` is when the first began, on time.monotonic. `height` and `width` are
    its own size in pixels, after its EXIF orientation where that is followed.
    """

    decode_s: float
    preprocess_s: float
    height: int
    width: int
    started_s: float


class _Kept(threading.local):
    """Memory that a thread decodes into again and again.

    The allocator would give an image's megabytes back to the system each time, and getting them anew, page by page,
    takes a tenth of the decoding's time.
    """

    def __init__(self) -> None:
        self._memory = bytearray()

    def memory(self, size_bytes: int) -> bytearray | None:
        """Return at least so many bytes, which the thread's next call may return again; None where it is too much."""
        if size_bytes > _MOST_KEPT_BYTES:
            return None
        if len(self._memory) < size_bytes:
            self._memory = bytearray(size_bytes)
        return self._memory


_kept = _Kept()


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
    ended_s = time.monotonic()
    return ImageTimings(decoded_s - started_s, ended_s - decoded_s, image.height, image.width, started_s)


def decode(data: bytes | bytearray, preprocessing: Preprocessing) -> Image.Image:
    """Decode the first frame of an image file to RGB, or to RGBX, where the fourth byte of a pixel means nothing.

    The image is only good until the same thread decodes another. Raises as `decode_into`.
    """
    if not data:
        raise UnusableImage("empty_image", "The image holds no bytes.")
    if data.startswith(_JPEG_MAGIC) and not preprocessing.exif_orientation:
        image = decode_usual_jpeg(data, max_pixels=preprocessing.max_pixels)
        if image is not None:
            return image
    return decode_with_pillow(data, preprocessing)


def decode_usual_jpeg(data: bytes | bytearray, *, max_pixels: int) -> Image.Image | None:
    """Decode a flawless JPEG file in grey or YCbCr to RGBX; None for any other file, or one of more pixels.

    The image is only good until the same thread decodes another.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in _USUAL_COLORSPACES or width * height > max_pixels:
            return None
        # Four bytes a pixel are what Pillow has inside: it takes them over as they lie.
        memory = _kept.memory(4 * width * height)
        rgbx = simplejpeg.decode_jpeg(data, "RGBX", fastdct=False, fastupsample=False, buffer=memory)
    except (ValueError, KeyError):  # not flawless, or subsampled in a way that simplejpeg has no name for
        return None
    return Image.frombuffer("RGBX", (width, height), rgbx, "raw", "RGBX", 0, 1)


def decode_with_pillow(data: bytes | bytearray, preprocessing: Preprocessing) -> Image.Image:
    """Decode any format; raises as `decode_into`."""
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
    """Resize an RGB or RGBX image and cut the centre out, giving uint8 (height, width, 3)."""
    (resize_height, resize_width), (height, width) = preprocessing.resize, preprocessing.crop
    top, left = preprocessing.crop_origin
    if _crop_resizes_alike(image, preprocessing):
        across, down = image.width / resize_width, image.height / resize_height
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        crop = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    else:
        resized = image.resize((resize_width, resize_height), Image.Resampling.BICUBIC)
        crop = resized.crop((left, top, left + width, top + height))
    return np.asarray(crop.convert("RGB"))


def _crop_resizes_alike(image: Image.Image, preprocessing: Preprocessing) -> bool:
    """Whether resizing the crop's part alone gives the pixels of the whole, in three quarters of the time.

    The filter's weights are the same where the crop's place in the image has no rounding error in the 32-bit floats
    that Pillow keeps it in, as with a side that is a power of two. But Pillow resizes in two passes, rounds between
    them, and orders them by what it reckons to be less work, which can differ between the crop and the whole; it
    does not where a wide image shrinks from a square to a square.
    """
    side, crop = preprocessing.resize[0], preprocessing.crop[0]
    is_exact = side & (side - 1) == 0 and max(image.size) * side <= _EXACT_FLOAT32
    are_squares = preprocessing.resize == (side, side) and preprocessing.crop == (crop, crop)
    return is_exact and are_squares and image.width >= image.height >= side


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise UnusableImage(
            "too_many_pixels",
            f"The image is {image.width} x {image.height} pixels; at most {max_pixels} in all are taken.",
        )


def begins_like_an_image(data: bytes) -> bool:
    """Return whether a file of a format that is taken may begin with these bytes, as Pillow tells formats apart."""
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return any(accept is not None and accept(data[:16]) is True for accept in accepts)


def _formats() -> str:
    return ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1]
