"""From the bytes of an image file to the uint8 pixels that the model takes: the published preprocessing, exactly.

RGB by Pillow's own conversion, bicubic resize to a given size without regard to the aspect ratio, centre crop. The
normalisation is in the model's graph. Everything here is a pure function of its arguments and safe in any thread;
`prepare_pillow` is called once before.

What a file may cost is bounded by its structure before anything is decoded, and Pillow is given the file's essence
alone, without metadata (`service.images`). Whatever a corrupt or hostile file makes it raise leaves this module as
`UnusableImage`.

Where it is asked to be `fast`, the pixels are not exactly those: large JPEG files are decoded at a half, a quarter or
an eighth of their size, and resized from there.

Three short cuts give the same pixels in less time. Usual JPEG files are decoded by simplejpeg, which drives the same
library as Pillow with the same settings, but whole, at once and into memory that each thread keeps; what it does not
know goes Pillow's way. The resize is a library's, where it was built (`service.images.bicubic`), which computes the
crop's part alone; else it is Pillow's, which does so where its arithmetic is exact.
"""

from __future__ import annotations

import ctypes
import io
import logging
import re
import threading
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError, _imaging

from service.images import bicubic, formats, heic, jpeg
from service.images.limits import DEFAULT_LIMITS, DecodeLimits, Essence, UnusableImage, corrupt, not_taken
from service.images.rgb import as_rgb

_log = logging.getLogger(__name__)

_USUAL_COLORSPACES = ("YCbCr", "Gray")
_JPEG_WARNINGS = (
    *("Premature end of JPEG file", "Corrupt JPEG data: "),
    *("Inconsistent progression sequence ", "Invalid SOS parameters "),
)
"""How the library begins to say what it decoded in spite of: the pixels are there, and are what Pillow would give."""
_EXACT_FLOAT32 = 1 << 24
"""Whole numbers up to this, and these over powers of two, have an exact 32-bit float."""
_PILLOW_DOES_NOT_KNOW = ("Unsupported BMP", "unknown raw mode")
"""How Pillow begins to say of a valid file that it has no decoder for it."""
_DIVISORS = (8, 4, 2)
_LEFT_TO_RESIZE = 1.5
"""How long a side that is decoded at a fraction is at least, over the side that it is resized to. At 1 the pixels of
photos are off by up to 40 levels, at 1.5 by up to 11."""
_AS_IT_IS = 1
"""The EXIF orientation of an upright image."""
_MOST_KEPT_BYTES = 16 * 1024 * 1024
"""The largest image, 4 bytes a pixel, that a thread keeps memory for."""


