"""Reads that may never end, as from a volume whose server is gone, in threads that nobody has to wait for.

The event loop's own threads are waited for when the loop ends, and would keep the service from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_daemon_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return what a function does, called in a thread of its own that ends with the process if not before."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def set_result(value: T) -> None:
        if not result.done():  # else nobody waits any more
            result.set_result(value)

    def set_exception(error: BaseException) -> None:
        if not result.done():
            result.set_exception(error)

    def call() -> None:
        try:
            end = partial(set_result, function(*arguments, **named))
        except BaseException as error:  # it is the caller's, whatever it is
            end = partial(set_exception, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(end)

    threading.Thread(target=call, name="reading", daemon=True).start()
    return await result
