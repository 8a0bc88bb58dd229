"""The input tensor `image` as the images of a request.

`UINT8` pixels are the model's input as they are. `FP32` and `FP16` pixels are the same numbers in another type, and
taken only where every one is whole and from 0 to 255: anything else would have to be rounded, and the answer would be
another image's. `BYTES` hold image files, which are decoded, resized and cropped as everywhere.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.calls.inference import ImageSource
from service.calls.upload import Upload
from service.errors import MalformedRequest, TooLarge
from service.images.limits import UnusableImage
from service.images.preprocessing import ImageTimings, Preprocessing
from service.model.sizes import InputSizes
from service.protocol.schemas import InferInput

INPUT = "image"
BYTES = "BYTES"
IMAGE_DATATYPE = "X-Image-Datatype"
"""A header: `BYTES` where a caller that cannot say so elsewhere sends image files."""
PIXEL_TYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
DATATYPES = (*PIXEL_TYPES, BYTES)


@dataclass(frozen=True, slots=True)
class PixelImage:
    """An image that was sent as pixels of the model's size; numbers of any type, (height, width, 3)."""

    index: int
    pixels: NDArray[Any]

    @property
    def size_bytes(self) -> int:
        """How many bytes the pixels have."""
        return self.pixels.nbytes

    def digest(self) -> bytes:
        """Return the SHA-256 of the pixels with their type and shape, which none of a file is like."""
        what = f"{self.pixels.dtype.str}{self.pixels.shape}".encode()
        return what + hashlib.sha256(np.ascontiguousarray(self.pixels).data).digest()

    def write(self, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> ImageTimings:  # noqa: ARG002
        """Copy the pixels; raises UnusableImage where a number is not whole or not from 0 to 255."""
        started_s = time.monotonic()
        with np.errstate(invalid="ignore"):  # what does not fit differs afterwards, and so does what is no number
            np.copyto(pixels, self.pixels, casting="unsafe")
        if self.pixels.dtype != np.uint8 and not np.array_equal(pixels, self.pixels):
            raise UnusableImage("inexact_pixels", "The pixels are not all whole numbers from 0 to 255.")
        height, width, _ = pixels.shape
        return ImageTimings(0.0, time.monotonic() - started_s, height, width, started_s)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the images of a request may be."""

    sizes: InputSizes
    max_images: int

    @property
    def own_shape(self) -> tuple[int, int, int]:
        """The shape of one image's pixels, where nothing else is said."""
        return (*self.sizes.own, 3)


def expects_files(headers: Mapping[str, str]) -> bool:
    """Return whether a header says that `image` is to hold files; raises MalformedRequest for any other type."""
    datatype = headers.get(IMAGE_DATATYPE.lower(), "UINT8")
    if datatype not in ("UINT8", BYTES):
        raise MalformedRequest(f"{IMAGE_DATATYPE} is UINT8 or {BYTES}, not {datatype!r}.")
    return datatype == BYTES


def check_input(tensor: InferInput, limits: ImageLimits) -> None:
    """Raise MalformedRequest, or TooLarge, unless a tensor's name, type and shape are those of images."""
    if tensor.name != INPUT:
        raise MalformedRequest(f"There is no input {tensor.name!r}; the model's only input is {INPUT!r}.")
    if tensor.datatype not in DATATYPES:
        raise MalformedRequest(
            f"The input {INPUT!r} cannot be {tensor.datatype!r}; it can be {', '.join(DATATYPES[:-1])} or {BYTES}."
        )
    batch, *rest = tensor.shape or [0]
    if tensor.datatype == BYTES:
        fits, expected = rest in ([], [1]), "[batch] or [batch, 1]"
    else:
        fits, expected = _are_pixels(rest, limits.sizes), _pixels_expected(limits.sizes)
    if batch < 1 or not fits:
        raise MalformedRequest(f"The shape of {tensor.datatype} {INPUT!r} is {tensor.shape}, not {expected}.")
    if batch > limits.max_images:
        raise TooLarge(f"The request has more than {limits.max_images} images.")


def _are_pixels(shape: list[int], sizes: InputSizes) -> bool:
    """Whether a shape without its batch axis is that of an image that is taken."""
    return len(shape) == 3 and shape[2] == 3 and min(shape) > 0 and sizes.refusal((shape[0], shape[1])) is None


def _pixels_expected(sizes: InputSizes) -> str:
    if not sizes.is_free:
        return f"[batch, {sizes.own[0]}, {sizes.own[1]}, 3]"
    return f"[batch, height, width, 3], where {sizes.description}"


def images_from_binary(tensor: InferInput, data: memoryview) -> Sequence[ImageSource]:
    """Return the images of a checked tensor whose values are little-endian bytes; raises MalformedRequest."""
    if tensor.datatype == BYTES:
        return uploads(_elements(data, tensor.shape[0]))
    dtype = PIXEL_TYPES[tensor.datatype]
    expected_bytes = math.prod(tensor.shape) * dtype.itemsize
    if len(data) != expected_bytes:
        raise MalformedRequest(
            f"{tensor.datatype} {INPUT!r} of shape {tensor.shape} takes {expected_bytes} bytes, not {len(data)}."
        )
    return pixel_images(np.frombuffer(data, dtype).reshape(tensor.shape))


def uploads(files: Sequence[bytes]) -> list[Upload]:
    """Return image files as images."""
    return [Upload(index, None, file) for index, file in enumerate(files)]


def pixel_images(batch: NDArray[Any]) -> list[PixelImage]:
    """Return the images of a batch of numbers, (batch, height, width, 3)."""
    return [PixelImage(index, pixels) for index, pixels in enumerate(batch)]


def _elements(data: memoryview, count: int) -> list[bytes]:
    """Return the elements of a BYTES tensor, each of which follows its length."""
    elements: list[bytes] = []
    position = 0
    while position < len(data) and len(elements) < count:
        if len(data) - position < 4:
            break
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        if length > len(data) - position:
            raise MalformedRequest(
                f"Element {len(elements)} of {INPUT!r} should have {length} bytes; {len(data) - position} are left."
            )
        elements.append(bytes(data[position : position + length]))
        position += length
    if len(elements) != count or position != len(data):
        raise MalformedRequest(
            f"The bytes of {INPUT!r} hold {len(elements)} whole elements and {len(data) - position} bytes more, "
            f"not {count} elements."
        )
    return elements
