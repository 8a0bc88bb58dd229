"""The engine in this process: a thread that drives the core, and here the event loop's side of it.

The loop owns the free slots, the calls that wait for answers, and the engine's state; the thread owns the core. They
exchange records: commands go in under a condition that wakes the thread, and completions come back with one
`call_soon_threadsafe` a step. Neither side polls.

Invariants: every `infer` ends, by an answer, an error or its deadline, whatever becomes of the engine; a slot is free
again exactly once, and only when neither a decoding thread nor the engine can touch it; a DEAD engine stays so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence

from service.engine.batcher import Batcher, BucketCosts
from service.engine.core import EngineCore, EngineObserver
from service.engine.reservation import Reservation
from service.engine.slots import SlotPool
from service.engine.thread import Cancel, EngineThread, Submit
from service.engine.types import Answer, Completion, EngineState, Pixels, Priority, Session, WorkItem
from service.errors import DeadlineExceeded, InvalidParameter, NotReady, Overloaded, StartupError

_log = logging.getLogger(__name__)

_FAILURES_TO_BE_UNHEALTHY = 3
_UNHEALTHY_S = 30.0
"""An engine that fails batch after batch is unhealthy for this long, and then given another chance."""
_RETRY_AFTER_S = (1.0, 60.0)
"""The least and the most that an overloaded engine asks its callers to wait."""
_LATE = "The deadline passed before the answer was there."
_REFUSALS = {
    EngineState.LOADING: "The model is still being loaded.",
    EngineState.READY: "The engine is ready.",
    EngineState.DRAINING: "The service is shutting down and takes no new work.",
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


class InProcessEngine:
    """An engine thread, the slots, and the calls that wait; every method belongs to one event loop, except where said.

    `load_session` is called in the engine's thread. `buckets` are the batch sizes that the session will see.
    `max_queued_images` bounds the images in the service, from being decoded to being answered. A step of the engine
    that lasts `hang_after_s` is taken for its death.
    """

    def __init__(
        self,
        load_session: Callable[[], Session],
        *,
        buckets: Sequence[int],
        max_queued_images: int = 1024,
        max_delay_s: float = 0.0,
        hang_after_s: float = 60.0,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_queued_images < 1:
            raise ValueError(f"max_queued_images must be at least 1, not {max_queued_images}")
        self._load_session = load_session
        self._batcher = Batcher(BucketCosts(buckets), max_delay_s=max_delay_s)
        self._max_queued_images = max_queued_images
        self._hang_after_s = hang_after_s
        self._observer = observer
        self._clock = clock
        self._state = EngineState.LOADING
        self._failure: str | None = None
        self._cause: BaseException | None = None
        self._core: EngineCore | None = None
        self._thread: EngineThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[int, _Call] = {}
        self._tickets = itertools.count()
        self._watchdog: asyncio.TimerHandle | None = None
        self._loaded = asyncio.Event()
        """Set when LOADING is over, however it ended."""
        self._idle = asyncio.Event()
        """Set while every slot is free, and for good when the engine is dead."""
        self._idle.set()
        self._ended = asyncio.Event()
        """Set when the thread has ended."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        return self._state

    @property
    def failure(self) -> str | None:
        """Why the engine is DEAD, in a sentence for operators; None while it is not."""
        return self._failure

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """Height, width and 3 of an image; None until the model is loaded."""
        return self._core.session.input_shape if self._core else None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output that can be asked for; none until the model is loaded."""
        return self._core.session.output_names if self._core else ()

    @property
    def slots_in_use(self) -> int:
        """Images in the service, from being decoded to being answered."""
        return self._core.pool.in_use if self._core else 0

    @property
    def queue_depth(self) -> int:
        """Images that wait for their batch or run in it, and whose caller still waits."""
        return len(self._calls)

    @property
    def busy_s(self) -> float | None:
        """How long the engine's present step has lasted; None between steps."""
        since_s = self._thread.busy_since_s if self._thread else None
        return None if since_s is None else self._clock() - since_s

    @property
    def last_inference_age_s(self) -> float | None:
        """Time since a run, one of the warm-up included, last succeeded; None before the first."""
        last_s = self._core.last_success_s if self._core else None
        return None if last_s is None else self._clock() - last_s

    @property
    def healthy(self) -> bool:
        """Whether to send it work: READY, not hanging, and not failing batch after batch."""
        core = self._core
        if self._state is not EngineState.READY or core is None or (self.busy_s or 0.0) >= self._hang_after_s:
            return False
        failed_s = core.last_failure_s
        is_failing = core.failures_in_a_row >= _FAILURES_TO_BE_UNHEALTHY
        return not (is_failing and failed_s is not None and self._clock() - failed_s < _UNHEALTHY_S)

    async def start(self) -> None:
        """Begin to load in the engine's thread, and return at once."""
        if self._thread is not None:
            raise RuntimeError("an engine is started once")
        self._loop = asyncio.get_running_loop()
        self._thread = EngineThread(
            self._make_core,
            clock=self._clock,
            on_ready=lambda core: self._post(self._become_ready, core),
            on_completions=lambda completions: self._post(self._deliver, completions),
            on_end=lambda cause: self._post(self._thread_ended, cause),
        )
        self._thread.start()

    async def wait_ready(self) -> None:
        """Return when the engine is READY; raises StartupError where it never will be."""
        await self._loaded.wait()
        if isinstance(self._cause, StartupError):
            raise self._cause
        if self._state is not EngineState.READY:
            raise StartupError(self._failure or "The service was stopped before its model was loaded.")

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new reservations and let those that exist finish; whether they all did in time."""
        if self._state in (EngineState.LOADING, EngineState.READY):
            self._state = EngineState.DRAINING
            self._loaded.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return self.slots_in_use == 0

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Fail whatever still waits, and end the thread; one that does not end in time is left behind."""
        thread = self._thread
        if thread is None:
            return
        self._die("The engine was stopped.")
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            _log.warning("the engine's thread did not end in time and is left behind")
        else:
            thread.join()

    def check_room(self, n: int = 1) -> None:
        """Raise what `reserve(n)` would raise, taking nothing: to be asked before a body is read."""
        pool = self._require(EngineState.READY).pool
        if n > pool.free:
            raise Overloaded(
                f"The queue is full: {pool.in_use} of {pool.slots} places are taken, and {n} would be needed.",
                retry_after_s=self._retry_after_s(pool.in_use),
            )

    def reserve(self, n: int) -> Reservation:
        """Take room for `n` images; raises Overloaded, or NotReady while loading, draining or dead."""
        self.check_room(n)
        slots = self._require(EngineState.READY).pool.acquire(n)
        self._idle.clear()
        return Reservation(self, slots)

    def _retry_after_s(self, images: int) -> float:
        """Return the time that the engine takes for so many images, at the best rate it has shown."""
        rate = self._batcher.costs.images_per_s
        least_s, most_s = _RETRY_AFTER_S
        return least_s if rate is None else min(max(images / rate, least_s), most_s)

    def _require(self, *states: EngineState) -> EngineCore:
        if self._core is not None and self._state in states:
            return self._core
        raise NotReady(_REFUSALS[self._state])

    # What a reservation asks for, as reservation.SlotKeeper says.

    def pixels(self, slot: int) -> Pixels:
        """Return a slot's image; any thread."""
        return self._require(*EngineState).pool.pixels(slot)

    def release(self, slots: Sequence[int]) -> None:
        """Take back slots that are FILLING or DONE."""
        pool = self._require(*EngineState).pool
        pool.release(slots)
        if pool.in_use == 0:
            self._idle.set()

    def release_from_thread(self, slots: Sequence[int]) -> None:
        """Take back slots that are FILLING; any thread."""
        self._post(self.release, slots)

    def check_call(self, outputs: frozenset[str], deadline_s: float) -> None:
        """Raise what `infer` would raise at once."""
        # A reservation is a promise: while draining, those that were made are kept.
        known = self._require(EngineState.READY, EngineState.DRAINING).session.output_names
        if not outputs or not outputs <= set(known):
            asked = ", ".join(sorted(outputs)) or "nothing"
            raise InvalidParameter(f"The model's outputs are {', '.join(known)}; asked for was {asked}.")
        if deadline_s <= self._clock():
            raise DeadlineExceeded(_LATE)

    async def infer(
        self, slots: Sequence[int], *, outputs: frozenset[str], priority: Priority, deadline_s: float
    ) -> list[Answer]:
        """Take the slots over, FILLING, and return their answers; `check_call` has just passed."""
        core, thread = self._require(EngineState.READY, EngineState.DRAINING), self._thread
        if not slots or thread is None:
            return []
        now_s = self._clock()
        items = [WorkItem(next(self._tickets), slot, outputs, priority, deadline_s, now_s) for slot in slots]
        call = _Call([item.ticket for item in items])
        core.pool.submit(slots)
        self._calls.update((item.ticket, call) for item in items)
        thread.send(Submit(items))
        self._watch()
        expired = False
        try:
            async with asyncio.timeout(deadline_s - now_s):
                return await call.answered
        except TimeoutError:
            expired = True
            raise DeadlineExceeded(_LATE) from None
        finally:
            unended = [item.ticket for item in items if self._calls.pop(item.ticket, None)]
            if unended and not expired:  # the batcher drops the expired by itself
                thread.send(Cancel(unended))

    # What the engine's thread has to tell; all called on the loop.

    def _make_core(self) -> EngineCore:
        session = self._load_session()
        pool = SlotPool(self._max_queued_images, session.input_shape)
        return EngineCore(session, pool, self._batcher, clock=self._clock, observer=self._observer)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        """Have the loop call back, from any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            _log.debug("the event loop is closed: nobody waits for the engine any more")

    def _become_ready(self, core: EngineCore) -> None:
        self._core = core
        if self._state is EngineState.LOADING:
            self._state = EngineState.READY
        self._loaded.set()

    def _deliver(self, completions: Sequence[Completion]) -> None:
        self.release([completion.slot for completion in completions])
        for completion in completions:
            call = self._calls.pop(completion.ticket, None)
            if call is not None:
                call.end_one(completion)

    def _thread_ended(self, cause: BaseException | None) -> None:
        self._cause = cause
        if isinstance(cause, StartupError):
            self._die(str(cause))
        else:
            self._die(f"The engine's thread ended ({type(cause).__name__}); the log has the details.")
        if self._core is not None:
            self._core.pool.reclaim()
        self._ended.set()

    def _die(self, failure: str) -> None:
        """Fail everything that waits, for good; the first failure is the one that is remembered."""
        if self._state is EngineState.DEAD:
            return
        self._state, self._failure = EngineState.DEAD, failure
        if self._thread is not None:
            self._thread.end()
        if self._watchdog is not None:
            self._watchdog.cancel()
        calls, self._calls = set(self._calls.values()), {}
        for call in calls:
            call.fail(NotReady(_REFUSALS[EngineState.DEAD]))
        self._loaded.set()
        self._idle.set()

    def _watch(self) -> None:
        """Have the engine looked at when a step that begins now would have lasted too long."""
        if self._watchdog is None:
            self._watchdog = asyncio.get_running_loop().call_later(self._hang_after_s, self._look)

    def _look(self) -> None:
        self._watchdog = None
        busy_s = self.busy_s
        if busy_s is not None and busy_s >= self._hang_after_s:
            _log.error("the engine's step has lasted %.1f s: it is taken for dead", busy_s)
            self._die(f"The engine hangs: one step has lasted more than {self._hang_after_s:g} s.")
        elif busy_s is not None or self._calls:
            loop = asyncio.get_running_loop()
            self._watchdog = loop.call_later(self._hang_after_s - (busy_s or 0.0), self._look)
