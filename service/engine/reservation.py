"""Room in the engine for the images of one request, from decoding to inference.

Invariant: a slot of a reservation is in exactly one pair of hands: a decoding thread's, within `writing`; the
reservation's own; or, after `infer`, the engine's. It is given back once, by whoever holds it last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from service.engine.slots import SlotStateError
from service.engine.types import Answer, Pixels, Priority
from service.errors import Cancelled


class SlotKeeper(Protocol):
    """What a reservation asks of the engine that made it; all on the event loop, except where said."""

    def pixels(self, slot: int) -> Pixels:
        """Return a slot's image; any thread."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Take back slots that were not inferred."""
        ...

    def release_from_thread(self, slots: Sequence[int]) -> None:
        """Take back slots that were not inferred; any thread."""
        ...

    def check_call(self, outputs: frozenset[str], deadline_s: float) -> None:
        """Raise what `infer` would raise at once; after it, and without an await between, `infer` takes the slots."""
        ...

    async def infer(
        self, slots: Sequence[int], *, outputs: frozenset[str], priority: Priority, deadline_s: float
    ) -> list[Answer]:
        """Take the slots over, and return their answers."""
        ...


class Reservation:
    """Room for the images of one request; a context manager, entered and left on the event loop.

    Leaving gives back the slots that were not inferred. It may be left at any time: a slot that a thread is just
    writing is given back when that thread is done, and a thread that comes too late is turned away.
    """

    def __init__(self, engine: SlotKeeper, slots: Iterable[int]) -> None:
        self._engine = engine
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
        self._engine.release(given_back)

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
            yield self._engine.pixels(slot)
        finally:
            if self._end_writing(index):
                self._engine.release_from_thread([slot])

    def _end_writing(self, index: int) -> bool:
        """Return whether the reservation was left meanwhile, so that the slot is now nobody's."""
        with self._lock:
            self._being_written.remove(index)
            if self._closed:
                del self._slots[index]
            return self._closed

    async def infer(
        self,
        indices: Sequence[int],
        *,
        outputs: frozenset[str],
        deadline_s: float,
        priority: Priority = Priority.INTERACTIVE,
    ) -> list[Answer]:
        """Infer images that have been written, and return their answers in the order of `indices`.

        `deadline_s` is a time on the engine's clock (time.monotonic()). The images leave the reservation. If one
        fails, all do, and those that still wait are dropped; so they are when the awaiting task is cancelled. Raises
        DeadlineExceeded, InferenceFailed, NotReady, and InvalidParameter for outputs that the model does not have.
        """
        self._engine.check_call(outputs, deadline_s)
        with self._lock:
            if len(set(indices)) < len(indices) or not set(indices) <= self._slots.keys() - self._being_written:
                raise SlotStateError(f"images {list(indices)} of this reservation cannot all be inferred now")
            slots = [self._slots.pop(index) for index in indices]
        return await self._engine.infer(slots, outputs=outputs, priority=priority, deadline_s=deadline_s)
