"""Work on a stream of items, some at a time, with the results in the items' order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def in_order(
    items: Iterable[T] | AsyncIterable[T], work: Callable[[T], Awaitable[R]], *, concurrency: int
) -> AsyncGenerator[tuple[T, R], None]:
    """Yield each item with what `work` gives for it, in order; at most `concurrency` items are held at a time.

    Work is begun ahead of the caller, who may take as long as it likes with a result. What `work` raises is raised in
    its turn. Then, or when the generator is closed, the work that is under way is cancelled and has ended; close it
    (`contextlib.aclosing`) where it may not be read to its end.
    """
    window: deque[tuple[T, asyncio.Task[R]]] = deque()

    async def begin(item: T) -> R:
        return await work(item)

    try:
        async for item in _each(items):
            window.append((item, asyncio.create_task(begin(item))))
            if len(window) >= concurrency:
                oldest, task = window.popleft()
                yield oldest, await task
        while window:
            oldest, task = window.popleft()
            yield oldest, await task
    finally:
        for _, task in window:
            task.cancel()
        await asyncio.gather(*(task for _, task in window), return_exceptions=True)


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
