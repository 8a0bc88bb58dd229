"""The records that pass between a client, the engine core and the batcher.

Knows nothing of HTTP, images or ONNX Runtime. Times are seconds on one monotonic clock that is handed to
everybody who needs it; a slot is a row of the pixel pool, and a ticket names one image's work for good.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import Cancelled, DeadlineExceeded, InferenceFailed, ServiceError

Pixels: TypeAlias = NDArray[np.uint8]
Outputs: TypeAlias = Mapping[str, NDArray[np.float32]]


Shape: TypeAlias = tuple[int, int]
"""Height and width of an image in pixels."""


def pixels_of(shape: Shape) -> int:
    """Return how many pixels an image of a shape has."""
    return shape[0] * shape[1]


class Priority(enum.IntEnum):
    """Interactive work goes first; bulk work fills what is left and is never starved."""

    INTERACTIVE = 0
    BULK = 1


class EngineState(enum.Enum):
    """The life of an engine, in order; only READY takes work."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"


class WorkItem(NamedTuple):
    """One image that waits for a run of `graph`, a graph's key: its pixels lie in `slot`, it is due by `deadline_s`."""

    ticket: int
    slot: int
    graph: str
    shape: Shape
    outputs: frozenset[str]
    priority: Priority
    deadline_s: float
    enqueued_s: float


class Run(NamedTuple):
    """The run that an image was in.

    `queue_s` is the image's time from entering the queue to the start of the run, `inference_s` the run's own.
    `batch_size` counts the images of the run, `bucket` the padded size that the session saw. `started_s` is when the
    run began, and tells the engine's runs apart: it does one at a time.
    """

    queue_s: float
    inference_s: float
    batch_size: int
    bucket: int
    started_s: float


class Failure(enum.Enum):
    """Why an image has no answer."""

    FAILED = (InferenceFailed, "The engine failed on the batch that this image was in.")
    LATE = (DeadlineExceeded, "The deadline passed while the image was waiting.")
    CANCELLED = (Cancelled, "The request was cancelled.")

    def __init__(self, kind: type[ServiceError], sentence: str) -> None:
        self._kind = kind
        self._sentence = sentence

    def error(self) -> ServiceError:
        """Return the error to raise: a new one, since one that several tasks raise would mix their tracebacks."""
        return self._kind(self._sentence)


class Completion(NamedTuple):
    """The end of one ticket. After a run its outputs have been delivered into the slot."""

    ticket: int
    slot: int
    end: Run | Failure


class Answer(NamedTuple):
    """The engine's answer for one image: each output asked for, without its batch axis, and the run that gave it."""

    outputs: Outputs
    run: Run


class Session(Protocol):
    """What the core asks of a graph on a device: `runtime.session.OnnxSession`, or a fake in a test."""

    def staging(self, size_bytes: int) -> Pixels:
        """Return zeroed memory to gather batches in, of the device's liking: uint8 (size_bytes,)."""
        ...

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        """Run uint8 (batch, height, width, 3) and return the named outputs, float32, batch first.

        The batch is always one of the graph's buckets, of images of one shape. The arrays may be the session's own,
        which its next run overwrites: the caller copies what it keeps. OutOfDeviceMemory says that fewer images might
        run; any other exception fails the batch, and it alone.
        """
        ...


class OutOfDeviceMemory(Exception):
    """A run needed more memory than the device has left; one of fewer images may not."""
