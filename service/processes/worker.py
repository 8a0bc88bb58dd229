"""What a worker process is: the application, served on the socket that all workers share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI

from service.access.key_limits import KeyLimits
from service.engine.board import worker_name
from service.engine.control import Attach, ControlSocket, End, Ping, Pong, Ready
from service.engine.remote import RemoteEngine
from service.engine.shared import SharedSlots
from service.http.app import create_app
from service.http.connection.server import Server
from service.http.connection.tls import tls_context
from service.processes.plan import Plan
from service.settings import Settings

_log = logging.getLogger(__name__)


def run_worker(control: ControlSocket, descriptors: Sequence[int], plan: Plan, number: int) -> int:
    """Be worker `number`; `descriptors` holds the board, its memory, the keys' account and the socket."""
    plan.configure_logging(worker_name(number))
    board_descriptor, memory_descriptor, key_limits, listener = descriptors
    board = plan.board(board_descriptor)
    slots = SharedSlots(plan.geometry, memory_descriptor)
    os.close(memory_descriptor)
    settings = plan.settings
    engine = RemoteEngine(
        slots,
        board,
        worker=number,
        max_wait_s=settings.max_wait_ms / 1000,
        hang_after_s=settings.hang_timeout_ms / 1000,
    )
    metrics = plan.metrics()
    metrics.watch_processes(board.pids)
    app = create_app(
        settings,
        plan.model,
        engine,
        metrics=metrics,
        on_ready=lambda: control.send(Ready()),
        on_failed_start=lambda error: server.fail(error),
        key_limits=KeyLimits(settings.api_keys, workers=settings.workers, worker=number, descriptor=key_limits),
    )
    server = _WorkerServer(
        app,
        settings,
        give_up=app.state.service.in_flight.give_up,
        tls=tls_context(settings),
        control=control,
        attach=engine.attach,
    )
    server.serve_until_told(socket.socket(fileno=listener))
    return 0


class _WorkerServer(Server):
    """A server that takes its links and its end from the supervisor, and leaves signals to it."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        *,
        control: ControlSocket,
        attach: Callable[[int, socket.socket], None],
        **options: Any,
    ) -> None:
        super().__init__(app, settings, **options)
        self._control = control
        self._attach = attach

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals as they are: ignored."""
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, listen to the supervisor, and accept."""
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._obey)
        await super().startup(sockets)

    def _obey(self) -> None:
        received = self._control.receive()
        if received is None:
            _log.error("the supervisor is gone: the worker ends")
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self.should_exit = True
            return
        message, descriptors = received
        match message:
            case Ping():
                self._control.send(Pong())
            case Attach(engine):
                self._attach(engine, socket.socket(fileno=descriptors[0]))
            case End():
                self.should_exit = True
