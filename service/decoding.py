"""The threads that decode images, interactive ones before bulk ones by the rule that batches form by.

Invariants: each piece of work ends once, with its result, its exception or cancelled; within a priority work begins
in the order it came; work whose future was cancelled before a thread came to it is never begun; work sees the context
variables of whoever asked for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from service.engine.turns import Turns
from service.engine.types import Priority

P = ParamSpec("P")
T = TypeVar("T")


class DecodePool:
    """As many threads as are given; made and used by an event loop."""

    def __init__(self, threads: int) -> None:
        # The executor's own queue only counts: each of its calls takes whatever work is next when a thread is free.
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._lock = threading.Lock()  # over the two below
        self._waiting: dict[Priority, deque[tuple[Future[Any], Callable[[], Any]]]] = {
            priority: deque() for priority in Priority
        }
        self._turns = Turns()

    def run(self, priority: Priority, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Have a thread call `work`, and return the future of what it returns or raises."""
        ended: Future[T] = Future()
        with self._lock:
            self._waiting[priority].append((ended, partial(copy_context().run, work, *args, **kwargs)))
        self._executor.submit(self._run_next)
        return asyncio.wrap_future(ended)

    def shutdown(self) -> None:
        """Wait for the work that has begun, and cancel the rest."""
        with self._lock:
            for waiting in self._waiting.values():
                for ended, _ in waiting:
                    ended.cancel()
        self._executor.shutdown()

    def _run_next(self) -> None:
        interactive, bulk = self._waiting[Priority.INTERACTIVE], self._waiting[Priority.BULK]
        with self._lock:
            priority = self._turns.take(interactive=bool(interactive), bulk=bool(bulk))
            ended, work = self._waiting[priority].popleft()
        if not ended.set_running_or_notify_cancel():
            return
        try:
            ended.set_result(work())
        except BaseException as error:  # the caller's, whatever it is
            ended.set_exception(error)
            del ended, work  # which the exception's traceback, and so the image, would otherwise keep alive
