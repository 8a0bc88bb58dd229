"""The HTTP server: uvicorn with this service's limits and its way to end.

On SIGTERM or SIGINT it stops accepting and finishes what is in flight within the drain time. Then it gives up the rest,
so that whatever is still unanswered gets its 503 rather than a broken connection; connections that are open after that
are cut, and the application ends. The exit status is then 0. A second signal leaves the drain time out.

Invariant: a process that serves has ended `ENDED_AFTER_S` after the drain time at the latest, whatever its threads do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Protocol as TypingProtocol

import uvicorn
from fastapi import FastAPI

from service.errors import StartupError
from service.http.connection.leaving import leave_threads_behind, leave_within
from service.http.connection.protocol import Protocol
from service.http.security_headers import SecurityHeaders
from service.settings import Settings

_log = logging.getLogger(__name__)

LAST_ANSWERS_S = 2.5
"""For the answers that are on their way when the drain time is over; longer than the middleware lingers."""
ENDED_AFTER_S = 3.5
"""After the drain time the process is gone: the rest is for the application's end."""
BACKLOG = 2048
_NOTICING_S = 0.1
"""For requests to see that they were given up, or their connections cut, and to end."""
_CLOSING_S = 1.0
"""For the application's end after a second signal."""


class BesideHttp(TypingProtocol):
    """A server of another protocol that lives and ends with that of HTTP."""

    async def start(self) -> None:
        """Listen and accept; raises StartupError."""
        ...

    async def end(self, within_s: float) -> None:
        """Stop accepting, wait for what is in flight, and cancel what is left of it after a time."""
        ...


class Server(uvicorn.Server):
    """Serves one application on one socket until a signal, or `fail`, ends it; `beside` lives as long."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        *,
        give_up: Callable[[], None],
        tls: ssl.SSLContext | None = None,
        beside: BesideHttp | None = None,
    ) -> None:
        receive_timeout_s, trusted_proxies = settings.receive_timeout_ms / 1000, list(settings.forwarded_allow_ips)
        security = SecurityHeaders(tls=tls is not None)
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=trusted_proxies,
                timeout_keep_alive=math.ceil(settings.keep_alive_timeout_ms / 1000),
                timeout_graceful_shutdown=None,  # it would cancel what is in flight, and answer for it: `_end_in_time`
                http=Protocol.within(receive_timeout_s, security, root_path=settings.root_path),
                ssl_context_factory=None if tls is None else lambda *_: tls,
                loop="uvloop",
            )
        )
        self._drain_timeout_s = settings.drain_timeout_ms / 1000
        self._give_up = give_up
        self._beside = beside
        self._failure: StartupError | None = None
        self._has_process = False
        """Whether the process is there for this server alone, and ends with it."""

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until told to end; raises the error given to `fail`, if any.

        The process may end here, with status 0, where it has threads that do not.
        """
        # uvicorn raises the signal that ended it once more when it is done: this is where that one goes, and where
        # a signal goes that comes before uvicorn listens to them.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        self.serve_until_told(listener)

    def serve_until_told(self, listener: socket.socket) -> None:
        """Do what `serve_on` does, for those who have dealt with signals themselves."""
        self._has_process = True
        self.run(sockets=[listener])
        if self._failure is not None:
            raise self._failure
        leave_threads_behind()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at the first signal, and end at once at a second."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    def fail(self, error: StartupError) -> None:
        """End the server, for a reason that `serve_on` then raises."""
        self._failure = error
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and accept."""
        if self._beside is not None:
            try:
                await self._beside.start()
            except StartupError as error:
                self.fail(error)
                return
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait for what is in flight, and end the application."""
        if self._has_process and self._failure is None:
            leave_within(self._drain_timeout_s + ENDED_AFTER_S)
        ending = asyncio.create_task(self._end_in_time())
        self._end_beside()
        try:
            await super().shutdown(sockets)
            if self.force_exit:
                await self._end_at_once()
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            # The loop waits for the threads of its executor when it closes: of a new one there are none.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())

    def _end_beside(self) -> None:
        """Have what serves beside this end, and the application not before it."""
        if self._beside is None:
            return
        tasks = self.server_state.tasks
        task = asyncio.create_task(self._beside.end(self._drain_timeout_s + LAST_ANSWERS_S))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _end_at_once(self) -> None:
        """Do what uvicorn leaves out at a second signal, as far as it can be done quickly."""
        self._give_up()
        await asyncio.sleep(_NOTICING_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_S):
                await self.lifespan.shutdown()

    async def _end_in_time(self) -> None:
        await asyncio.sleep(self._drain_timeout_s)
        _log.warning("the drain time is over: what is still in flight is failed")
        self._give_up()
        await asyncio.sleep(LAST_ANSWERS_S)
        for connection in list(self.server_state.connections):  # of clients that do not read, or still send
            connection.transport.abort()
        await asyncio.sleep(_NOTICING_S)
        for task in list(self.server_state.tasks):
            task.cancel()

    def _end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises StartupError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # Named as TCP, which a socket is not by default: asyncio turns Nagle's algorithm off for such sockets alone,
        # and with it every answer would come 40 ms late.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> StartupError:
    return StartupError(f"cannot listen on {host} port {port}: {error.strerror or error}")
