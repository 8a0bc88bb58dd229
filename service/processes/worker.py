"""What a worker process is: the application, served on the socket that all workers share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI

from service.access.key_limits import KeyLimits
from service.engine.board import worker_name
from service.engine.control import ControlSocket, End, Ping, Pong, Ready
from service.grpc.door import grpc_server
from service.http.app import create_app
from service.http.connection.server import Server
from service.http.connection.tls import tls_context
from service.processes.plan import LoadEnded, Plan, Processes, Publish, Restarted
from service.processes.worker_hosting import WorkerHosting
from service.settings import Settings
from service.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


def run_worker(control: ControlSocket, descriptors: Sequence[int], plan: Plan, number: int, published: Publish) -> int:
    """Be worker `number`; `descriptors` holds the keys' account and the socket."""
    plan.configure_logging(worker_name(number))
    key_limits, listener = descriptors
    settings, metrics = plan.settings, plan.metrics()
    hosting = WorkerHosting(control, plan, metrics, worker=number, published=published)
    pids: dict[str, int] = {}
    metrics.watch_processes(lambda: pids)
    app = create_app(
        settings,
        hosting,
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
        beside=grpc_server(app.state.service, plan.grpc_address),
        control=control,
        hosting=hosting,
        pids=pids,
        metrics=metrics,
    )
    server.serve_until_told(socket.socket(fileno=listener))
    return 0


class _WorkerServer(Server):
    """A server that takes what it serves and its end from the supervisor, and leaves signals to it."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        *,
        control: ControlSocket,
        hosting: WorkerHosting,
        pids: dict[str, int],
        metrics: Metrics,
        **options: Any,
    ) -> None:
        super().__init__(app, settings, **options)
        self._control = control
        self._hosting = hosting
        self._pids = pids
        self._metrics = metrics

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
            case Processes(pids):
                self._pids.clear()
                self._pids.update(pids)
                self._metrics.may_restart(*pids)
            case Restarted(name):
                self._metrics.restarted(name)
            case LoadEnded(model, outcome, duration_s):
                self._metrics.load_ended(model=model, outcome=outcome, duration_s=duration_s)
            case End():
                self.should_exit = True
            case _:
                self._hosting.obey(message, descriptors)
