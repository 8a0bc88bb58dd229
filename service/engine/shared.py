"""The slots of one worker, in memory that it shares with the engines.

The memory is anonymous (memfd) and handed over by descriptor: it has no name in any file system, does not count
against /dev/shm, and is gone when the last process that holds it is, however that one ended. It is made anew for every
worker that is started, and mapped by it and by every engine:

    states    slots x uint8                             who owns a slot: the states of `slots`
    pixels    slots x (height, width, 3) uint8          written by the worker, read by an engine
    results   slots x (each output) float32             written by an engine, read by the worker

Each part, and each slot's results, begin on a page; a slot has room for every output of every graph. The operating
system provides a page when it is first touched; pages of large outputs are given back as soon as they have been read.
Whoever owns a slot, and nobody else, touches its pixels and results. Since a worker's successor gets memory of its
own, nothing that an engine still does for a dead worker can touch a living one's images; the dead one's memory goes
when the engines have let go of it.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.graphs import Graph
from service.engine.slots import SlotPool
from service.engine.types import Outputs

SLOW_COPY_BYTES = 256 * 1024
"""Results of one image from this size on are copied in a thread, and their pages are given back."""

_FLOAT_BYTES = 4
_MOST_OUTPUTS = 64
"""As many as the number in a record has bits."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What determines a worker's memory: its slots, their images, and the graphs whose outputs come back.

    Raises ValueError where a graph has more outputs than a record has bits for.
    """

    slots: int
    input_shape: tuple[int, int, int]
    graphs: tuple[Graph, ...]

    def __post_init__(self) -> None:
        for graph in self.graphs:
            if len(graph.outputs) > _MOST_OUTPUTS:
                raise ValueError(f"a graph may have {_MOST_OUTPUTS} outputs, and {graph.key} has {len(graph.outputs)}")

    @property
    def outputs(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        """Every output and its shape, in the order in which a slot has them.

        The smallest of the first graph come first and share a page: that page is all that a classification touches.
        """
        return [
            output
            for graph in self.graphs
            for output in sorted(graph.outputs.items(), key=lambda output: math.prod(output[1]))
        ]


class SharedSlots(SlotPool):
    """One worker's slots, mapped into this process: the worker's side of them, or an engine's."""

    def __init__(self, geometry: Geometry, descriptor: int) -> None:
        """Map what `create` made; the descriptor may be closed afterwards."""
        self.geometry = geometry
        slots, image_bytes = geometry.slots, math.prod(geometry.input_shape)
        pixels_at, self._results_at, self._stride, size = _layout(geometry)
        self._map = mmap.mmap(descriptor, size)
        pixels = np.frombuffer(self._map, np.uint8, slots * image_bytes, pixels_at)
        super().__init__(
            slots,
            geometry.input_shape,
            pixels=pixels.reshape(slots, *geometry.input_shape),
            states=np.frombuffer(self._map, np.uint8, slots),
        )
        self._results: dict[str, NDArray[np.float32]] = {}
        self._bytes = {name: _bytes(shape) for name, shape in geometry.outputs}
        at = self._results_at
        for name, shape in geometry.outputs:
            strides = (self._stride, *np.empty(shape, np.float32).strides)
            self._results[name] = np.ndarray((slots, *shape), np.float32, self._map, at, strides)
            at += self._bytes[name]

    @staticmethod
    def create(geometry: Geometry) -> int:
        """Return the descriptor of new memory; takes room only as it is touched."""
        descriptor = os.memfd_create("dat-serve-slots", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _layout(geometry)[-1])
        return descriptor

    def deliver(self, slot: int, outputs: Outputs) -> None:
        """Engine: leave a RUNNING slot's outputs in the memory, from where its worker will fetch them."""
        for name, values in outputs.items():
            self._results[name][slot] = values

    def is_slow_to_fetch(self, outputs: Iterable[str]) -> bool:
        """Return whether so many results of one image are better fetched in a thread."""
        return sum([self._bytes[name] for name in outputs]) >= SLOW_COPY_BYTES

    def fetch(self, slot: int, outputs: Iterable[str]) -> None:
        """Worker: copy a DONE slot's outputs for `collect`, and give the memory of large ones back; any thread."""
        self._delivered[slot] = {name: self._results[name][slot].copy() for name in outputs}
        self.discard(slot, outputs)

    def discard(self, slot: int, outputs: Iterable[str]) -> None:
        """Worker: give the memory of large outputs back, whether or not they were fetched; any thread."""
        if self.is_slow_to_fetch(outputs):
            self._map.madvise(mmap.MADV_REMOVE, self._results_at + slot * self._stride, self._stride)


def _bytes(shape: Sequence[int]) -> int:
    return math.prod(shape) * _FLOAT_BYTES


def _layout(geometry: Geometry) -> tuple[int, int, int, int]:
    """Return where pixels and results begin, the bytes of one slot's results, and the bytes of all."""
    pixels_at = _whole_pages(geometry.slots)
    results_at = pixels_at + _whole_pages(geometry.slots * math.prod(geometry.input_shape))
    stride = _whole_pages(sum(_bytes(shape) for _, shape in geometry.outputs))
    return pixels_at, results_at, stride, results_at + geometry.slots * stride


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
