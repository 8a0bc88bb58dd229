"""Room in the engine for the images of one request, from decoding to inference.

Invariant: a slot of a reservation is in exactly one pair of hands: a decoding thread's, within `writing`; the
reservation's own; or, after `infer`, the engine's. It is given back once, by whoever holds it last.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from service.engine.slots import SlotPool, SlotStateError
from service.engine.types import Answer, Pixels, Shape
from service.errors import Cancelled


class Reservation:
    """Room for one request's images, of one shape, on its terms; a context manager, entered and left on the event loop.

    Leaving gives back the slots that were not inferred. It may be left at any time: a slot that a thread is just
    writing is given back when that thread is done, and a thread that comes too late is turned away.

    `infer` hands slots to the engine and returns what gives their answers; where it raises, it has taken none.
    `release` gives slots back, `release_from_thread` in any thread.
    """

    def __init__(
        self,
        pool: SlotPool,
        slots: Sequence[int],
        *,
        shape: Shape,
        infer: Callable[[Sequence[int], frozenset[str]], Awaitable[list[Answer]]],
        release: Callable[[Sequence[int]], None],
        release_from_thread: Callable[[Sequence[int]], None],
    ) -> None:
        self._pool = pool
        self._shape = shape
        self._infer = infer
        self._release = release
        self._release_from_thread = release_from_thread
        self._lock = threading.Lock()  # over the three below, which decoding threads use too
        self._slots = dict(enumerate(slots))
        self._being_written: set[int] = set()
        self._closed = False

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            given_back = [self._slots.pop(index) for index in self._slots.keys() - self._being_written]
        if given_back:
            self._release(given_back)

    @contextmanager
    def writing(self, index: int) -> Iterator[Pixels]:
        """Hold image `index`'s uint8 pixels (height, width, 3) to write them; any thread, one at a time an image.

        The array must not be used after the block. Raises Cancelled where the reservation has been left, and
        SlotStateError where the image is being written already or has been handed to the engine.
        """
        with self._lock:
            if self._closed:
                raise Cancelled("The request was given up before this image was decoded.")
            if index not in self._slots or index in self._being_written:
                raise SlotStateError(f"image {index} of this reservation cannot be written now")
            self._being_written.add(index)
            slot = self._slots[index]
        try:
            yield self._pool.pixels(slot, self._shape)
        finally:
            if self._end_writing(index):
                self._release_from_thread([slot])

    def _end_writing(self, index: int) -> bool:
        """Return whether the reservation was left meanwhile, so that the slot is now nobody's."""
        with self._lock:
            self._being_written.remove(index)
            if self._closed:
                del self._slots[index]
            return self._closed

    async def infer(self, indices: Sequence[int], outputs: frozenset[str]) -> list[Answer]:
        """Infer images that have been written, and return their answers in the order of `indices`.

        The images leave the reservation. If one fails, all do, and those that still wait are dropped; so they are when
        the awaiting task is cancelled. Raises DeadlineExceeded, InferenceFailed, NotReady, and InvalidParameter unless
        the outputs are of one graph.
        """
        if not indices:
            return []
        with self._lock:
            if len(set(indices)) < len(indices) or not set(indices) <= self._slots.keys() - self._being_written:
                raise SlotStateError(f"images {list(indices)} of this reservation cannot all be inferred now")
            answers = self._infer([self._slots[index] for index in indices], outputs)
            for index in indices:
                del self._slots[index]
        return await answers
