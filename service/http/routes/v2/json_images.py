"""The images of a tensor whose values are in the JSON: pixels as numbers, files as base64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.calls.base64_text import from_base64
from service.calls.inference import ImageSource
from service.errors import MalformedRequest
from service.protocol.images import BYTES, INPUT, pixel_images, uploads
from service.protocol.schemas import InferInput


def images_from_json(tensor: InferInput) -> Sequence[ImageSource]:
    """Return the images of a checked tensor whose values are in the JSON; raises MalformedRequest."""
    if not isinstance(tensor.data, list):
        raise MalformedRequest(f"The input {INPUT!r} has no data: neither a list in 'data' nor 'binary_data_size'.")
    if tensor.datatype == BYTES:
        return uploads(_files(tensor))
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
    return pixel_images(numbers.reshape(tensor.shape))


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
