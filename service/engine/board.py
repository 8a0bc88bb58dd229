"""How every engine and worker of a service is: a row of numbers for each, which its process alone writes.

All read all rows without locks, a number at a time. With several processes the rows lie in anonymous shared memory
(memfd), which is handed over by descriptor and gone with the last process that holds it; an engine in this process has
a board of this process's own.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from typing import Self

from service.engine.types import EngineState

_NUMBER_BYTES = 8
_STATES = tuple(EngineState)
_FAILURES_TO_BE_UNWELL = 3
_UNWELL_S = 30.0
"""An engine that fails batch after batch is not well for this long, and then given another chance."""


class _Number:
    """A column: a number, or None where there is none, which the memory holds as NaN."""

    def __init__(self, column: int) -> None:
        self._column = column

    def __get__(self, row: _Row, _: type[_Row]) -> float | None:
        value = row.numbers[self._column]
        return None if math.isnan(value) else value

    def __set__(self, row: _Row, value: float | None) -> None:
        row.numbers[self._column] = math.nan if value is None else value


class _Count:
    """A column: how many; 0 where there is no process."""

    def __init__(self, column: int) -> None:
        self._column = column

    def __get__(self, row: _Row, _: type[_Row]) -> int:
        value = row.numbers[self._column]
        return 0 if math.isnan(value) else int(value)

    def __set__(self, row: _Row, value: int) -> None:
        row.numbers[self._column] = value


class _Row:
    """One process's numbers, float64."""

    pid = _Number(0)
    """The process that the row is of; None while there is none."""

    def __init__(self, numbers: memoryview[float]) -> None:
        self.numbers = numbers

    def clear(self) -> None:
        """Forget everything: the process is gone."""
        for column in range(len(self.numbers)):
            self.numbers[column] = math.nan


class EngineRow(_Row):
    """How one engine is; times are on the monotonic clock, which all processes share."""

    _state = _Number(1)
    busy_since_s = _Number(2)
    """When the present step began; None between steps."""
    last_failure_s = _Number(3)
    """When a run last failed."""
    failures_in_a_row = _Count(4)
    """Batches that failed since the last that did not."""
    images_per_s = _Number(5)
    """The best rate that it has shown; None before the first run."""
    COLUMNS = 6

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; DEAD while there is none."""
        return EngineState.DEAD if self._state is None else _STATES[int(self._state)]

    @state.setter
    def state(self, state: EngineState) -> None:
        self._state = _STATES.index(state)

    def is_well(self, now_s: float, *, hang_after_s: float) -> bool:
        """Return whether the engine neither hangs in a step nor, until lately, failed batch after batch."""
        busy_since_s, last_failure_s = self.busy_since_s, self.last_failure_s
        if busy_since_s is not None and now_s - busy_since_s >= hang_after_s:
            return False
        if last_failure_s is None or self.failures_in_a_row < _FAILURES_TO_BE_UNWELL:
            return True
        return now_s - last_failure_s >= _UNWELL_S


class WorkerRow(_Row):
    """What one worker has at hand."""

    admitted = _Count(1)
    """Images from being decoded to being answered."""
    admitted_bulk = _Count(2)
    """Those of them that are bulk."""
    answered = _Count(3)
    """Images that it ever answered."""
    COLUMNS = 4
    """Then follows a column for each engine: how many images of this worker it has."""

    def waiting(self, engine: int) -> int:
        """Return how many of its images are in an engine's hands."""
        value = self.numbers[self.COLUMNS + engine]
        return 0 if math.isnan(value) else int(value)

    def set_waiting(self, engine: int, images: int) -> None:
        """Say how many of its images are in an engine's hands."""
        self.numbers[self.COLUMNS + engine] = images


class Board:
    """A row for each process that may be there."""

    def __init__(self, *, workers: int, engines: int, descriptor: int | None = None) -> None:
        """Map what `create` made, whose descriptor may be closed afterwards; without one, be this process's own."""
        columns = _columns(engines)
        size = (workers + engines) * columns * _NUMBER_BYTES
        memory = memoryview(bytearray(size) if descriptor is None else mmap.mmap(descriptor, size)).cast("d")
        rows = [memory[at : at + columns] for at in range(0, len(memory), columns)]
        self.workers: Sequence[WorkerRow] = [WorkerRow(numbers) for numbers in rows[:workers]]
        self.engines: Sequence[EngineRow] = [EngineRow(numbers) for numbers in rows[workers:]]
        if descriptor is None:
            self._clear()

    @classmethod
    def create(cls, *, workers: int, engines: int) -> tuple[Self, int]:
        """Return a new board without any process on it, and its descriptor."""
        descriptor = os.memfd_create("dat-serve-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, (workers + engines) * _columns(engines) * _NUMBER_BYTES)
        board = cls(workers=workers, engines=engines, descriptor=descriptor)
        board._clear()
        return board, descriptor

    def _clear(self) -> None:
        for row in (*self.workers, *self.engines):
            row.clear()

    @property
    def admitted(self) -> int:
        """Images in the service, from being decoded to being answered."""
        return sum([row.admitted for row in self.workers])

    @property
    def admitted_bulk(self) -> int:
        """Those of the images in the service that are bulk."""
        return sum([row.admitted_bulk for row in self.workers])

    @property
    def answered(self) -> int:
        """Images that the workers who live ever answered."""
        return sum([row.answered for row in self.workers])

    @property
    def images_per_s(self) -> float | None:
        """The best rates that the engines have shown, together; None before the first run."""
        rates = [row.images_per_s for row in self.engines]
        return sum([rate for rate in rates if rate is not None]) or None

    def waiting(self, engine: int) -> int:
        """Images in an engine's hands, of all workers."""
        return sum([row.waiting(engine) for row in self.workers])

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
    return max(EngineRow.COLUMNS, WorkerRow.COLUMNS + engines)
