"""Memory on a device and on the host beside it: where tensors lie, and how running out of it is recognised."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from service.engine.runtime.library import ort
from service.engine.types import Pixels


class Memory:
    """Tensors on one device, and on the host beside it."""

    def __init__(self, kind: Literal["cpu", "cuda"], index: int) -> None:
        self.kind = kind
        self.index = index

    def on_device(self, shape: Sequence[int], dtype: Any) -> Any:
        """Return an uninitialised tensor in the device's memory."""
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, self.kind, self.index)

    def on_host(self, shape: Sequence[int], dtype: Any) -> Any:
        """Return an uninitialised tensor in the host's memory: pinned, where the device is a GPU."""
        if self.kind == "cpu":
            return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype)
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, memory_info=_pinned(self.index))

    def staging(self, size_bytes: int) -> Pixels:
        """Return a zeroed array (size_bytes,) to gather images in, pinned where the device is a GPU."""
        if self.kind == "cpu":
            return np.zeros(size_bytes, np.uint8)
        array: Pixels = self.on_host((size_bytes,), np.uint8).numpy()
        array[...] = 0
        return array

    @property
    def shrinkage(self) -> dict[str, str]:
        """The run configuration that hands back what the runtime's arena there holds and does not use."""
        arena = "cpu:0" if self.kind == "cpu" else f"gpu:{self.index}"
        return {"memory.enable_memory_arena_shrinkage": arena}


@functools.cache
def _pinned(index: int) -> Any:
    """Let the runtime allocate pinned memory for that GPU, and return the name under which it does."""
    state = ort.capi.onnxruntime_pybind11_state
    place = state.OrtMemoryInfo(
        "CudaPinned", state.OrtAllocatorType.ORT_DEVICE_ALLOCATOR, index, state.OrtMemType.CPU_OUTPUT
    )
    # The arena's defaults: no limit, growth as the runtime sees fit.
    state.create_and_register_allocator_v2("CUDAExecutionProvider", place, {}, state.OrtArenaCfg(0, -1, -1, -1))
    return place


_OUT_OF_MEMORY = (
    "Failed to allocate memory for requested buffer",  # the runtime's arena, when the device has no more
    "is smaller than requested bytes",  # the same, at its own limit (gpu_mem_limit)
    "out of memory",  # CUDA itself
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "bad_alloc",
)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether the runtime ran out of memory. It has no exception for that, and says it only in words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
