"""The threads that decode images, interactive ones before bulk ones by the rule that batches form by.

A decode that has begun cannot be stopped. One whose caller has given up is *abandoned*: its thread goes on, and while
it does another thread works in its place, up to as many as the pool has by itself. If those are stuck too, work waits.

Invariants: each piece of work ends once, with its result, its exception or cancelled; within a priority work begins
in the order it came; work whose future was cancelled before a thread came to it is never begun, and nothing keeps it;
what abandoned work returns or raises goes nowhere; work sees the context variables of whoever asked for it; no thread
keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from service.engine.named_thread import NamedThread
from service.engine.turns import Turns
from service.engine.types import Priority

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class DecodePool:
    """As many threads as are given, and others for those that are stuck; used by event loops.

    `on_abandoned` is told how many pieces of abandoned work run, whenever that changes: on the event loop or in a
    thread of the pool, by one caller at a time. It must be quick.
    """

    def __init__(self, threads: int, *, on_abandoned: Callable[[int], None] = lambda _: None) -> None:
        self._size = threads
        self._on_abandoned = on_abandoned
        self._changed = threading.Condition()  # over all below
        # In order, and quick to take out of the middle: where all threads are stuck, work leaves by its deadline alone.
        self._waiting: dict[Priority, OrderedDict[_Work[Any], None]] = {
            priority: OrderedDict() for priority in Priority
        }
        self._turns = Turns()
        self._running: set[_Work[Any]] = set()
        self._abandoned: set[_Work[Any]] = set()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._numbers = itertools.count()
        self._closed = False

    def run(self, priority: Priority, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Have a thread call `work`, and return the future of what it returns or raises.

        Cancelling the future gives the work up: it is not begun, or it is abandoned where it has begun.
        """
        asked = _Work(partial(copy_context().run, work, *args, **kwargs))
        asked.ended.add_done_callback(partial(self._give_up_if_cancelled, priority, asked))
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool was shut down")
            self._waiting[priority][asked] = None
            self._find_hands()
        return asked.ended

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """Cancel what has not begun, and wait for the rest; a thread that does not end in time is left behind."""
        with self._changed:
            self._closed = True
            for waiting in self._waiting.values():
                while waiting:
                    waiting.popitem()[0].cancel()
            threads = list(self._threads)
            self._changed.notify_all()
        until_s = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(until_s - time.monotonic(), 0.0))

    def _find_hands(self) -> None:
        """Wake a thread for what waits, and start one where too few sleep; called with the lock."""
        if self._idle:
            self._changed.notify()
        if len(self._threads) < self._most_threads and sum(map(len, self._waiting.values())) > self._idle:
            thread = NamedThread(target=self._serve, name=f"decode-{next(self._numbers)}", daemon=True)
            self._threads.add(thread)
            thread.start()

    @property
    def _most_threads(self) -> int:
        return self._size + min(len(self._abandoned), self._size)

    def _give_up_if_cancelled(self, priority: Priority, work: _Work[T], ended: asyncio.Future[T]) -> None:
        """Take back what has not begun, and put another thread in the place of one that has; on the event loop."""
        if not ended.cancelled():
            return
        with self._changed:
            self._waiting[priority].pop(work, None)
            if work in self._running:
                self._running.remove(work)
                self._abandoned.add(work)
                self._on_abandoned(len(self._abandoned))
                self._find_hands()

    def _serve(self) -> None:
        """Do what waits, until this thread is one too many: the whole of each thread's life."""
        while (work := self._take()) is not None:
            call = work.take_call()
            try:
                end = partial(work.return_from_thread, call())
            except BaseException as error:  # the caller's, whatever it is
                end = partial(work.raise_from_thread, error)
            if self._put_down(work):
                end()
            del work, call, end  # an exception's traceback has this frame, and would keep the image alive

    def _take(self) -> _Work[Any] | None:
        """Wait for work and return it; None where this thread is to end."""
        interactive, bulk = self._waiting[Priority.INTERACTIVE], self._waiting[Priority.BULK]
        with self._changed:
            while not self._closed and len(self._threads) <= self._most_threads:
                if interactive or bulk:
                    priority = self._turns.take(interactive=bool(interactive), bulk=bool(bulk))
                    work, _ = self._waiting[priority].popitem(last=False)
                    if not work.ended.cancelled():
                        self._running.add(work)
                        return work
                else:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
            self._threads.remove(threading.current_thread())
            return None

    def _put_down(self, work: _Work[Any]) -> bool:
        """Return whether anybody waits for the end of work that was done."""
        with self._changed:
            if work not in self._abandoned:
                self._running.remove(work)
                return True
            self._abandoned.remove(work)
            self._on_abandoned(len(self._abandoned))
            return False


class _Work(Generic[T]):
    """A call that a thread makes once, and the future of how it ends, which belongs to the loop that asked."""

    __slots__ = ("_call", "_loop", "ended")

    def __init__(self, call: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call: Callable[[], T] | None = call
        self.ended: asyncio.Future[T] = self._loop.create_future()

    def take_call(self) -> Callable[[], T]:
        """Return what is to be called, and forget it."""
        assert self._call is not None
        call, self._call = self._call, None
        return call

    def cancel(self) -> None:
        """Tell whoever asked that the call will not be made; any thread."""
        self._tell(self.ended.cancel)

    def return_from_thread(self, result: T) -> None:
        """Tell whoever asked what the call returned; any thread."""
        self._tell(self._end, partial(self.ended.set_result, result))

    def raise_from_thread(self, error: BaseException) -> None:
        """Tell whoever asked what the call raised; any thread."""
        self._tell(self._end, partial(self.ended.set_exception, error))

    def _end(self, end: Callable[[], None]) -> None:
        if not self.ended.done():
            end()

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            _log.debug("the event loop is closed: nobody waits for this work any more")
