"""Single questions gathered into requests that carry several.

Work-conserving, as the server's own batching is: a request leaves as soon as one may, with whatever waits by then, so
that nothing waits for company and a busy connection carries many images at the price of one request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

R = TypeVar("R")
MAX_IMAGES = 16
MAX_BYTES = 8 * 1024 * 1024
"""Most that is gathered; one image alone may have more."""


class Groups(Generic[R]):
    """Sends images, at most `requests` groups at a time; `send` gives as many answers as it gets images.

    What `send` raises is raised to everybody in its group. Belongs to one event loop; `close` it at the end.
    """

    def __init__(self, send: Callable[[Sequence[bytes]], Awaitable[Sequence[R]]], *, requests: int) -> None:
        self._send = send
        self._requests = requests
        self._waiting: deque[tuple[bytes, asyncio.Future[R]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, image: bytes) -> R:
        """Return the answer for one image; an image whose asker is cancelled while it waits is not sent."""
        answered: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, answered))
        self._begin()
        return await answered

    async def close(self) -> None:
        """Cancel what is under way, and return when it has ended."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _begin(self) -> None:
        while len(self._running) < self._requests and (group := self._take()):
            task = asyncio.create_task(self._answer(group))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _take(self) -> list[tuple[bytes, asyncio.Future[R]]]:
        group: list[tuple[bytes, asyncio.Future[R]]] = []
        size_bytes = 0
        while self._waiting and len(group) < MAX_IMAGES:
            image, answered = self._waiting[0]
            if group and size_bytes + len(image) > MAX_BYTES:
                break
            self._waiting.popleft()
            if not answered.done():
                group.append((image, answered))
                size_bytes += len(image)
        return group

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._begin()

    async def _answer(self, group: Sequence[tuple[bytes, asyncio.Future[R]]]) -> None:
        try:
            answers = await self._send([image for image, _ in group])
        except Exception as error:  # the askers', whatever it is
            for _, answered in group:
                if not answered.done():
                    answered.set_exception(error)
        else:
            for (_, answered), answer in zip(group, answers, strict=True):
                if not answered.done():
                    answered.set_result(answer)
