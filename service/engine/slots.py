"""The pixel pool: the only place where decoded images wait, one slot an image.

A slot has room for the largest image that is taken, in memory that the operating system provides when it is first
touched. Holding a slot is being admitted, so the number of slots bounds all work in the service. Where images may be of
other shapes than the model's own, what a larger one touched beyond that is given back with its slot.

Every slot has one owner at a time, and only the owner touches its pixels or moves it on:

              acquire            submit            start
      FREE ────────────► FILLING ──────► QUEUED ─────────► RUNNING
       ▲                    │               │                 │
       │ release            │ release       │ finish          │ finish
       ├────────────────────┘               ▼                 │
       │                                   DONE ◄─────────────┘
       └──────────────────────────────────  │
                     release

    state     owner    who leaves it, and how
    FREE      client   client: acquire
    FILLING   client   client: submit, when the pixels are written; release, when the work is given up
    QUEUED    engine   engine: start, in a batch; finish, when it is dropped unrun
    RUNNING   engine   engine: deliver its outputs, and finish, when the run has ended
    DONE      client   client: collect the outputs, and release, on reading the completion

The client is the one thread that acquires, submits and releases; the engine the one that starts and finishes. They
meet on a slot only through the records that pass between them, so nothing here is locked. Any other transition
raises SlotStateError. The one exception is `reclaim`: once an engine is known to be gone, the client takes back all
that it owned.
"""

from __future__ import annotations

import enum
import mmap
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.types import Outputs, Pixels, Shape, pixels_of

_MAP_NORESERVE = 0x4000
"""Linux's; Python's module has no name for it."""


class SlotState(enum.IntEnum):
    """Where a slot is in its round; see the module's drawing."""

    FREE = 0
    FILLING = 1
    QUEUED = 2
    RUNNING = 3
    DONE = 4


class SlotStateError(RuntimeError):
    """A slot was moved by somebody who does not own it: a fault in this service."""


