"""Whose run is next on a device that several engines of this process share.

Each model's version has an engine of its own, with its own queue, and all engines of a device run on it in turn. An
engine that wants to run says how urgent its most urgent image is, and waits. When the device is free:

- Interactive work goes before bulk work, of whatever model, but bulk work gets a share of the device's time.
- Within a priority the engine goes that has had the least time: a model fifty times slower than another gets as much of
  the device, not fifty times as much. One that has more to run stays in line when its run ends, and may go again.

Both are start-time fair queueing (Goyal, Vin and Cheng, 1996): who was idle saves nothing up, and owes nothing.

Invariants: one engine at a time has the device; who waits is woken, and nobody polls; an engine that leaves, even in
the middle of a run that never ends, gives its turn back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from service.engine.turns import BULK_EVERY
from service.engine.types import Priority

_MOMENT_S = 1.0
"""How long an engine that had the device counts as one that wants it again."""

KeyT = TypeVar("KeyT", bound=Hashable)


class FairShares(Generic[KeyT]):
    """Who has had the least of something, of those that want it; everybody's part is as large as its weight."""

    def __init__(self) -> None:
        self._now = 0.0
        """The tag at which what was last charged began."""
        self._ends: dict[KeyT, float] = {}

    def least(self, keys: Iterable[KeyT]) -> KeyT:
        """Return whose turn it is, of these; the first where several have had as much."""
        return min(keys, key=self._start)

    def charge(self, key: KeyT, cost: float, *, weight: float = 1.0) -> None:
        """Count what somebody had whose turn it was."""
        self._now = self._start(key)
        self._ends[key] = self._now + cost / weight

    def forget(self, key: KeyT) -> None:
        """Know somebody no more."""
        self._ends.pop(key, None)

    def _start(self, key: KeyT) -> float:
        return max(self._ends.get(key, 0.0), self._now)


_WEIGHTS = {Priority.INTERACTIVE: BULK_EVERY - 1.0, Priority.BULK: 1.0}
"""Parts of the device's time while both priorities wait: what the batcher gives them in images."""


def _nothing_more() -> Priority | None:
    """There is nothing more to run."""
    return None


class Contender:
    """One engine, as it waits for its device; made by `DeviceTurns.join`."""

    def __init__(self, turns: DeviceTurns) -> None:
        self._turns = turns
        self.granted = threading.Event()

    @contextmanager
    def turn(self, priority: Priority, more: Callable[[], Priority | None] = _nothing_more) -> Iterator[None]:
        """Have the device within the block; waits until it is free and nobody is before this engine.

        `more` says afterwards what else the engine has to run at once. Where it has, and is next, the device is kept
        for it: then it must take another `turn`, or `pass_on`.
        """
        self._turns.acquire(self, priority)
        began_s = self._turns.clock()
        try:
            yield
        finally:
            self._turns.release(self, priority, self._turns.clock() - began_s, more())

    @property
    def shares(self) -> bool:
        """Whether others wait for the device, or had it a moment ago."""
        return self._turns.is_shared(self)

    def pass_on(self) -> None:
        """Have nothing to run after all; does nothing where the device is not kept for this engine."""
        self._turns.pass_on(self)

    def leave(self) -> None:
        """Contend no more, and give the device back where a run that does not end has it; any thread."""
        self._turns.leave(self)


class DeviceTurns:
    """One device; every method may be called in any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._holder: Contender | None = None
        self._waiting: dict[Contender, Priority] = {}
        """In the order in which they came."""
        self._had_s: dict[Contender, float] = {}
        """When each last had the device."""
        self._of_priority = FairShares[Priority]()
        self._of_engine = {priority: FairShares[Contender]() for priority in Priority}

    def join(self) -> Contender:
        """Return a new engine's place."""
        return Contender(self)

    def acquire(self, contender: Contender, priority: Priority) -> None:
        """Return when the device is the contender's."""
        with self._lock:
            if self._holder is None or self._holder is contender:  # nobody waits, or it was kept for this one
                self._holder = contender
                return
            contender.granted.clear()
            self._waiting[contender] = priority
        contender.granted.wait()

    def release(self, contender: Contender, priority: Priority, used_s: float, more: Priority | None) -> None:
        """Count how long the contender had the device, and give it to whose turn it is.

        `more` is what the contender wants next.
        """
        with self._lock:
            if self._holder is not contender:  # it has left in the middle of its run
                return
            self._had_s[contender] = self.clock()
            self._of_engine[priority].charge(contender, used_s)
            self._of_priority.charge(priority, used_s, weight=_WEIGHTS[priority])
            self._give_to_next({contender: more} if more is not None else {})

    def is_shared(self, contender: Contender) -> bool:
        """Return whether others than the contender wait, or had the device a moment ago."""
        with self._lock:
            since_s = self.clock() - _MOMENT_S
            return bool(self._waiting) or any(
                had_s >= since_s for each, had_s in self._had_s.items() if each is not contender
            )

    def pass_on(self, contender: Contender) -> None:
        """Give the device to whose turn it is, if it was kept for the contender."""
        with self._lock:
            if self._holder is contender:
                self._give_to_next({})

    def leave(self, contender: Contender) -> None:
        """Forget a contender."""
        with self._lock:
            self._had_s.pop(contender, None)
            for shares in self._of_engine.values():
                shares.forget(contender)
            if self._waiting.pop(contender, None) is not None:
                contender.granted.set()
            if self._holder is contender:
                self._give_to_next({})

    def _give_to_next(self, last: Mapping[Contender, Priority]) -> None:
        """Give the device to whose turn it is, of those that wait and the last one, if it wants it once more."""
        wanting = {**self._waiting, **last}
        if not wanting:
            self._holder = None
            return
        priority = self._of_priority.least(sorted(set(wanting.values())))
        chosen = self._of_engine[priority].least(each for each, its in wanting.items() if its is priority)
        self._holder = chosen
        if chosen not in last:
            del self._waiting[chosen]
            chosen.granted.set()
