"""`serve`: load the models and answer over HTTP, and gRPC where asked to, until told to end.

A service of several processes has a supervisor. One of a single process, of which an engine hangs, ends as at a
signal and begins anew in its own place (`processes.anew`).
"""

from __future__ import annotations

import argparse
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

from service.commands.options import settings_from
from service.engine.runtime.session import resolve_device
from service.errors import StartupError
from service.grpc.door import ReservedPort, grpc_server, reserve_port
from service.http.app import create_app
from service.http.connection.leaving import leave_threads_behind
from service.http.connection.server import Server, listen
from service.http.connection.tls import tls_context
from service.processes.anew import Life
from service.processes.plan import Plan
from service.processes.supervisor import Supervisor
from service.processes.trial import try_candidate
from service.samples.sampler import require_sampling
from service.serving.in_process import InProcessHosting
from service.serving.registry import Candidate
from service.serving.repository import ModelRepository
from service.settings import Settings, add_options
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_directory import metrics_directory
from service.telemetry.tracing import require_tracing

_log = logging.getLogger("service")

_SERVICE = "service"
"""What the whole of a single process is called in the metrics."""


class _EngineHangs(StartupError):
    """Why a server ends whose process is to begin anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every setting."""
    add_options(parser)


def run(options: argparse.Namespace) -> int:
    """Serve, and return the exit status; raises StartupError where the service cannot start as asked."""
    settings = settings_from(options)
    configure_logging(
        level=settings.log_level,
        form=settings.log_format,
        process="supervisor" if settings.has_processes else None,
    )
    require_tracing(settings)
    require_sampling(settings)
    repository = ModelRepository(settings)
    candidates = repository.at_start()
    has_processes = any(candidate.settings.has_processes for candidate in candidates) or settings.has_processes
    serve = _serve_with_processes if has_processes else _serve_alone
    return serve(settings, candidates, repository)


def _serve_alone(settings: Settings, candidates: Sequence[Candidate], repository: ModelRepository) -> int:
    """Serve from this process, with each engine as a thread of it."""
    tls = tls_context(settings)
    life, metrics = Life(), Metrics()
    listener = life.listener or listen(settings.host, settings.port)
    grpc_port = reserve_port(settings)
    metrics.restarted(_SERVICE, life.times)

    def on_hung(sentence: str) -> None:
        if not server.should_exit:
            life.keep(listener)
            server.fail(_EngineHangs(sentence))

    hosting = InProcessHosting(settings, candidates, repository, metrics=metrics, prove=try_candidate, on_hung=on_hung)
    app = create_app(settings, hosting, metrics=metrics, on_failed_start=lambda error: server.fail(error))
    service = app.state.service
    beside = None if grpc_port is None else grpc_server(service, grpc_port.address)
    server = Server(app, settings, give_up=service.in_flight.give_up, tls=tls, beside=beside)
    _log_listening(settings, listener, candidates, grpc_port)
    try:
        server.serve_on(listener)
    except _EngineHangs as error:
        if not server.force_exit:  # no signal has come meanwhile
            life.begin_anew(str(error))
        leave_threads_behind()
    return 0


def _serve_with_processes(settings: Settings, candidates: Sequence[Candidate], repository: ModelRepository) -> int:
    """Serve from several workers, with engine processes for the devices, and watch over them."""
    tls_context(settings)  # what is wrong with its files is said before anything is started
    listener = listen(settings.host, settings.port)
    grpc_port = reserve_port(settings)
    with metrics_directory() as directory:
        plan = Plan(settings, candidates[0].name, directory, None if grpc_port is None else grpc_port.address)
        supervisor = Supervisor(
            plan, listener, candidates, repository, resolve=cache(_resolved_elsewhere), prove=try_candidate
        )
        _log_listening(settings, listener, candidates, grpc_port, workers=settings.workers)
        return supervisor.run()


def _resolved_elsewhere(device: str) -> str:
    """Return what `auto` stands for, found out by another process: trying a GPU keeps memory of it in use."""
    if device != "auto":
        return device
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(resolve_device, device).result()


def _log_listening(
    settings: Settings,
    listener: socket.socket,
    candidates: Sequence[Candidate],
    grpc_port: ReservedPort | None,
    **more: object,
) -> None:
    host, port = listener.getsockname()[:2]
    fields = {
        "url": f"{'https' if settings.tls_certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}",
        "models": ",".join(f"{candidate.name}:{candidate.version}" for candidate in candidates),
        **({} if grpc_port is None else {"grpc": grpc_port.address}),
        **more,
    }
    _log.info("listening", extra={"fields": fields})
