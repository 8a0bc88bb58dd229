"""Arrays of an answer in the type that was asked for, and as bytes: little-endian and row-major."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed, InvalidParameter

Tensor: TypeAlias = NDArray[np.float32] | NDArray[np.float16]


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


def check_finite(array: Tensor) -> None:
    """Raise InferenceFailed where a value is not a finite number: text has none for it."""
    if not np.isfinite(array).all():
        raise InferenceFailed("The model's answer holds values that are not finite numbers.")
