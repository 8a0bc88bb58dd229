"""Pillow's bicubic resize, bit for bit, by the library of `service.images.native`, in a fifth of Pillow's time.

The library is loaded once, and compared with Pillow before it is used. Where it was not built, or the processor or an
image is not one for it, there is no result, and the caller asks Pillow, which gives the same pixels.

Pixels are read where Pillow has them, by its Arrow interface: no image is copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.native import LIBRARY

_DONE, _NO_MEMORY = 0, 1
_PIXEL_BYTES = 4
_FOUR_BYTES_A_PIXEL = ("RGB", "RGBX")
"""Modes whose pixels Pillow has as red, green, blue and a byte that means nothing."""
_COMPARED = (((90, 70), (37, 33)), ((40, 200), (31, 29)))
"""Sizes (width, height) from and to which library and Pillow are compared: one in each order of the two passes."""

_Resize: TypeAlias = Callable[..., int]


class _ArrowArray(ctypes.Structure):
    """The Arrow C data interface's `ArrowArray`."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Loaded:
    """The library's function, where it is in use."""

    resize: _Resize | None = None


def load(path: Path = LIBRARY) -> str | None:
    """Have `resized` use the library at `path`; return why it cannot, as a sentence, None where it does.

    For a process's start: what runs in other threads meanwhile may get either way's pixels, which are the same.
    """
    _Loaded.resize = None
    try:
        library = ctypes.CDLL(str(path))
        runs_here = library.dat_bicubic_runs_here()
    except (OSError, AttributeError) as error:
        return (
            f"Pillow resizes: python -m service.images.native has not made {path.name}, or it does not load ({error})."
        )
    if not runs_here:
        return "Pillow resizes: the processor has no AVX2."
    resize = library.dat_bicubic
    resize.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_int] * 2,
        *[ctypes.c_double] * 2,
        *[ctypes.c_int] * 6,
        ctypes.c_void_p,
    ]
    if not all(_gives_pillows(resize, own, other) for own, other in _COMPARED):
        return f"Pillow resizes: {path.name} was made for another version of Pillow, and gives other pixels."
    _Loaded.resize = resize
    return None


def resized(
    image: Image.Image,
    size: tuple[int, int],
    origin: tuple[int, int],
    crop: tuple[int, int],
    *,
    filled: tuple[float, float] | None = None,
) -> NDArray[np.uint8] | None:
    """Return the part `crop` at `origin` of an RGB or RGBX image resized to `size`, uint8 (height, width, 3).

    All are (height, width), or (top, left), in pixels. Of the image the part `filled` is resized, from its upper left
    corner; left out, all of it. None where Pillow has to be asked. Raises MemoryError.
    """
    if _Loaded.resize is None:
        return None
    return _resized(_Loaded.resize, image, size, origin, crop, filled or (image.height, image.width))


def _resized(
    resize: _Resize,
    image: Image.Image,
    size: tuple[int, int],
    origin: tuple[int, int],
    crop: tuple[int, int],
    filled: tuple[float, float],
) -> NDArray[np.uint8] | None:
    if image.mode not in _FOUR_BYTES_A_PIXEL or size == filled:
        return None  # where nothing is to be resized, Pillow only copies
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:  # a large image that Pillow has in several pieces of memory
        return None
    # The capsule keeps the pixels; they are the one child, whose second buffer has the values.
    array = ctypes.cast(_pointer_in(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    pixels = array.children[0].contents
    if pixels.length != image.width * image.height * _PIXEL_BYTES:
        return None
    out = np.empty((*crop, 3), np.uint8)
    (height, width), (top, left), (crop_height, crop_width) = size, origin, crop
    status = resize(
        *(pixels.buffers[1], image.width, image.height, filled[1], filled[0]),
        *(width, height, left, top, crop_width, crop_height, out.ctypes.data),
    )
    if status == _NO_MEMORY:
        raise MemoryError
    return out if status == _DONE else None


def _gives_pillows(resize: _Resize, own: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether noise of one size is resized to the other as Pillow does it."""
    noise = np.random.default_rng(0).integers(0, 256, (own[1], own[0], 3), np.uint8)
    image = Image.fromarray(noise)
    size = other[1], other[0]
    given = _resized(resize, image, size, (0, 0), size, (own[1], own[0]))
    return given is not None and np.array_equal(given, np.asarray(image.resize(other, Image.Resampling.BICUBIC)))
