"""The event loop's side of an engine, wherever the engine runs: free slots, calls that wait, and deadlines.

What differs between an engine in this process (`in_process`) and engines in others (`remote`) is transport alone: how
images are sent and taken back, and how their ends arrive. All else is here, so that both shapes behave alike.

Invariants: every `infer` of a reservation ends, by an answer, an error or its deadline, whatever becomes of the engine;
a slot is free again exactly once, and only when neither a decoding thread nor an engine can touch it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial

from service.engine.admission import Admission, Backlog
from service.engine.board import Board
from service.engine.graphs import Graph, graph_of
from service.engine.reservation import Reservation
from service.engine.room import Room
from service.engine.slots import SlotPool
from service.engine.types import Answer, Completion, EngineState, Failure, Priority, Shape, WorkItem, pixels_of
from service.errors import DeadlineExceeded, InvalidParameter, NotReady, Overloaded, ServiceError, StartupError

_log = logging.getLogger(__name__)

_LATE = "The deadline passed before the answer was there."
_LOADING = "The model is still being loaded."
_DEAD = "The inference engine is not running."


class _Call:
    """The images of one `infer`, and the future that its caller awaits."""

    def __init__(self, tickets: Sequence[int]) -> None:
        self.answered: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self.tickets = tickets
        self._answers: dict[int, Answer] = {}

    def answer(self, ticket: int, answer: Answer) -> None:
        self._answers[ticket] = answer
        if len(self._answers) == len(self.tickets) and not self.answered.done():
            self.answered.set_result([self._answers[ticket] for ticket in self.tickets])

    def fail(self, error: ServiceError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


class EngineClient(ABC):
    """What those who ask know of an engine; every method belongs to one event loop, except where said.

    `graphs` are those that the engine runs, `pool` has the slots of this process, which is worker `worker` on the
    board; of its images and those of other engines at most as many are in hand as `room` has places. `max_wait_s`,
    above 0, bounds the time that images are predicted to wait for their turn. An engine whose step lasts `hang_after_s`
    hangs.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        pool: SlotPool,
        board: Board,
        *,
        worker: int,
        room: Room,
        max_wait_s: float = 0.0,
        hang_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._graphs = graphs
        self._pool = pool
        self._board = board
        self._row = board.workers[worker]
        self._hang_after_s = hang_after_s
        self._clock = clock
        largest_batch = max(bucket for graph in graphs for bucket in graph.buckets)
        self._admission = Admission(largest_batch=largest_batch, max_wait_s=max_wait_s)
        self._most_pixels = max(pool.slots * pool.own_pixels, pool.max_pixels)
        """Of the images that may be here at once: as many as the slots have of the model's own size."""
        self._bulk_slots: set[int] = set()
        self._bulk_pixels = 0
        self._answered_pixels = 0
        self._state = EngineState.LOADING
        self._failure: str | None = None
        self._cause: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[int, _Call] = {}
        self._tickets = itertools.count()
        self._loaded = asyncio.Event()
        """Set when LOADING is over, however it ended."""
        self._given_up: set[int] = set()
        """Slots in the hands of an engine that hangs for ever: they count no more, and are used no more."""
        self._empty = asyncio.Event()
        """Set while no slot is in use."""
        self._empty.set()

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
    def healthy(self) -> bool:
        """Whether to send it work: READY, not hanging, and not failing batch after batch."""
        return self._state is EngineState.READY and any(map(self._is_well, self._ready_engines()))

    def _is_well(self, engine: int) -> bool:
        return self._board.engines[engine].is_well(self._clock(), hang_after_s=self._hang_after_s)

    def check_ready(self) -> None:
        """Raise NotReady while the engine loads, hangs, fails on every batch or is dead."""
        if self.healthy:
            return
        if self._state is EngineState.READY:
            raise NotReady("The engine hangs, or fails on every batch.")
        raise NotReady(f"The engine is {self._state.value}.")

    @property
    def slots_in_use(self) -> int:
        """Images in the service, of all workers, from being decoded to being answered."""
        return self._board.admitted

    @property
    def queue_depth(self) -> int:
        """Images that wait for their batch or run in it, and whose caller still waits."""
        return len(self._calls)

    @property
    def backlog(self) -> Backlog:
        """What is in the service, of all workers, from being decoded to being answered, by priority.

        It is counted in images of the model's own size.
        """
        bulk, one = self._board.admitted_bulk_pixels, self._pool.own_pixels
        return Backlog((self._board.admitted_pixels - bulk) / one, bulk / one)

    @property
    def answered(self) -> float:
        """What was ever answered, by all workers that live, counted in images of the model's own size."""
        return self._board.answered_pixels / self._pool.own_pixels

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

    async def wait_empty(self) -> None:
        """Return when no image of this process is in its hands any more."""
        await self._empty.wait()

    def check_room(
        self,
        n: int = 1,
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline_s: float = math.inf,
        shape: Shape | None = None,
    ) -> None:
        """Raise what `reserve` would raise, taking nothing: to be asked before a body is read."""
        self._check_takes_work()
        room, pool, images_per_s = self._room, self._pool, self._board.images_per_s
        pixels = n * (pool.own_pixels if shape is None else pixels_of(shape))
        if n > room.free:
            raise Overloaded(
                f"The queue is full: {room.in_use} of {room.images} places are taken, and {n} would be needed.",
                retry_after_s=self._admission.time_for_s(n - room.free, device_images_per_s=images_per_s),
            )
        lacking = pool.pixels_in_use + pixels - self._most_pixels
        if lacking > 0:
            self._refuse_pixels(n, pixels, lacking)
        refusal = self._admission.refusal(
            pixels / pool.own_pixels,
            priority=priority,
            left_s=deadline_s - self._clock(),
            backlog=self.backlog,
            device_images_per_s=images_per_s,
        )
        if refusal is not None:
            raise Overloaded(refusal.reason, retry_after_s=refusal.retry_after_s)

    def _refuse_pixels(self, n: int, pixels: int, lacking: int) -> None:
        """Raise Overloaded, or InvalidParameter where even an idle service would not have room."""
        if pixels > self._most_pixels:
            raise InvalidParameter(
                f"{n} images of {pixels // n} pixels are more than are admitted at once, which is {self._most_pixels} "
                "pixels in all; send fewer in one request, or smaller ones."
            )
        raise Overloaded(
            f"The queue is full: {self._pool.pixels_in_use} of {self._most_pixels} pixels are taken, and {pixels} "
            "would be needed.",
            retry_after_s=self._admission.time_for_s(
                lacking / self._pool.own_pixels, device_images_per_s=self._board.images_per_s
            ),
        )

    def reserve(
        self,
        n: int,
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline_s: float = math.inf,
        shape: Shape | None = None,
    ) -> Reservation:
        """Take room for `n` images whose answers are due by `deadline_s`, a time on the engine's clock.

        They are of `shape`, by default the model's own. Raises Overloaded where there is no room or the answers would
        come too late, InvalidParameter for images that no graph takes or that are more than are ever admitted, and
        NotReady while loading or dead.
        """
        if shape is not None and shape != self._pool.own_shape:
            self._check_shape(shape)
        self.check_room(n, priority=priority, deadline_s=deadline_s, shape=shape)
        slots = self._pool.acquire(n, shape)
        self._room.take(n)
        if priority is Priority.BULK:
            self._bulk_slots.update(slots)
            self._bulk_pixels += sum(pixels_of(self._pool.shape_of(slot)) for slot in slots)
        self._room_changed()
        shape = self._pool.own_shape if shape is None else shape
        return Reservation(
            self._pool,
            slots,
            shape=shape,
            infer=partial(self.infer, shape=shape, priority=priority, deadline_s=deadline_s),
            release=self.release,
            release_from_thread=partial(self._post, self.release),
        )

    def _check_shape(self, shape: Shape) -> None:
        """Raise InvalidParameter where no graph takes images of a shape; each graph is asked once there is one."""
        graph = max(self._graphs, key=lambda graph: graph.free.max_pixels if graph.free is not None else 0)
        graph.check_shape(shape, self._pool.own_shape)

    def _check_takes_work(self) -> None:
        match self._state:
            case EngineState.LOADING:
                raise NotReady(_LOADING)
            case EngineState.DEAD:
                raise NotReady(_DEAD)

    # What a reservation asks for.

    def release(self, slots: Sequence[int]) -> None:
        """Take back slots that are FILLING or DONE."""
        self._no_bulk(slots)
        self._pool.release(slots)
        self._room.give_back(len(slots))
        self._room_changed()

    def _no_bulk(self, slots: Iterable[int]) -> None:
        """Note that slots, which still have their images, are bulk no more, where they were."""
        for slot in self._bulk_slots.intersection(slots):
            self._bulk_slots.remove(slot)
            self._bulk_pixels -= pixels_of(self._pool.shape_of(slot))

    def _reclaim(self, slots: Iterable[int] | None = None) -> None:
        """Take back the slots (of all, by default) that an engine owned which is no more."""
        owned = self._pool.owned_by_engine(slots)
        self._no_bulk(owned)
        self._pool.reclaim(owned)
        self._room.give_back(len(set(owned) - self._given_up))
        self._given_up.difference_update(owned)
        self._room_changed()

    def _give_up(self) -> None:
        """Count the slots no more that are in the hands of an engine which hangs: others need the room."""
        owned = self._pool.owned_by_engine()
        self._room.give_back(len(owned))
        self._given_up.update(owned)
        self._room_changed()

    def infer(
        self, slots: Sequence[int], outputs: frozenset[str], *, shape: Shape, priority: Priority, deadline_s: float
    ) -> Coroutine[object, object, list[Answer]]:
        """Take slots over that are FILLING, and return what gives their answers, to be awaited at once.

        `shape` is that of the images in them, for which they were reserved.

        Raises NotReady, InvalidParameter or DeadlineExceeded, and then takes none.
        """
        self._check_takes_work()
        graph = graph_of(outputs, self._graphs)
        graph.check_shape(shape, self._pool.own_shape)
        now_s = self._clock()
        if deadline_s <= now_s:
            raise DeadlineExceeded(_LATE)
        items = [
            WorkItem(next(self._tickets), slot, graph.key, shape, outputs, priority, deadline_s, now_s)
            for slot in slots
        ]
        call = _Call([item.ticket for item in items])
        self._pool.submit(slots)
        self._calls.update(dict.fromkeys(call.tickets, call))
        self._submit(items)
        return self._answers(call, deadline_s)

    async def _answers(self, call: _Call, deadline_s: float) -> list[Answer]:
        timer: asyncio.TimerHandle | None = None
        if deadline_s < math.inf:
            loop, left_s = asyncio.get_running_loop(), max(deadline_s - self._clock(), 0.0)
            timer = loop.call_later(left_s, lambda: call.fail(DeadlineExceeded(_LATE)))
        try:
            return await call.answered
        finally:
            if timer is not None:
                timer.cancel()
            unended = [ticket for ticket in call.tickets if self._calls.pop(ticket, None)]
            # The batcher drops the expired by itself, whoever noticed first that they are.
            if unended and self._clock() < deadline_s:
                self._cancel(unended)

    # Transport: what the shapes provide, and what they report.

    @abstractmethod
    def _ready_engines(self) -> Sequence[int]:
        """Return the numbers of the engines that take work."""

    @abstractmethod
    def _submit(self, items: Sequence[WorkItem]) -> None:
        """Give images, QUEUED and of one call, to an engine."""

    @abstractmethod
    def _cancel(self, tickets: Sequence[int]) -> None:
        """Take images of one call back, as far as they still wait."""

    def _room_changed(self) -> None:
        """Note that slots were taken or given back."""
        row, pool = self._row, self._pool
        in_use = row.admitted = pool.in_use
        row.admitted_pixels = pool.pixels_in_use
        row.admitted_bulk_pixels, row.answered_pixels = self._bulk_pixels, self._answered_pixels
        if in_use > len(self._given_up):
            self._empty.clear()
        else:
            self._empty.set()
        images = self._board.admitted_pixels / pool.own_pixels
        self._admission.rate.observe(self._clock(), images=images, answered=self.answered)

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
        """Take slots back whose images have ended, and give their callers the answers."""
        for ticket, slot, end in completions:
            call = self._calls.pop(ticket, None)
            if isinstance(end, Failure):
                if call is not None:
                    call.fail(end.error())
                continue
            self._answered_pixels += pixels_of(self._pool.shape_of(slot))
            if call is not None:
                call.answer(ticket, Answer(self._pool.collect(slot), end))
        self.release([completion.slot for completion in completions])

    def _fail_calls(self, tickets: Iterable[int]) -> None:
        """Fail the calls that wait for these images: no engine works for them any more."""
        calls = {call for ticket in tickets if (call := self._calls.pop(ticket, None)) is not None}
        for call in calls:
            call.fail(NotReady(_DEAD))
