"""The records that pass between a client, the engine core and the batcher.

Knows nothing of HTTP, images or ONNX Runtime. Times are seconds on one monotonic clock that is handed to
everybody who needs it; a slot is a row of the pixel pool, and a ticket names one image's work for good.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceError

Pixels: TypeAlias = NDArray[np.uint8]
Outputs: TypeAlias = Mapping[str, NDArray[np.float32]]


class Priority(enum.IntEnum):
    """Interactive work goes first; bulk work fills what is left and is never starved."""

    INTERACTIVE = 0
    BULK = 1


class Graph(enum.IntEnum):
    """What a run computes; every output belongs to one of them, and a batch is of one."""

    MODEL = 0
    EXPLAIN = 1
    """Where the model looked: a graph beside the model's, which not every model has."""


class EngineState(enum.Enum):
    """The life of an engine, in order; only READY takes work."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One image that waits: its pixels lie in `slot`, its answer is due by `deadline_s`."""

    ticket: int
    slot: int
    outputs: frozenset[str]
    priority: Priority
    deadline_s: float
    enqueued_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's answer for one image: each asked output without its batch axis, and how it came about.

    `queue_s` is the time from entering the queue to the start of the run, `inference_s` the run's own.
    `batch_size` counts the images of the run, `bucket` the padded size that the session saw. `started_s` is when the
    run began, and tells the engine's runs apart: it does one at a time.
    """

    outputs: Outputs
    queue_s: float
    inference_s: float
    batch_size: int
    bucket: int
    started_s: float


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one ticket: exactly one of `answer` and `error` is set."""

    ticket: int
    slot: int
    answer: Answer | None = None
    error: ServiceError | None = None


class Session(Protocol):
    """What the core asks of a model on a device. Implemented by `session.OnnxSession`, and by fakes in tests."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and 3."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output that can be asked for."""
        ...

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        """Run uint8 (batch, height, width, 3) and return the named outputs, float32, batch first.

        The batch is always one of the buckets. The arrays may be the session's own, which its next run overwrites: the
        caller copies what it keeps. OutOfDeviceMemory says that fewer images might run; any other exception fails
        the batch, and it alone.
        """
        ...


@runtime_checkable
class ExplainingSession(Session, Protocol):
    """A session of two graphs; a run is asked for outputs of one of them."""

    @property
    def explain_names(self) -> tuple[str, ...]:
        """Every output of the other graph; `output_names` are the model's alone."""
        ...


@runtime_checkable
class StagingSession(Session, Protocol):
    """A session that knows memory from which its device reads faster than from other."""

    def staging(self, images: int) -> Pixels:
        """Return such memory, zeroed, for the caller to gather batches in: uint8 (images, height, width, 3)."""
        ...


class OutOfDeviceMemory(Exception):
    """A run needed more memory than the device has left; one of fewer images may not."""
