"""Memory that the service's processes share: the slots of one worker, and the board that says how everybody is.

All of it is anonymous (memfd) and handed over by descriptor: it has no name in any file system, does not count
against /dev/shm, and is gone when the last process that holds it is, however that one ended.

A worker's memory, made anew for every worker that is started, and mapped by it and by every engine:

    states    slots x uint8                             who owns a slot: the states of `slots`
    pixels    slots x (height, width, 3) uint8          written by the worker, read by an engine
    results   slots x (each output) float32             written by an engine, read by the worker

Each part, and each slot's results, begin on a page. The operating system provides a page when it is first touched;
pages of large outputs are given back as soon as they have been read. Whoever owns a slot, and nobody else, touches
its pixels and results. Since a worker's successor gets memory of its own, nothing that an engine still does for a
dead worker can touch a living one's images; the dead one's memory goes when the engines have let go of it.

On the board each process has a row that it alone writes, number by number, and that all read without locks.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.engine.slots import SlotPool
from service.engine.types import EngineState, Outputs

LARGE_BYTES = 256 * 1024
"""Results of one image from this size on are copied in a thread, and their pages are given back."""

_FLOAT_BYTES = 4
_MOST_OUTPUTS = 64
"""As many as the number in a record has bits."""
_WAITING = 4
"""The first of the columns in which a worker says what each engine has of its."""
_STATES = tuple(EngineState)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What determines a worker's memory: its slots, their images, and the outputs by name, their batch axis left out.

    `outputs` are the model's own, `explain` those of the graph that says where it looked. Raises ValueError where they
    are more than a record has bits for.
    """

    slots: int
    input_shape: tuple[int, int, int]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    explain: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if len(self._names) > _MOST_OUTPUTS:
            raise ValueError(f"a model may have {_MOST_OUTPUTS} outputs in all, not {len(self._names)}")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output of the model."""
        return tuple(name for name, _ in self.outputs)

    @property
    def explain_names(self) -> tuple[str, ...]:
        """Every output that says where the model looked."""
        return tuple(name for name, _ in self.explain)

    @property
    def _names(self) -> tuple[str, ...]:
        """Every output there is, in an order that all processes share."""
        return self.output_names + self.explain_names

    def mask(self, outputs: Iterable[str]) -> int:
        """Return outputs as a number, one bit each."""
        names = self._names
        return sum(1 << names.index(name) for name in outputs)

    def named(self, mask: int) -> frozenset[str]:
        """Return the outputs that a number stands for."""
        return frozenset(name for bit, name in enumerate(self._names) if mask >> bit & 1)


class SlotMemory:
    """One worker's memory, mapped into this process."""

    def __init__(self, geometry: Geometry, descriptor: int) -> None:
        """Map what `create` made; the descriptor may be closed afterwards."""
        self.geometry = geometry
        slots, image_bytes = geometry.slots, math.prod(geometry.input_shape)
        pixels_at, results_at, self._stride, size = _layout(geometry)
        self._map = mmap.mmap(descriptor, size)
        self._results_at = results_at
        self.states: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8, slots)
        pixels = np.frombuffer(self._map, np.uint8, slots * image_bytes, pixels_at)
        self.pixels: NDArray[np.uint8] = pixels.reshape(slots, *geometry.input_shape)
        self._results: dict[str, NDArray[np.float32]] = {}
        at = results_at
        for name, shape in _by_size(geometry):
            strides = (self._stride, *np.empty(shape, np.float32).strides)
            self._results[name] = np.ndarray((slots, *shape), np.float32, self._map, at, strides)
            at += _bytes(shape)

    @staticmethod
    def create(geometry: Geometry) -> int:
        """Return the descriptor of new memory; takes room only as it is touched."""
        descriptor = os.memfd_create("dat-serve-slots", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _layout(geometry)[-1])
        return descriptor

    def pool(self) -> SlotPool:
        """Return this process's side of the slots."""
        geometry = self.geometry
        return SlotPool(geometry.slots, geometry.input_shape, pixels=self.pixels, states=self.states)

    def is_large(self, outputs: Iterable[str]) -> bool:
        """Return whether so many results of one image are better copied in a thread."""
        return sum(int(self._results[name][0].nbytes) for name in outputs) >= LARGE_BYTES

    def write(self, slot: int, outputs: Outputs) -> None:
        """Engine: put results into a slot; raises ValueError where one is not of the shape that was promised."""
        for name, result in outputs.items():
            place = self._results[name][slot]
            if result.shape != place.shape:
                raise ValueError(f"output {name} is {result.shape} where the model directory promises {place.shape}")
            place[...] = result

    def read(self, slot: int, outputs: Iterable[str]) -> Outputs:
        """Worker: copy results out of a slot, and give the memory of large ones back; any thread."""
        names = tuple(outputs)
        results = {name: self._results[name][slot].copy() for name in names}
        self.discard(slot, names)
        return results

    def discard(self, slot: int, outputs: Iterable[str]) -> None:
        """Worker: give the memory of large results back, whether or not they were read; any thread."""
        if self.is_large(outputs):
            self._map.madvise(mmap.MADV_REMOVE, self._results_at + slot * self._stride, self._stride)


