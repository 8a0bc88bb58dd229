"""Arrays as bytes and text on the wire; all binary forms are little-endian and row-major."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed, InvalidParameter

Tensor: TypeAlias = NDArray[np.float32] | NDArray[np.float16]

_DIGITS = {"float32": 9, "float16": 5}
"""Significant decimal digits from which a number of that type is read back exactly."""


def narrowed(array: NDArray[np.float32], dtype: Literal["float32", "float16"]) -> Tensor:
    """Return a float32 array as `dtype`; raises InvalidParameter where float16 cannot hold a value."""
    if dtype == "float32":
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float16)
    if np.isinf(narrow).any() and not np.isinf(array).any():
        raise InvalidParameter("dtype: the values are too large for float16; ask for float32.")
    return narrow


def as_raw(array: NDArray[Any]) -> bytes:
    """Return the bytes of an array."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def as_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an uncompressed NumPy archive, as np.load reads it."""
    archive = io.BytesIO()
    np.savez(
        archive,
        allow_pickle=False,
        **{name: np.asarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()},
    )
    return archive.getvalue()


def as_base64(array: Tensor) -> str:
    """Return the JSON text of an array as base64, with what is needed to read it back."""
    data = base64.b64encode(as_raw(array)).decode("ascii")
    return json.dumps({"dtype": str(array.dtype), "shape": array.shape, "data": data})


def as_json_text(array: Tensor) -> str:
    """Return the JSON text of an array as nested lists that read back exactly.

    Raises InferenceFailed where a value is not a finite number, which JSON cannot hold.
    """
    if not np.isfinite(array).all():
        raise InferenceFailed("The model's answer holds values that are not finite numbers.")
    return _nested(array, f"%.{_DIGITS[str(array.dtype)]}g")


def _nested(array: NDArray[Any], number: str) -> str:
    parts = [number % value for value in array.tolist()] if array.ndim == 1 else [_nested(row, number) for row in array]
    return f"[{','.join(parts)}]"
