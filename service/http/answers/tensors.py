"""Arrays as archives and text on the wire; all binary forms are little-endian and row-major."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.calls.tensors import Tensor, as_raw, check_finite
from service.http.answers.schemas import EncodedTensor

_PIECE_VALUES = 32 * 1024
"""About as many numbers are rendered in one call, which keeps the interpreter from others for a millisecond or two."""
_FLOAT16_DIGITS = 5
"""Significant decimal digits from which a float16 is read back exactly."""


def as_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an uncompressed NumPy archive, as np.load reads it."""
    archive = io.BytesIO()
    np.savez(
        archive,
        allow_pickle=False,
        **{name: np.asarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()},
    )
    return archive.getvalue()


def as_base64(array: Tensor) -> EncodedTensor:
    """Return an array as base64, with what is needed to read it back."""
    return EncodedTensor(str(array.dtype), list(array.shape), as_base64_text(array))


def as_base64_text(array: Tensor) -> str:
    """Return the bytes of an array as base64."""
    return base64.b64encode(as_raw(array)).decode("ascii")


def as_json(array: Tensor) -> orjson.Fragment:
    """Return an array of one axis or more as JSON, nested lists that read back exactly; raises as `as_json_bytes`."""
    return orjson.Fragment(as_json_bytes(array))


def as_json_bytes(array: Tensor) -> bytes:
    """Return the JSON of an array of one axis or more: nested lists of the shortest numbers that read back exactly.

    Raises InferenceFailed where a value is not a finite number, which JSON cannot hold.
    """
    check_finite(array)
    return b"[%b]" % b",".join(_pieces(array))


def _pieces(array: Tensor) -> Iterator[bytes]:
    """Yield the JSON of an array's elements, as many at a time as make a piece; at most one row of a larger one."""
    step = max(_PIECE_VALUES * len(array) // max(array.size, 1), 1)
    for begin in range(0, len(array), step):
        piece = array[begin : begin + step]
        numbers = _shortened(piece) if piece.dtype == np.float16 else np.ascontiguousarray(piece)
        yield orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _shortened(array: Tensor) -> NDArray[np.float64]:
    """Return the numbers of few digits that stand for float16 ones; as float32 they would have half as many again."""
    wide = array.astype(np.float64, order="C")
    magnitude = np.floor(np.log10(np.maximum(np.abs(wide), np.finfo(np.float16).smallest_subnormal)))
    scale = 10.0 ** (_FLOAT16_DIGITS - 1 - magnitude)  # a whole number that a float64 holds exactly
    shortened: NDArray[np.float64] = np.rint(wide * scale) / scale
    return shortened
