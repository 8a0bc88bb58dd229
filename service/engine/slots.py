"""The pixel pool: the only place where decoded images wait, one slot an image.

A slot is a row of one uint8 array (slots, height, width, 3) in memory that the operating system provides when it is
first touched. Holding a slot is being admitted, so the number of slots bounds all work in the service.

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
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.types import Outputs, Pixels


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

    `pixels` (slots, height, width, 3) and `states` (slots), both uint8, may be handed in as arrays over memory that
    others share; without them the pool makes its own. With shared states, a pool in each process is one pool: the
    client's in one, the engine's in another.
    """

    def __init__(
        self,
        slots: int,
        input_shape: tuple[int, int, int],
        *,
        pixels: Pixels | None = None,
        states: NDArray[np.uint8] | None = None,
    ) -> None:
        shape = (slots, *input_shape)
        if slots < 1:
            raise ValueError(f"a pool needs at least one slot, not {slots}")
        if pixels is not None and (pixels.shape != shape or pixels.dtype != np.uint8):
            raise ValueError(f"the pool needs uint8 {shape}, not {pixels.dtype} {pixels.shape}")
        self._pixels = np.empty(shape, np.uint8) if pixels is None else pixels
        self._states = np.full(slots, SlotState.FREE, np.uint8) if states is None else states
        # The last slot freed is the next one taken: its memory is warm, and rarely needed slots stay untouched.
        self._free = list(range(slots - 1, -1, -1))
        self._delivered: dict[int, Outputs] = {}

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._states)

    @property
    def free(self) -> int:
        """How many of them are FREE."""
        return len(self._free)

    @property
    def in_use(self) -> int:
        """How many of them are not FREE."""
        return self.slots - self.free

    def state(self, slot: int) -> SlotState:
        """Return the state of a slot."""
        return SlotState(self._states[slot])

    def pixels(self, slot: int) -> Pixels:
        """Return a slot's image (height, width, 3), a view that only its owner may use."""
        image: Pixels = self._pixels[slot]
        return image

    def acquire(self, n: int) -> list[int]:
        """Client: take `n` slots, FREE to FILLING. Raises SlotStateError, taking none, where fewer are free."""
        if n > self.free:
            raise SlotStateError(f"{n} slots were asked for and {self.free} are free")
        taken = [self._free.pop() for _ in range(n)]
        self._states[taken] = SlotState.FILLING
        return taken

    def submit(self, slots: Iterable[int]) -> None:
        """Client: hand slots to the engine, FILLING to QUEUED."""
        self._move(slots, (SlotState.FILLING,), SlotState.QUEUED)

    def start(self, slots: Iterable[int]) -> None:
        """Engine: the slots' batch begins, QUEUED to RUNNING."""
        self._move(slots, (SlotState.QUEUED,), SlotState.RUNNING)

    def deliver(self, slot: int, outputs: Outputs) -> None:
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
            self._delivered.pop(slot, None)
            self._free.append(slot)

    def reclaim(self, slots: Iterable[int] | None = None) -> list[int]:
        """Client: take back and return the slots (of all, by default) that an engine owned which is no more."""
        candidates = range(self.slots) if slots is None else slots
        owned = [slot for slot in candidates if self._states[slot] > SlotState.FILLING]
        self._states[owned] = SlotState.FREE
        self._free.extend(owned)
        for slot in owned:
            self._delivered.pop(slot, None)
        return owned

    def _move(self, slots: Iterable[int], allowed: Sequence[SlotState], to: SlotState) -> None:
        for slot in slots:
            state = self.state(slot)
            if state not in allowed:
                raise SlotStateError(f"slot {slot} is {state.name} and cannot become {to.name}")
            self._states[slot] = to