class _Number:
    """One place of a row: a number, or None."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, row: _Row, _: type[_Row]) -> float | None:
        value = float(row.numbers[self._place])
        return None if math.isnan(value) else value

    def __set__(self, row: _Row, value: float | None) -> None:
        row.numbers[self._place] = math.nan if value is None else value


class _Row:
    """A row of the board; float64, and NaN for what is not known."""

    def __init__(self, numbers: NDArray[np.float64]) -> None:
        self.numbers = numbers

    pid = _Number(0)
    """The process that the row is of; None while there is none."""

    def clear(self) -> None:
        """Forget everything: the process is gone."""
        self.numbers[...] = math.nan


class EngineRow(_Row):
    """How one engine is; times are on the monotonic clock, which all processes share."""

    _state = _Number(1)
    busy_since_s = _Number(2)
    """When the present step began; None between steps."""
    last_failure_s = _Number(3)
    failures_in_a_row = _Number(4)
    images_per_s = _Number(5)
    """The best rate that it has shown."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; DEAD while there is none."""
        return EngineState.DEAD if self._state is None else _STATES[int(self._state)]

    @state.setter
    def state(self, state: EngineState) -> None:
        self._state = _STATES.index(state)


class WorkerRow(_Row):
    """What one worker has at hand."""

    admitted = _Number(1)
    """Images from being decoded to being answered."""
    admitted_bulk = _Number(2)
    """Those of them that are bulk."""
    answered = _Number(3)
    """Images that it ever answered."""

    def set_waiting(self, engine: int, images: int) -> None:
        """Say how many images are in an engine's hands."""
        self.numbers[_WAITING + engine] = images


class Board:
    """A row for each process that may be there."""

    def __init__(self, descriptor: int, *, workers: int, engines: int) -> None:
        """Map what `create` made; the descriptor may be closed afterwards."""
        columns = _columns(engines)
        numbers = np.frombuffer(mmap.mmap(descriptor, (workers + engines) * columns * 8), np.float64)
        rows = numbers.reshape(workers + engines, columns)
        self._workers = rows[:workers]
        self.workers = tuple(WorkerRow(row) for row in rows[:workers])
        self.engines = tuple(EngineRow(row) for row in rows[workers:])

    @classmethod
    def create(cls, *, workers: int, engines: int) -> tuple[Self, int]:
        """Return a new board without any process on it, and its descriptor."""
        descriptor = os.memfd_create("dat-serve-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, (workers + engines) * _columns(engines) * 8)
        board = cls(descriptor, workers=workers, engines=engines)
        for row in (*board.workers, *board.engines):
            row.clear()
        return board, descriptor

    @property
    def admitted(self) -> int:
        """Images in the service, from being decoded to being answered."""
        return self._sum(1)

    @property
    def admitted_bulk(self) -> int:
        """Those of the images in the service that are bulk."""
        return self._sum(2)

    @property
    def answered(self) -> int:
        """Images that the workers who live ever answered."""
        return self._sum(3)

    def waiting(self, engine: int) -> int:
        """Images in an engine's hands, of all workers."""
        return self._sum(_WAITING + engine)

    def _sum(self, column: int) -> int:
        # Several times a request: for a few rows Python is quicker than NumPy. NaN is the one unequal to itself.
        return int(sum(number for number in self._workers[:, column].tolist() if number == number))

    def pids(self) -> dict[str, int]:
        """Return the processes that are there, by their names."""
        named: Sequence[tuple[str, _Row]] = [
            *((worker_name(number), row) for number, row in enumerate(self.workers)),
            *((engine_name(number), row) for number, row in enumerate(self.engines)),
        ]
        return {name: int(row.pid) for name, row in named if row.pid is not None}


def worker_name(number: int) -> str:
    """Return what a worker is called in the log and the metrics."""
    return f"worker-{number}"


def engine_name(number: int) -> str:
    """Return what an engine is called in the log and the metrics."""
    return f"engine-{number}"


def _columns(engines: int) -> int:
    return max(6, _WAITING + engines)


def _bytes(shape: Sequence[int]) -> int:
    return math.prod(shape) * _FLOAT_BYTES


def _by_size(geometry: Geometry) -> list[tuple[str, tuple[int, ...]]]:
    """The model's smallest results come first and share a page: that page is all that a classification touches."""
    return sorted(geometry.outputs, key=lambda output: _bytes(output[1])) + list(geometry.explain)


def _layout(geometry: Geometry) -> tuple[int, int, int, int]:
    """Return where pixels and results begin, the bytes of one slot's results, and the bytes of all."""
    pixels_at = _whole_pages(geometry.slots)
    results_at = pixels_at + _whole_pages(geometry.slots * math.prod(geometry.input_shape))
    stride = _whole_pages(sum(_bytes(shape) for _, shape in geometry.outputs + geometry.explain))
    return pixels_at, results_at, stride, results_at + geometry.slots * stride


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
