"""Single questions gathered into requests that carry several.

Work-conserving, as the server's own batching is: a request leaves as soon as one may, with whatever waits by then, so
that nothing waits for company and a busy connection carries many images at the price of one request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The most that is gathered; one image alone may have more bytes.

    By default what costs least: a request's own price is shared by enough images to be small beside theirs, and there
    is one to compute while another is on its way.
    """

    images: int = 16
    size_bytes: int = 8 * 1024 * 1024
    """Of all images, with `part_bytes` for each."""
    part_bytes: int = 256
    """What a form has around an image, at most."""

    def within(self, *, max_images: int, max_body_bytes: int) -> GroupLimits:
        """Return these, made so small that a request of them is within a server's limits."""
        return replace(self, images=min(self.images, max_images), size_bytes=min(self.size_bytes, max_body_bytes))


class Groups(Generic[R]):
    """Sends images, at most `requests` groups at a time, each within `limits`.

    `send` gives as many answers as it gets images. What `send` raises is raised to everybody in its group.
    Belongs to one event loop; `close` it at the end.
    """

    def __init__(
        self, send: Callable[[Sequence[bytes]], Awaitable[Sequence[R]]], *, requests: int, limits: GroupLimits
    ) -> None:
        self._send = send
        self._requests = requests
        self._limits = limits
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
        while self._waiting and len(group) < self._limits.images:
            image, answered = self._waiting[0]
            part_bytes = len(image) + self._limits.part_bytes
            if group and size_bytes + part_bytes > self._limits.size_bytes:
                break
            self._waiting.popleft()
            if not answered.done():
                group.append((image, answered))
                size_bytes += part_bytes
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
