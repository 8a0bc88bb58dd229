"""The library of ONNX Runtime's operators of the domain `dat`, built.

    options.register_custom_ops_library(str(dat_operators.library()))

It has each operator for the CPU, as a reference, and for NVIDIA's GPUs, if kernels were built in.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

__all__ = ["VERSION", "library", "missing"]

VERSION = 1
"""Of the operators, which graphs name beside the domain `dat`."""
_TEXT_BYTES = 8192


def library() -> Path:
    """Return the shared library, which `SessionOptions.register_custom_ops_library` takes."""
    return Path(__file__).with_name("libdat_operators.so")


def missing(device_index: int) -> str | None:
    """Return what a CUDA device lacks to run the kernels, in a sentence without a full stop; None if nothing.

    That may be the driver or its version, the device itself, its compute capability, or the kernels, where none were
    built in. It does not say whether there is one for the sizes of a graph: opening the graph does. The driver is
    initialised in this process, so that CUDA is of no use in processes that are forked from it afterwards. Raises
    OSError where the library cannot be loaded.
    """
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    lacking = _loaded().dat_operators_missing(device_index, text, len(text))
    return text.value.decode(errors="replace") if lacking else None


@cache
def _loaded() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library()))
    loaded.dat_operators_missing.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    loaded.dat_operators_missing.restype = ctypes.c_size_t
    return loaded