SIZE_PATTERN = r"^[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?$"
"""A size of input as requests name it: N, or HEIGHTxWIDTH."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to every image; sizes are (height, width) in pixels."""

    resize: tuple[int, int]
    crop: tuple[int, int]
    limits: DecodeLimits = DEFAULT_LIMITS
    exif_orientation: bool = False
    fast: bool = False
    """Whether large JPEG files may be decoded at a fraction of their size."""

    @property
    def crop_origin(self) -> tuple[int, int]:
        """Where the crop begins in the resized image: (top, left) in pixels."""
        (resize_height, resize_width), (height, width) = self.resize, self.crop
        return round((resize_height - height) / 2.0), round((resize_width - width) / 2.0)

    def at(self, size: str) -> Preprocessing:
        """Return what is done for an input of another size, which `SIZE_PATTERN` fits; ValueError where it does not.

        N is the published preprocessing in proportion: a centre crop of N x N, of an image that is as much larger as it
        is for the model's own size. HEIGHTxWIDTH is the whole image, resized to that, and nothing is cropped.
        """
        if not re.fullmatch(SIZE_PATTERN, size):
            raise ValueError(f"{size!r} is no size such as 384 or 480x640 (height x width)")
        height, _, width = size.partition("x")
        if width:
            whole = int(height), int(width)
            return replace(self, resize=whole, crop=whole)
        side = int(height)
        resize = tuple(round(side * resized / cropped) for resized, cropped in zip(self.resize, self.crop, strict=True))
        return replace(self, resize=(resize[0], resize[1]), crop=(side, side))


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


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A file's picture as it was decoded: the image, only good until the same thread decodes another.

    `height` and `width` are the file's own, upright where that was asked for; the image's are them over `divisor`,
    rounded up, so that its last row and column may be filled in part.
    """

    image: Image.Image
    height: int
    width: int
    divisor: int = 1

    @property
    def filled(self) -> tuple[float, float]:
        """Height and width of the part of the image that the picture fills."""
        return self.height / self.divisor, self.width / self.divisor


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


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""


def prepare_pillow() -> None:
    """Set Pillow's process-wide state: decoders loaded, silent, and without a limit of their own on pixels.

    What resizes in its place is loaded too, and the log says where nothing does. Pillow's warnings and log lines, and
    what libtiff writes to standard error, repeat numbers that a sender chose; and its limit would answer otherwise than
    the setting says.
    """
    Image.init()
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    libtiff = ctypes.CDLL(_imaging.__file__)  # which looks among the libraries of that module too
    if hasattr(libtiff, "TIFFSetErrorHandler"):
        libtiff.TIFFSetErrorHandler(None)
    # Pillow reads plain TIFF files itself, strip by strip in Python, and 16-bit ones wrongly whose channels lie apart.
    TiffImagePlugin.READ_LIBTIFF = True
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as many images are decoded at once as there are threads for them
    heic.load()
    if reason := bicubic.load():
        _log.info(reason)


def decode_into(data: bytes | bytearray, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> ImageTimings:
    """Decode an image file and write the model's input, uint8 (height, width, 3), into `pixels`.

    Raises UnusableImage with code `empty_image`, `unsupported_format`, `unsupported_encoding`, `undecodable`,
    `too_many_pixels` or `too_complex`.
    """
    started_s = time.monotonic()
    picture = _decode(data, preprocessing)
    decoded_s = time.monotonic()
    pixels[...] = resize_and_crop(picture.image, preprocessing, filled=picture.filled)
    ended_s = time.monotonic()
    return ImageTimings(decoded_s - started_s, ended_s - decoded_s, picture.height, picture.width, started_s)


def decode(data: bytes | bytearray, preprocessing: Preprocessing) -> Image.Image:
    """Decode the first frame of an image file to RGB, or to RGBX, where the fourth byte of a pixel means nothing.

    In its own size, fast or not. The image is only good until the same thread decodes another. Raises as `decode_into`.
    """
    return _decode(data, replace(preprocessing, fast=False)).image


def _decode(data: bytes | bytearray, preprocessing: Preprocessing) -> _Decoded:
    """Decode as `decode` does, but large JPEG files at a fraction of their size where that may be."""
    if data.startswith(jpeg.MAGIC):
        turn = jpeg.orientation(data, preprocessing.limits) if preprocessing.exif_orientation else _AS_IT_IS
        wanted = preprocessing.resize if preprocessing.fast and turn not in _TURNS else None
        picture = _decode_usual_jpeg(data, preprocessing.limits, wanted)
        if picture is not None:
            return picture if turn not in _TURNS else _whole(_upright(picture.image, turn))
    return _whole(decode_with_pillow(data, preprocessing))


def _whole(image: Image.Image) -> _Decoded:
    return _Decoded(image, image.height, image.width)


def decode_usual_jpeg(data: bytes | bytearray, limits: DecodeLimits) -> Image.Image | None:
    """Decode a JPEG file in grey or YCbCr to RGBX; None for any other file, or one of more pixels.

    The image is only good until the same thread decodes another. Raises UnusableImage with code `undecodable` or
    `too_complex`.
    """
    picture = _decode_usual_jpeg(data, limits)
    return None if picture is None else picture.image


def _decode_usual_jpeg(
    data: bytes | bytearray, limits: DecodeLimits, wanted: tuple[int, int] | None = None
) -> _Decoded | None:
    """Do what `decode_usual_jpeg` does, at the least size that is good for a resize to `wanted` where that is given."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # no JPEG, or subsampled in a way that simplejpeg has no name for
        return None
    if colorspace not in _USUAL_COLORSPACES or width * height > limits.max_pixels:
        return None
    jpeg.check_scans(data, width, height, limits)
    if not data.endswith(jpeg.END) and not jpeg.is_whole(data, limits):
        return None  # it depends on the last bits whether Pillow takes it
    divisor = 1 if wanted is None else _divisor((height, width), wanted)
    rows, columns = -(-height // divisor), -(-width // divisor)
    # Four bytes a pixel are what Pillow has inside: it takes them over as they lie.
    size_bytes = 4 * rows * columns
    rgbx = _kept.memory(size_bytes) or np.empty(size_bytes, np.uint8)
    size = {"min_height": rows, "min_width": columns, "min_factor": divisor}
    try:
        simplejpeg.decode_jpeg(data, "RGBX", fastdct=False, fastupsample=False, buffer=rgbx, **size)
    except ValueError as error:
        # The library reports its first warning when all is decoded, and what it stopped for in the same way.
        if not str(error).startswith(_JPEG_WARNINGS):
            return None
        if not jpeg.is_whole(data, limits):
            raise corrupt() from error
    image = Image.frombuffer("RGBX", (columns, rows), rgbx, "raw", "RGBX", 0, 1)
    return _Decoded(image, height, width, divisor)


def _divisor(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return by what an image of `size` may be divided so that enough of it is left to be resized to `wanted`.

    The library has other fractions as well, of eighths, and these are far off.
    """
    for divisor in _DIVISORS:
        if all(side >= _LEFT_TO_RESIZE * divisor * least for side, least in zip(size, wanted, strict=True)):
            return divisor
    return 1


def decode_with_pillow(data: bytes | bytearray, preprocessing: Preprocessing) -> Image.Image:
    """Decode any format; raises as `decode_into`."""
    essence = formats.essence(data, preprocessing.limits)
    image = _opened(essence, preprocessing.limits)
    if essence.crop is not None:
        image = image.crop(essence.crop)
    return _upright(image, essence.orientation) if preprocessing.exif_orientation else image


def _opened(essence: Essence, limits: DecodeLimits) -> Image.Image:
    try:
        with Image.open(io.BytesIO(essence.data), formats=[essence.form]) as image:
            limits.check_pixels(image.width, image.height)
            return as_rgb(image, essence.grey, essence.kind)
    except UnusableImage:
        raise
    except UnidentifiedImageError as error:
        raise (not_taken(essence.kind) if essence.kind else corrupt()) from error
    except Exception as error:  # a corrupt file makes Pillow's plugins raise nearly anything, down to struct.error
        if str(error).startswith(_PILLOW_DOES_NOT_KNOW):
            raise not_taken(essence.kind or f"This kind of {essence.form}") from error
        raise corrupt() from error


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def resize_and_crop(
    image: Image.Image, preprocessing: Preprocessing, *, filled: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Resize an RGB or RGBX image and cut the centre out, giving uint8 (height, width, 3).

    `filled` is the height and width of its part that is resized, from its upper left corner; left out, all of it.
    """
    size, origin, crop = preprocessing.resize, preprocessing.crop_origin, preprocessing.crop
    resized = bicubic.resized(image, size, origin, crop, filled=filled)
    return resize_and_crop_with_pillow(image, preprocessing, filled=filled) if resized is None else resized


def resize_and_crop_with_pillow(
    image: Image.Image, preprocessing: Preprocessing, *, filled: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Do the same as `resize_and_crop`, by Pillow alone."""
    (resize_height, resize_width), (height, width) = preprocessing.resize, preprocessing.crop
    top, left = preprocessing.crop_origin
    if filled is not None and filled != (image.height, image.width):
        box = (0.0, 0.0, filled[1], filled[0])
        resized = image.resize((resize_width, resize_height), Image.Resampling.BICUBIC, box=box)
        crop = resized.crop((left, top, left + width, top + height))
    elif _crop_resizes_alike(image, preprocessing):
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
