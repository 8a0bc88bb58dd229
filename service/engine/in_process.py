"""The engine in this process: a thread that drives the core, and here the event loop's side of it.

The loop owns the free slots, the calls that wait for answers, and the engine's state; the thread owns the core. They
exchange records: commands go in under a condition that wakes the thread, and completions come back with one
`call_soon_threadsafe` a step. Neither side polls.

Invariants: those of `client`; a DEAD engine stays so: whoever serves with it puts another in its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from service.engine.board import Board
from service.engine.client import EngineClient
from service.engine.core import EngineCore, EngineObserver
from service.engine.device_turns import DeviceTurns
from service.engine.graphs import Graph, largest_pixels
from service.engine.room import Room
from service.engine.slots import SlotPool
from service.engine.thread import EngineThread
from service.engine.types import EngineState, Session, WorkItem
from service.errors import StartupError

_log = logging.getLogger(__name__)


class InProcessEngine(EngineClient):
    """An engine thread, the slots, and the calls that wait; every method belongs to one event loop, except where said.

    `load` is called in the engine's thread, with each of `graphs`, which all take images of `input_shape` (height,
    width, 3), and others where they say so. `room` bounds the images in the service, from being decoded to being
    answered, and `max_wait_s`, above 0, the time that they are predicted to wait for their turn. Runs take turns with
    those of other engines by `turns`. A step of the engine that lasts `hang_after_s` is taken for its death.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        load: Callable[[Graph], Session],
        *,
        input_shape: tuple[int, int, int],
        room: Room,
        turns: DeviceTurns | None = None,
        max_wait_s: float = 0.0,
        max_delay_s: float = 0.0,
        hang_after_s: float = 60.0,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            graphs,
            SlotPool(room.images, input_shape, max_pixels=largest_pixels(graphs, input_shape[:2])),
            Board(workers=1, engines=1),
            worker=0,
            room=room,
            max_wait_s=max_wait_s,
            hang_after_s=hang_after_s,
            clock=clock,
        )
        self._load = load
        self._input_shape = input_shape
        self._max_delay_s = max_delay_s
        self._observer = observer
        self._engine = self._board.engines[0]
        self._contender = (turns or DeviceTurns(clock=clock)).join()
        self._thread = EngineThread(
            self._make_core,
            clock=clock,
            on_ready=partial(self._post, self._become_ready),
            on_completions=partial(self._post, self._deliver),
            on_end=partial(self._post, self._thread_ended),
        )
        self._watchdog: asyncio.TimerHandle | None = None
        self._hangs = False
        self._died = asyncio.Event()
        """Set when the engine is DEAD."""
        self._ended = asyncio.Event()
        """Set when the thread has ended."""

    @property
    def states(self) -> Sequence[EngineState]:
        """The state of the one engine."""
        return (self._state,)

    @property
    def hangs(self) -> bool:
        """Whether it is DEAD because a step does not end: then nothing ends its thread but the end of its process."""
        return self._hangs

    async def wait_dead(self) -> None:
        """Return when the engine is DEAD."""
        await self._died.wait()

    async def start(self) -> None:
        """Begin to load in the engine's thread, and return at once."""
        if self._loop is not None:
            raise RuntimeError("an engine is started once")
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Fail whatever still waits, and end the thread; one that does not end in time is left behind."""
        if self._loop is None:
            return
        self._die("The engine was stopped.")
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            _log.warning("the engine's thread did not end in time and is left behind")
        else:
            self._thread.join()

    def _ready_engines(self) -> Sequence[int]:
        return (0,)

    def _submit(self, items: Sequence[WorkItem]) -> None:
        self._thread.send(lambda core: core.submit(items))
        self._watch()

    def _cancel(self, tickets: Sequence[int]) -> None:
        self._thread.send(lambda core: core.cancel(tickets))

    # What the engine's thread reports; all called on the loop but the first, which the thread calls.

    def _make_core(self) -> EngineCore:
        return EngineCore(
            self._graphs,
            {graph.key: self._load(graph) for graph in self._graphs},
            self._pool,
            self._engine,
            input_shape=self._input_shape,
            clock=self._clock,
            max_delay_s=self._max_delay_s,
            observer=self._observer,
            contender=self._contender,
        )

    def _become_ready(self) -> None:
        if self._state is EngineState.LOADING:
            self._state = EngineState.READY
        self._loaded.set()

    def _thread_ended(self, cause: BaseException | None) -> None:
        self._cause = cause
        if isinstance(cause, StartupError):
            self._die(str(cause))
        else:
            self._die(f"The engine's thread ended ({type(cause).__name__}); the log has the details.")
        self._contender.leave()
        self._reclaim()
        self._ended.set()

    def _die(self, failure: str) -> None:
        """Fail everything that waits, for good; the first failure is the one that is remembered."""
        if self._state is EngineState.DEAD:
            return
        self._state, self._failure = EngineState.DEAD, failure
        self._thread.end()
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._fail_calls(list(self._calls))
        self._loaded.set()
        self._died.set()

    def _watch(self) -> None:
        """Have the engine looked at when a step that begins now would have lasted too long."""
        if self._watchdog is None:
            self._watchdog = asyncio.get_running_loop().call_later(self._hang_after_s, self._look)

    def _look(self) -> None:
        self._watchdog = None
        since_s = self._engine.busy_since_s
        busy_s = self._clock() - since_s if since_s else 0.0
        if busy_s >= self._hang_after_s:
            _log.error("the engine's step has lasted %.1f s: it is taken for dead", busy_s)
            self._hangs = True
            self._contender.leave()  # others need not wait for what never ends
            self._die(f"The engine hangs: one step has lasted more than {self._hang_after_s:g} s.")
            self._give_up()
        elif since_s or self._calls:
            loop = asyncio.get_running_loop()
            self._watchdog = loop.call_later(self._hang_after_s - busy_s, self._look)
