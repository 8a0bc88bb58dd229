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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedRequest, TooLarge
from service.http.bodies.base64_text import from_base64
from service.http.bodies.uploads import Upload
from service.http.inference import ImageSource
from service.http.routes.v2.schemas import InferInput
from service.images.limits import UnusableImage
from service.images.preprocessing import ImageTimings, Preprocessing
from service.model.sizes import InputSizes

INPUT = "image"
BYTES = "BYTES"
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
        return [Upload(index, None, file) for index, file in enumerate(_elements(data, tensor.shape[0]))]
    dtype = PIXEL_TYPES[tensor.datatype]
    expected_bytes = math.prod(tensor.shape) * dtype.itemsize
    if len(data) != expected_bytes:
        raise MalformedRequest(
            f"{tensor.datatype} {INPUT!r} of shape {tensor.shape} takes {expected_bytes} bytes, not {len(data)}."
        )
    return _pixel_images(np.frombuffer(data, dtype).reshape(tensor.shape))


def images_from_json(tensor: InferInput) -> Sequence[ImageSource]:
    """Return the images of a checked tensor whose values are in the JSON; raises MalformedRequest."""
    if not isinstance(tensor.data, list):
        raise MalformedRequest(f"The input {INPUT!r} has no data: neither a list in 'data' nor 'binary_data_size'.")
    if tensor.datatype == BYTES:
        return [Upload(index, None, file) for index, file in enumerate(_files(tensor))]
    try:
        numbers = np.array(tensor.data)
    except (ValueError, TypeError, OverflowError) as error:  # nested unevenly, too deeply, or of too large numbers
        raise MalformedRequest(f"The data of {INPUT!r} are not numbers in lists of even length.") from error
    if numbers.dtype.kind not in "iuf":
        raise MalformedRequest(f"The data of {INPUT!r} are not numbers, or not all within 64 bits.")
    if numbers.shape not in (tuple(tensor.shape), (math.prod(tensor.shape),)):
        raise MalformedRequest(
            f"The data of {INPUT!r} are nested as {list(numbers.shape)}; they should be flat, or {tensor.shape}."
        )
    return _pixel_images(numbers.reshape(tensor.shape))


def _pixel_images(batch: NDArray[Any]) -> list[PixelImage]:
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


def _files(tensor: InferInput) -> list[bytes]:
    files = tensor.data
    if len(tensor.shape) == 2 and all(isinstance(row, list) and len(row) == 1 for row in files):
        files = [row[0] for row in files]
    if len(files) != tensor.shape[0]:
        raise MalformedRequest(f"The data of BYTES {INPUT!r} are {len(files)} elements, not {tensor.shape[0]}.")
    for index, file in enumerate(files):
        if not isinstance(file, str):
            raise MalformedRequest(f"Element {index} of {INPUT!r} is no string; a file is the string of its base64.")
    return [from_base64(file, f"Element {index} of {INPUT!r}") for index, file in enumerate(files)]
