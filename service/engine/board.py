"""How every engine and worker of one version of a model is: a row of numbers each, which its process alone writes.

All read all rows without locks, a number at a time. With several processes the rows lie in anonymous shared memory
(memfd), which is handed over by descriptor and gone with the last process that holds it; an engine in this process has
a board of this process's own. In every column 0 says that there is nothing: new memory is a board without processes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Self

from service.engine.types import EngineState

_STATES = (EngineState.DEAD, EngineState.LOADING, EngineState.READY)
_FAILURES_TO_BE_UNWELL = 3
_UNWELL_S = 30.0
"""An engine that fails batch after batch is not well for this long, and then given another chance."""


class EngineRow(ctypes.Structure):
    """How one engine is; times are on the monotonic clock, which all processes share."""

    _fields_ = (
        ("_state", ctypes.c_int64),
        ("busy_since_s", ctypes.c_double),
        ("last_failure_s", ctypes.c_double),
        ("failures_in_a_row", ctypes.c_int64),
        ("images_per_s", ctypes.c_double),
    )
    _state: int
    busy_since_s: float
    """When the present step began; 0 between steps."""
    last_failure_s: float
    """When a run last failed."""
    failures_in_a_row: int
    """Batches that failed since the last that did not."""
    images_per_s: float
    """The best rate that it has shown, of images of the model's own size; 0 before the first run."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; DEAD while there is none."""
        return _STATES[self._state]

    @state.setter
    def state(self, state: EngineState) -> None:
        self._state = _STATES.index(state)

    def is_well(self, now_s: float, *, hang_after_s: float) -> bool:
        """Return whether the engine neither hangs in a step nor, until lately, failed batch after batch."""
        busy_since_s = self.busy_since_s
        if busy_since_s and now_s - busy_since_s >= hang_after_s:
            return False
        return self.failures_in_a_row < _FAILURES_TO_BE_UNWELL or now_s - self.last_failure_s >= _UNWELL_S

    def clear(self) -> None:
        """Forget everything: the process is gone."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))


_ENGINE_BYTES = ctypes.sizeof(EngineRow)


class WorkerRow(ctypes.Structure):
    """What one worker has at hand."""

    _fields_ = (
        ("admitted", ctypes.c_int64),
        ("admitted_pixels", ctypes.c_int64),
        ("admitted_bulk_pixels", ctypes.c_int64),
        ("answered_pixels", ctypes.c_int64),
    )
    admitted: int
    """Images from being decoded to being answered."""
    admitted_pixels: int
    """The pixels of those admitted: what they are in work, where images are of several sizes."""
    admitted_bulk_pixels: int
    """Of those that are bulk."""
    answered_pixels: int
    """Of all images that it ever answered."""
    waiting: ctypes.Array[ctypes.c_int64]
    """For each engine, how many of the images are in its hands."""

    def clear(self) -> None:
        """Forget everything: the process is gone."""
        for part in (self, self.waiting):
            ctypes.memset(ctypes.addressof(part), 0, ctypes.sizeof(part))


class Board:
    """A row for each process that may be there."""

    def __init__(self, *, workers: int, engines: int, descriptor: int | None = None) -> None:
        """Map what `create` made, whose descriptor may be closed afterwards; without one, be this process's own."""
        size = _bytes(workers, engines)
        memory = bytearray(size) if descriptor is None else mmap.mmap(descriptor, size)
        self.engines = [EngineRow.from_buffer(memory, at) for at in range(0, engines * _ENGINE_BYTES, _ENGINE_BYTES)]
        self.workers: list[WorkerRow] = []
        for at in range(engines * _ENGINE_BYTES, size, _worker_bytes(engines)):
            row = WorkerRow.from_buffer(memory, at)
            row.waiting = (ctypes.c_int64 * engines).from_buffer(memory, at + ctypes.sizeof(row))
            self.workers.append(row)

    @classmethod
    def create(cls, *, workers: int, engines: int) -> tuple[Self, int]:
        """Return a new board without any process on it, and its descriptor."""
        descriptor = os.memfd_create("dat-serve-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _bytes(workers, engines))
        return cls(workers=workers, engines=engines, descriptor=descriptor), descriptor

    @property
    def admitted(self) -> int:
        """Images of the version in the service, from being decoded to being answered."""
        return sum([row.admitted for row in self.workers])

    @property
    def admitted_pixels(self) -> int:
        """The pixels of the images in the service."""
        return sum([row.admitted_pixels for row in self.workers])

    @property
    def admitted_bulk_pixels(self) -> int:
        """Those of the images in the service that are bulk."""
        return sum([row.admitted_bulk_pixels for row in self.workers])

    @property
    def answered_pixels(self) -> int:
        """Those of the images that the workers who live ever answered."""
        return sum([row.answered_pixels for row in self.workers])

    @property
    def images_per_s(self) -> float | None:
        """The best rates that the engines have shown, of images of the model's own size, together; None before any."""
        return sum([row.images_per_s for row in self.engines]) or None

    def waiting(self, engine: int) -> int:
        """Images in an engine's hands, of all workers."""
        return sum([row.waiting[engine] for row in self.workers])


def worker_name(number: int) -> str:
    """Return what a worker is called in the log and the metrics."""
    return f"worker-{number}"


def engine_name(number: int) -> str:
    """Return what an engine is called in the log and the metrics."""
    return f"engine-{number}"


def _worker_bytes(engines: int) -> int:
    return ctypes.sizeof(WorkerRow) + engines * ctypes.sizeof(ctypes.c_int64)


def _bytes(workers: int, engines: int) -> int:
    return engines * _ENGINE_BYTES + workers * _worker_bytes(engines)
