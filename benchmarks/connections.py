"""Requests and the connections that carry them, with as little work as a client can do.

A request is rendered once, its answer is parsed no further than status, length and what refusals must say.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

BROKEN = 0
"""In place of a status: the connection could not be had, or ended before the answer was there."""
_SEND_BUFFER_BYTES = 1 << 20
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)


@dataclass(slots=True)
class Request:
    """One request and what became of it; times are seconds on time.monotonic."""

    data: bytes
    priority: str
    due_s: float
    ended_s: float = math.nan
    status: int = BROKEN
    has_retry_after: bool = False

    @property
    def latency_ms(self) -> float:
        """From when it was due to the answer's last byte."""
        return (self.ended_s - self.due_s) * 1000


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request on it.

    `on_end` is called with each request that ended, and whether the connection can carry another.
    """

    def __init__(self, on_end: Callable[[Connection, Request, bool], None]) -> None:
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._received = bytearray()
        self._answer_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make room for a whole request in the socket, so that sending one is one call."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has that interface without being a subclass

    def send(self, request: Request) -> None:
        """Send a request; the connection must be idle."""
        assert self._transport is not None
        self._request = request
        self._transport.write(request.data)

    def data_received(self, data: bytes) -> None:
        """Take in a part of the answer."""
        self._received += data
        if not self._answer_bytes:
            head_bytes = self._received.find(b"\r\n\r\n")
            if head_bytes < 0:
                return
            length = _CONTENT_LENGTH.search(self._received, 0, head_bytes)
            if length is None:
                raise ValueError(f"an answer without its length: {bytes(self._received[:head_bytes])!r}")
            self._answer_bytes = head_bytes + 4 + int(length[1])
        if len(self._received) >= self._answer_bytes:
            self._end(int(self._received[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End the request that is on the connection, if any."""
        self._transport = None
        if self._request is not None:
            self._end(BROKEN)

    def close(self) -> None:
        """Let the connection go."""
        if self._transport is not None:
            self._transport.close()

    def _end(self, status: int) -> None:
        request, self._request = self._request, None
        assert request is not None
        request.ended_s = time.monotonic()
        request.status = status
        request.has_retry_after = _RETRY_AFTER.search(self._received) is not None
        reusable = self._transport is not None and _CLOSES.search(self._received) is None
        self._received.clear()
        self._answer_bytes = 0
        if not reusable:
            self.close()
        self._on_end(self, request, reusable)


class Clients:
    """The connections of one run: idle ones are used again, and new ones are opened up to a number."""

    def __init__(self, address: tuple[str, int], *, most: int, on_end: Callable[[Request], None]) -> None:
        self._address = address
        self._most = most
        self._on_end = on_end
        self._idle: list[Connection] = []
        self._open = 0
        self._waiting: deque[Request] = deque()
        self._opening: set[asyncio.Task[None]] = set()

    def send(self, request: Request) -> None:
        """Send a request, on a connection that is idle, or new, or becomes free."""
        if self._idle:
            self._idle.pop().send(request)
            return
        self._waiting.append(request)
        if self._open < self._most:
            self._connect()

    def _connect(self) -> None:
        self._open += 1
        task = asyncio.ensure_future(self._connected())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connected(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self._ended), *self._address)
        except OSError:
            self._open -= 1
            if self._waiting:
                request = self._waiting.popleft()
                request.ended_s = time.monotonic()
                self._on_end(request)
            return
        self._go_on(connection)

    def _ended(self, connection: Connection, request: Request, reusable: bool) -> None:
        if reusable:
            self._go_on(connection)
        else:
            self._open -= 1
            if self._waiting:
                self._connect()
        self._on_end(request)

    def _go_on(self, connection: Connection) -> None:
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()
        await asyncio.gather(*self._opening)
