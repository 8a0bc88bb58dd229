"""The engine in this process: a thread that drives the core, and here the event loop's side of it.

The loop owns the free slots, the calls that wait for answers, and the engine's state; the thread owns the core. They
exchange records: commands go in under a condition that wakes the thread, and completions come back with one
`call_soon_threadsafe` a step. Neither side polls.

Invariants: those of `client`; a DEAD engine stays so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from service.engine.batcher import Batcher, BucketCosts
from service.engine.client import EngineClient, is_failing
from service.engine.core import EngineCore, EngineObserver
from service.engine.slots import SlotPool
from service.engine.thread import Cancel, EngineThread, Submit
from service.engine.types import EngineState, Session, WorkItem
from service.errors import StartupError

_log = logging.getLogger(__name__)


class InProcessEngine(EngineClient):
    """An engine thread, the slots, and the calls that wait; every method belongs to one event loop, except where said.

    `load_session` is called in the engine's thread. `buckets` are the batch sizes that the session will see.
    `max_queued_images` bounds the images in the service, from being decoded to being answered, and `max_wait_s`,
    above 0, the time that they are predicted to wait for their turn. A step of the engine that lasts `hang_after_s`
    is taken for its death. `explain_outputs` are what the session computes by a graph of its own, if it has one.
    """

    def __init__(
        self,
        load_session: Callable[[], Session],
        *,
        buckets: Sequence[int],
        explain_outputs: Sequence[str] = (),
        max_queued_images: int = 1024,
        max_wait_s: float = 0.0,
        max_delay_s: float = 0.0,
        hang_after_s: float = 60.0,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_queued_images < 1:
            raise ValueError(f"max_queued_images must be at least 1, not {max_queued_images}")
        super().__init__(largest_batch=max(buckets), max_wait_s=max_wait_s, clock=clock)
        self._load_session = load_session
        self._explain_outputs = tuple(explain_outputs)
        self._batcher = Batcher(BucketCosts(buckets), explain_outputs=explain_outputs, max_delay_s=max_delay_s)
        self._max_queued_images = max_queued_images
        self._hang_after_s = hang_after_s
        self._observer = observer
        self._core: EngineCore | None = None
        self._thread: EngineThread | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        """Set when the thread has ended."""

    @property
    def states(self) -> Sequence[EngineState]:
        """The state of the one engine."""
        return (self._state,)

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """Height, width and 3 of an image; None until the model is loaded."""
        return self._core.session.input_shape if self._core else None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output that can be asked for; none until the model is loaded."""
        return self._core.session.output_names if self._core else ()

    @property
    def explain_names(self) -> tuple[str, ...]:
        """Every output that says where the model looked."""
        return self._explain_outputs

    @property
    def busy_s(self) -> float | None:
        """How long the engine's present step has lasted; None between steps."""
        since_s = self._thread.busy_since_s if self._thread else None
        return None if since_s is None else self._clock() - since_s

    @property
    def images_per_s(self) -> float | None:
        """The best rate that the engine has shown; None before the first run."""
        return self._batcher.costs.images_per_s

    @property
    def healthy(self) -> bool:
        """Whether to send it work: READY, not hanging, and not failing batch after batch."""
        core = self._core
        if self._state is not EngineState.READY or core is None or (self.busy_s or 0.0) >= self._hang_after_s:
            return False
        return not is_failing(core.failures_in_a_row, core.last_failure_s, self._clock())

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

    def _submit(self, items: Sequence[WorkItem]) -> None:
        assert self._thread is not None
        self._thread.send(Submit(items))
        self._watch()

    def _cancel(self, tickets: Sequence[int]) -> None:
        assert self._thread is not None
        self._thread.send(Cancel(tickets))

    # What the engine's thread has to tell; all called on the loop but the first, which the thread calls.

    def _make_core(self) -> EngineCore:
        session = self._load_session()
        pool = SlotPool(self._max_queued_images, session.input_shape)
        return EngineCore(session, pool, self._batcher, clock=self._clock, observer=self._observer)

    def _become_ready(self, core: EngineCore) -> None:
        assert isinstance(core.pool, SlotPool)
        self._core, self._pool = core, core.pool
        if self._state is EngineState.LOADING:
            self._state = EngineState.READY
        self._loaded.set()

    def _thread_ended(self, cause: BaseException | None) -> None:
        self._cause = cause
        if isinstance(cause, StartupError):
            self._die(str(cause))
        else:
            self._die(f"The engine's thread ended ({type(cause).__name__}); the log has the details.")
        if self._pool is not None:
            self._pool.reclaim()
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
        self._fail_calls(list(self._calls))
        self._loaded.set()

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
