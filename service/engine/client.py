"""The event loop's side of an engine, wherever the engine runs: free slots, calls that wait, and deadlines.

What differs between an engine in this process (`in_process`) and engines in others (`remote`) is carriage alone: how
images are submitted and taken back, and how their ends arrive. All else is here, so that both shapes behave alike.

Invariants: every `infer` ends, by an answer, an error or its deadline, whatever becomes of the engine; a slot is free
again exactly once, and only when neither a decoding thread nor an engine can touch it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from service.engine.admission import Admission, Backlog
from service.engine.reservation import Reservation
from service.engine.slots import SlotPool
from service.engine.types import Answer, Completion, EngineState, Pixels, Priority, WorkItem
from service.errors import DeadlineExceeded, InvalidParameter, NotReady, Overloaded, StartupError

_log = logging.getLogger(__name__)

_FAILURES_TO_BE_UNHEALTHY = 3
_UNHEALTHY_S = 30.0
"""An engine that fails batch after batch is unhealthy for this long, and then given another chance."""
_LATE = "The deadline passed before the answer was there."
REFUSALS = {
    EngineState.LOADING: "The model is still being loaded.",
    EngineState.READY: "The engine is ready.",
    EngineState.DEAD: "The inference engine is not running.",
}


class _Call:
    """The images of one `infer`, and the future that its caller awaits."""

    def __init__(self, tickets: Sequence[int]) -> None:
        self.answered: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._tickets = tickets
        self._answers: dict[int, Answer] = {}

    def end_one(self, completion: Completion) -> None:
        if self.answered.done():
            return
        if completion.error is not None:
            self.answered.set_exception(completion.error)
        elif completion.answer is not None:
            self._answers[completion.ticket] = completion.answer
            if len(self._answers) == len(self._tickets):
                self.answered.set_result([self._answers[ticket] for ticket in self._tickets])

    def fail(self, error: NotReady) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


def is_failing(failures_in_a_row: float, last_failure_s: float | None, now_s: float) -> bool:
    """Return whether an engine fails batch after batch, and did so only lately."""
    if last_failure_s is None or failures_in_a_row < _FAILURES_TO_BE_UNHEALTHY:
        return False
    return now_s - last_failure_s < _UNHEALTHY_S


class EngineClient(ABC):
    """What the HTTP layer knows of an engine; every method belongs to one event loop, except where said."""

    def __init__(
        self, *, largest_batch: int, max_wait_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._admission = Admission(largest_batch=largest_batch, max_wait_s=max_wait_s)
        self._bulk_slots: set[int] = set()
        self._answered = 0
        self._state = EngineState.LOADING
        self._failure: str | None = None
        self._cause: BaseException | None = None
        self._pool: SlotPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[int, _Call] = {}
        self._tickets = itertools.count()
        self._loaded = asyncio.Event()
        """Set when LOADING is over, however it ended."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; READY while any of several engines is."""
        return self._state

    @property
    def failure(self) -> str | None:
        """Why the engine is DEAD, in a sentence for operators; None while it is not."""
        return self._failure

    @property
    @abstractmethod
    def states(self) -> Sequence[EngineState]:
        """The state of each engine."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int] | None:
        """Height, width and 3 of an image; None until it is known."""

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Every output that can be asked for; none until they are known."""

    @property
    @abstractmethod
    def explain_names(self) -> tuple[str, ...]:
        """Every output that says where the model looked; none where the model has no graph for it."""

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether to send it work: READY, not hanging, and not failing batch after batch."""

    @property
    @abstractmethod
    def images_per_s(self) -> float | None:
        """The best rate that the engine has shown, or several have together; None before the first run."""

    @property
    def slots_in_use(self) -> int:
        """Images in the service, from being decoded to being answered."""
        return self._pool.in_use if self._pool else 0

    @property
    def queue_depth(self) -> int:
        """Images that wait for their batch or run in it, and whose caller still waits."""
        return len(self._calls)

    @abstractmethod
    async def start(self) -> None:
        """Begin; returns at once."""

    @abstractmethod
    async def stop(self, timeout_s: float = 5.0) -> None:
        """Fail whatever still waits, and let go of the engine."""

    async def wait_ready(self) -> None:
        """Return when the engine is READY; raises StartupError where it never will be."""
        await self._loaded.wait()
        if isinstance(self._cause, StartupError):
            raise self._cause
        if self._state is not EngineState.READY:
            raise StartupError(self._failure or "The service was stopped before its model was loaded.")

    @property
    def backlog(self) -> Backlog:
        """Images in the service, from being decoded to being answered, by priority."""
        return Backlog(self.slots_in_use - len(self._bulk_slots), len(self._bulk_slots))

    @property
    def answered(self) -> int:
        """Images that were ever answered."""
        return self._answered

    def check_room(
        self, n: int = 1, *, priority: Priority = Priority.INTERACTIVE, deadline_s: float = math.inf
    ) -> None:
        """Raise what `reserve` would raise, taking nothing: to be asked before a body is read."""
        pool = self._require(EngineState.READY)
        if n > pool.free:
            raise Overloaded(
                f"The queue is full: {pool.in_use} of {pool.slots} places are taken, and {n} would be needed.",
                retry_after_s=self._admission.time_for_s(n - pool.free, device_images_per_s=self.images_per_s),
            )
        refusal = self._admission.refusal(
            n,
            priority=priority,
            left_s=deadline_s - self._clock(),
            backlog=self.backlog,
            device_images_per_s=self.images_per_s,
        )
        if refusal is not None:
            raise Overloaded(refusal.reason, retry_after_s=refusal.retry_after_s)

    def reserve(
        self, n: int, *, priority: Priority = Priority.INTERACTIVE, deadline_s: float = math.inf
    ) -> Reservation:
        """Take room for `n` images whose answers are due by `deadline_s`, a time on the engine's clock.

        Raises Overloaded where there is no room or the answers would come too late, and NotReady while loading
        or dead.
        """
        self.check_room(n, priority=priority, deadline_s=deadline_s)
        slots = self._require(EngineState.READY).acquire(n)
        if priority is Priority.BULK:
            self._bulk_slots.update(slots)
        self._room_changed()
        return Reservation(self, slots)

    def _require(self, *states: EngineState) -> SlotPool:
        if self._pool is not None and self._state in states:
            return self._pool
        raise NotReady(REFUSALS[self._state])

    # What a reservation asks for, as reservation.SlotKeeper says.

    def pixels(self, slot: int) -> Pixels:
        """Return a slot's image; any thread."""
        return self._require(*EngineState).pixels(slot)

    def release(self, slots: Sequence[int]) -> None:
        """Take back slots that are FILLING or DONE."""
        pool = self._require(*EngineState)
        pool.release(slots)
        self._bulk_slots.difference_update(slots)
        self._room_changed()

    def release_from_thread(self, slots: Sequence[int]) -> None:
        """Take back slots that are FILLING; any thread."""
        self._post(self.release, slots)

    def check_call(self, outputs: frozenset[str], deadline_s: float) -> None:
        """Raise what `infer` would raise at once."""
        self._require(EngineState.READY)
        known = self.output_names if outputs.isdisjoint(self.explain_names) else self.explain_names
        if not outputs or not outputs <= set(known):
            asked = ", ".join(sorted(outputs)) or "nothing"
            raise InvalidParameter(f"The model's outputs are {', '.join(known)}; asked for was {asked}.")
        if deadline_s <= self._clock():
            raise DeadlineExceeded(_LATE)

    async def infer(
        self, slots: Sequence[int], *, outputs: frozenset[str], priority: Priority, deadline_s: float
    ) -> list[Answer]:
        """Take the slots over, FILLING, and return their answers; `check_call` has just passed."""
        pool = self._require(EngineState.READY)
        if not slots:
            return []
        now_s = self._clock()
        items = [WorkItem(next(self._tickets), slot, outputs, priority, deadline_s, now_s) for slot in slots]
        call = _Call([item.ticket for item in items])
        pool.submit(slots)
        self._calls.update((item.ticket, call) for item in items)
        self._submit(items)
        expired = False
        try:
            async with asyncio.timeout(deadline_s - now_s):
                return await call.answered
        except TimeoutError:
            expired = True
            raise DeadlineExceeded(_LATE) from None
        finally:
            unended = [item.ticket for item in items if self._calls.pop(item.ticket, None)]
            # The batcher drops the expired by itself, whoever noticed first that they are.
            if unended and not expired and self._clock() < deadline_s:
                self._cancel(unended)

    # Carriage: what the shapes provide, and what they tell.

    @abstractmethod
    def _submit(self, items: Sequence[WorkItem]) -> None:
        """Give images, QUEUED and of one call, to an engine."""

    @abstractmethod
    def _cancel(self, tickets: Sequence[int]) -> None:
        """Take images of one call back, as far as they still wait."""

    def _room_changed(self) -> None:
        """Note that slots were taken or given back."""
        self._admission.rate.observe(self._clock(), images=self.slots_in_use, answered=self.answered)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        """Have the loop call back, from any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            _log.debug("the event loop is closed: nobody waits for the engine any more")

    def _deliver(self, completions: Sequence[Completion]) -> None:
        self._answered += sum(completion.error is None for completion in completions)
        self.release([completion.slot for completion in completions])
        for completion in completions:
            call = self._calls.pop(completion.ticket, None)
            if call is not None:
                call.end_one(completion)

    def _fail_calls(self, tickets: Iterable[int]) -> None:
        """Tell those who wait for these images that no engine works for them any more."""
        calls = {call for ticket in tickets if (call := self._calls.pop(ticket, None)) is not None}
        for call in calls:
            call.fail(NotReady(REFUSALS[EngineState.DEAD]))