class SlotPool:
    """Slots of equal size, and their states.

    `input_shape` (height, width, 3) is that of the model's own images; `max_pixels` are those of the largest image that
    is taken, where that may be another. `memory`, uint8 (slots, at least the bytes of the largest image), and `states`,
    uint8 (slots,), may be handed in as arrays over memory that others share; without them the pool makes its own. With
    shared states, a pool in each process is one pool: the client's in one, the engine's in another.
    """

    def __init__(
        self,
        slots: int,
        input_shape: tuple[int, int, int],
        *,
        max_pixels: int | None = None,
        memory: Pixels | None = None,
        states: NDArray[np.uint8] | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"a pool needs at least one slot, not {slots}")
        height, width, _ = input_shape
        self.own_shape: Shape = height, width
        """Height and width of the model's own images."""
        self.own_pixels = pixels_of(self.own_shape)
        """Pixels of an image of the model's own shape."""
        self.max_pixels = max(max_pixels or 0, self.own_pixels)
        """Pixels of the largest image that a slot has room for."""
        self._memory = self._make_memory(slots) if memory is None else memory
        if self._memory.shape != (slots, self.slot_bytes) or self._memory.dtype != np.uint8:
            wanted = (slots, self.slot_bytes)
            raise ValueError(f"the pool needs uint8 {wanted}, not {self._memory.dtype} {self._memory.shape}")
        strides = (self.slot_bytes, width * 3, 3, 1)
        self._own_pixels = np.lib.stride_tricks.as_strided(self._memory, (slots, height, width, 3), strides)
        self._states = (np.full(slots, SlotState.FREE, np.uint8) if states is None else states).data
        """As plain numbers: to take one out of an array costs as much as all the rest of a move."""
        self.slots = slots
        """How many slots there are."""
        self.in_use = 0
        """How many of them are not FREE."""
        # The last slot freed is the next one taken: its memory is warm, and rarely needed slots stay untouched.
        self._free = list(range(slots - 1, -1, -1))
        self._others: dict[int, Shape] = {}
        """The shapes of the images for which slots were taken, where that is not the model's own."""
        self._other_pixels = 0
        """Those of these images."""
        self._delivered: dict[int, Outputs] = {}

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: whole pages, where not all of them are always used."""
        return slot_bytes(self.own_pixels, self.max_pixels)

    def _make_memory(self, slots: int) -> Pixels:
        if self.max_pixels == self.own_pixels:
            return np.empty((slots, self.slot_bytes), np.uint8)
        # Reserved and not counted: nearly all of it is never touched.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, slots * self.slot_bytes, flags)
        return np.frombuffer(self._map, np.uint8).reshape(slots, self.slot_bytes)

    @property
    def free(self) -> int:
        """How many of them are FREE."""
        return self.slots - self.in_use

    def state(self, slot: int) -> SlotState:
        """Return the state of a slot."""
        return SlotState(self._states[slot])

    @property
    def pixels_in_use(self) -> int:
        """The pixels of the images for which slots are held."""
        return (self.in_use - len(self._others)) * self.own_pixels + self._other_pixels

    def pixels(self, slot: int, shape: Shape) -> Pixels:
        """Return a slot's image (height, width, 3) of a shape, a view that only its owner may use."""
        if shape == self.own_shape:
            image: Pixels = self._own_pixels[slot]
            return image
        return self._memory[slot, : pixels_of(shape) * 3].reshape(*shape, 3)

    def shape_of(self, slot: int) -> Shape:
        """Client: return the shape of the image that a slot was taken for."""
        return self._others.get(slot, self.own_shape)

    def acquire(self, n: int, shape: Shape | None = None) -> list[int]:
        """Client: take `n` slots for images of a shape, by default the model's own, FREE to FILLING.

        Raises SlotStateError, taking none, where fewer are free, or the images are too large for a slot.
        """
        if n > self.free:
            raise SlotStateError(f"{n} slots were asked for and {self.free} are free")
        if shape is not None and pixels_of(shape) > self.max_pixels:
            raise SlotStateError(f"a slot has room for {self.max_pixels} pixels, and {shape} has more")
        taken = [self._free.pop() for _ in range(n)]
        self.in_use += n
        self._set(taken, SlotState.FILLING)
        if shape is not None and shape != self.own_shape:
            self._others.update(dict.fromkeys(taken, shape))
            self._other_pixels += n * pixels_of(shape)
        return taken

    def submit(self, slots: Iterable[int]) -> None:
        """Client: hand slots to the engine, FILLING to QUEUED."""
        self._move(slots, (SlotState.FILLING,), SlotState.QUEUED)

    def start(self, slots: Iterable[int]) -> None:
        """Engine: the slots' batch begins, QUEUED to RUNNING."""
        self._move(slots, (SlotState.QUEUED,), SlotState.RUNNING)

    def deliver(self, slot: int, shape: Shape, outputs: Outputs) -> None:  # noqa: ARG002
        """Engine: leave a RUNNING slot's outputs with it; copies, since the arrays are the session's own.

        A view would, besides, keep the whole batch in memory for as long as one image of it is being answered: 38 MB
        for the first stage's features of a batch of 32, where the image's own are 1.2 MB.
        """
        self._delivered[slot] = {name: row.copy() for name, row in outputs.items()}

    def finish(self, slots: Iterable[int]) -> None:
        """Engine: hand slots back, run or dropped, QUEUED or RUNNING to DONE."""
        self._move(slots, (SlotState.QUEUED, SlotState.RUNNING), SlotState.DONE)

    def collect(self, slot: int) -> Outputs:
        """Client: return the outputs that were delivered into a DONE slot, once."""
        return self._delivered.pop(slot)

    def release(self, slots: Iterable[int]) -> None:
        """Client: give slots back to the pool, FILLING or DONE to FREE."""
        for slot in slots:
            self._move((slot,), (SlotState.FILLING, SlotState.DONE), SlotState.FREE)
            self._take_back(slot)

    def owned_by_engine(self, slots: Iterable[int] | None = None) -> list[int]:
        """Client: return the slots (of all, by default) that are in an engine's hands, or have just left them."""
        candidates = range(self.slots) if slots is None else slots
        return [slot for slot in candidates if self._states[slot] > SlotState.FILLING]

    def reclaim(self, slots: Iterable[int] | None = None) -> list[int]:
        """Client: take back and return the slots (of all, by default) that an engine owned which is no more."""
        owned = self.owned_by_engine(slots)
        self._set(owned, SlotState.FREE)
        for slot in owned:
            self._take_back(slot)
        return owned

    def _take_back(self, slot: int) -> None:
        """Put a slot that has become FREE among those that are."""
        self._delivered.pop(slot, None)
        self._forget_shape(slot)
        self._free.append(slot)
        self.in_use -= 1

    def _forget_shape(self, slot: int) -> None:
        """Give back what an image of another shape touched beyond the pages that one of the model's own would."""
        shape = self._others.pop(slot, None) if self._others else None
        if shape is None:
            return
        self._other_pixels -= pixels_of(shape)
        begin, end = whole_pages(self.own_pixels * 3), whole_pages(pixels_of(shape) * 3)
        if begin < end:
            self._give_back(slot * self.slot_bytes + begin, end - begin)

    def _give_back(self, at: int, size: int) -> None:
        """Let the operating system have `size` bytes of the slots' memory, whole pages, from `at` on."""
        self._map.madvise(mmap.MADV_DONTNEED, at, size)

    def _move(self, slots: Iterable[int], allowed: Sequence[SlotState], to: SlotState) -> None:
        states = self._states
        for slot in slots:
            if states[slot] not in allowed:
                raise SlotStateError(f"slot {slot} is {self.state(slot).name} and cannot become {to.name}")
            states[slot] = to

    def _set(self, slots: Iterable[int], to: SlotState) -> None:
        for slot in slots:
            self._states[slot] = to


def slot_bytes(own_pixels: int, max_pixels: int) -> int:
    """Return the bytes of a slot for images of so many pixels: whole pages, where not all of them are always used."""
    return own_pixels * 3 if max_pixels == own_pixels else whole_pages(max_pixels * 3)


def whole_pages(size: int) -> int:
    """Return a number of bytes, rounded up to whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
