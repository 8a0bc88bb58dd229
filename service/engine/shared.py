"""The slots of one worker, in memory that it shares with the engines.

The memory is anonymous (memfd) and handed over by descriptor: it has no name in any file system, does not count
against /dev/shm, and is gone when the last process that holds it is, however that one ended. It is made anew for every
worker that is started, and mapped by it and by every engine:

    states    slots x uint8                             who owns a slot: the states of `slots`
    pixels    slots x (the largest image) uint8         written by the worker, read by an engine
    results   slots x (each output) float32             written by an engine, read by the worker

Each part, and each slot's results, begin on a page; a slot has room for every output of every graph, at every shape of
image that is taken. The operating system provides a page when it is first touched; pages of large outputs, and all
those of images of other shapes than the model's own, are given back as soon as they have been read.
Whoever owns a slot, and nobody else, touches its pixels and results. Since a worker's successor gets memory of its
own, nothing that an engine still does for a dead worker can touch a living one's images; the dead one's memory goes
when the engines have let go of it.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.costs import MOST_SHAPES
from service.engine.graphs import Graph, largest_pixels
from service.engine.slots import SlotPool, slot_bytes, whole_pages
from service.engine.types import Outputs, Shape, pixels_of

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
    def own(self) -> Shape:
        """The shape of the model's own images."""
        return self.input_shape[:2]

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest image that is taken."""
        return largest_pixels(self.graphs, self.own)

    @property
    def outputs(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        """Every output and its shape for the model's own images, in the order in which a slot has them."""
        return [output for graph in self.graphs for output in _in_order(graph.outputs)]

    @property
    def result_bytes(self) -> int:
        """The most that the results of one image take in its slot."""
        own = sum(_bytes(shape) for _, shape in self.outputs)
        return max([own, *(graph.free.max_output_bytes for graph in self.graphs if graph.free is not None)])


class _Place(NamedTuple):
    """Where an output lies in a slot's results: bytes from their beginning, and its shape."""

    at: int
    shape: tuple[int, ...]


class SharedSlots(SlotPool):
    """One worker's slots, mapped into this process: the worker's side of them, or an engine's."""

    def __init__(self, geometry: Geometry, descriptor: int) -> None:
        """Map what `create` made; the descriptor may be closed afterwards."""
        self.geometry = geometry
        slots, each = geometry.slots, slot_bytes(pixels_of(geometry.own), geometry.max_pixels)
        self._pixels_at, self._results_at, self._stride, size = _layout(geometry)
        self._map = mmap.mmap(descriptor, size)
        memory = np.frombuffer(self._map, np.uint8, slots * each, self._pixels_at)
        super().__init__(
            slots,
            geometry.input_shape,
            max_pixels=geometry.max_pixels,
            memory=memory.reshape(slots, each),
            states=np.frombuffer(self._map, np.uint8, slots),
        )
        self._results: dict[str, NDArray[np.float32]] = {}
        self._bytes = {name: _bytes(shape) for name, shape in geometry.outputs}
        at = self._results_at
        for name, shape in geometry.outputs:
            strides = (self._stride, *np.empty(shape, np.float32).strides)
            self._results[name] = np.ndarray((slots, *shape), np.float32, self._map, at, strides)
            at += self._bytes[name]
        # Not of a method of this object, which would then hold itself, and its memory, until the collector comes by.
        self._places_at = lru_cache(MOST_SHAPES)(partial(_find_places, geometry))

    @staticmethod
    def create(geometry: Geometry) -> int:
        """Return the descriptor of new memory; takes room only as it is touched."""
        descriptor = os.memfd_create("dat-serve-slots", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _layout(geometry)[-1])
        return descriptor

    def deliver(self, slot: int, shape: Shape, outputs: Outputs) -> None:
        """Engine: leave a RUNNING slot's outputs in the memory, from where its worker will fetch them."""
        for name, values in outputs.items():
            self._result(slot, shape, name)[...] = values

    def is_slow_to_fetch(self, shape: Shape, outputs: Iterable[str]) -> bool:
        """Return whether so many results of one image of a shape are better fetched in a thread."""
        return self._result_bytes(shape, outputs) >= SLOW_COPY_BYTES

    def fetch(self, slot: int, shape: Shape, outputs: Iterable[str]) -> None:
        """Worker: copy a DONE slot's outputs for `collect`, and give the memory of large ones back; any thread."""
        self._delivered[slot] = {name: self._result(slot, shape, name).copy() for name in outputs}
        self.discard(slot, shape, outputs)

    def discard(self, slot: int, shape: Shape, outputs: Iterable[str]) -> None:
        """Worker: give the memory of large outputs back, whether or not they were fetched; any thread.

        That of images of another shape than the model's own is given back whatever its size: it lies elsewhere in the
        slot for each shape, and would be left in all of it.
        """
        at = self._results_at + slot * self._stride
        if shape != self.own_shape:
            places = self._places_at(shape)
            end = max(places[name].at + _bytes(places[name].shape) for name in outputs)
            self._map.madvise(mmap.MADV_REMOVE, at, whole_pages(end))
        elif self.is_slow_to_fetch(shape, outputs):
            self._map.madvise(mmap.MADV_REMOVE, at, self._stride)

    def _result(self, slot: int, shape: Shape, name: str) -> NDArray[np.float32]:
        """Return where an output of the image in a slot lies."""
        if shape == self.own_shape:
            own: NDArray[np.float32] = self._results[name][slot]
            return own
        place = self._places_at(shape)[name]
        at = self._results_at + slot * self._stride + place.at
        return np.ndarray(place.shape, np.float32, self._map, at)

    def _result_bytes(self, shape: Shape, outputs: Iterable[str]) -> int:
        if shape == self.own_shape:
            return sum([self._bytes[name] for name in outputs])
        places = self._places_at(shape)
        return sum([_bytes(places[name].shape) for name in outputs])

    def _give_back(self, at: int, size: int) -> None:
        self._map.madvise(mmap.MADV_REMOVE, self._pixels_at + at, size)


def _in_order(outputs: Mapping[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    """Return outputs as a slot has them: the smallest share a page, which is all that a classification touches."""
    return sorted(outputs.items(), key=lambda output: math.prod(output[1]))


def _bytes(shape: Sequence[int]) -> int:
    return math.prod(shape) * _FLOAT_BYTES


def _layout(geometry: Geometry) -> tuple[int, int, int, int]:
    """Return where pixels and results begin, the bytes of one slot's results, and the bytes of all."""
    pixels_at = whole_pages(geometry.slots)
    each = slot_bytes(pixels_of(geometry.own), geometry.max_pixels)
    results_at = pixels_at + whole_pages(geometry.slots * each)
    stride = whole_pages(geometry.result_bytes)
    return pixels_at, results_at, stride, results_at + geometry.slots * stride


def _find_places(geometry: Geometry, shape: Shape) -> Mapping[str, _Place]:
    """Return where the outputs lie of an image of another shape than the model's own."""
    places: dict[str, _Place] = {}
    for graph in geometry.graphs:
        if graph.free is not None and pixels_of(shape) <= graph.free.max_pixels:
            at = 0  # an image is of one graph, and each may have all of the slot
            for name, sides in _in_order(graph.free.outputs_at(shape)):
                places[name] = _Place(at, sides)
                at += _bytes(sides)
    return places
