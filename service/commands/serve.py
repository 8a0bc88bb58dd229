"""`serve`: load the model and answer over HTTP until told to end."""

from __future__ import annotations

import argparse
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from service.commands.options import settings_from
from service.engine.runtime.session import resolve_device
from service.http.app import create_app
from service.http.connection.server import Server, listen
from service.http.connection.tls import tls_context
from service.model.directory import ModelDirectory, select_model
from service.model.loading import in_process_engine
from service.processes.plan import Plan
from service.processes.supervisor import Supervisor
from service.settings import Settings, add_options
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_directory import metrics_directory
from service.telemetry.tracing import require_tracing

_log = logging.getLogger("service")


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
    model = select_model(settings.repository, name=settings.model, version=settings.model_version)
    return _serve_with_processes(settings, model) if settings.has_processes else _serve_alone(settings, model)


def _serve_alone(settings: Settings, model: ModelDirectory) -> int:
    """Serve from this process, with the engine as a thread of it."""
    tls = tls_context(settings)
    device = resolve_device(settings.device)
    listener = listen(settings.host, settings.port)
    buckets = settings.buckets_for(device)
    metrics = Metrics(buckets=buckets)
    engine = in_process_engine(settings, model, device=device, observer=metrics)
    app = create_app(settings, model, engine, metrics=metrics, on_failed_start=lambda error: server.fail(error))
    server = Server(
        app,
        settings,
        give_up=app.state.service.in_flight.give_up,
        tls=tls,
    )
    _log_listening(settings, listener, model, device=device, buckets=buckets)
    server.serve_on(listener)
    return 0


def _serve_with_processes(settings: Settings, model: ModelDirectory) -> int:
    """Serve from several workers, with an engine process a device, and watch over them."""
    tls_context(settings)  # what is wrong with its files is said before anything is started
    devices = settings.devices or (_resolved_elsewhere(settings.device),)
    buckets = settings.buckets_for(devices[0])
    listener = listen(settings.host, settings.port)
    with metrics_directory() as directory:
        plan = Plan(settings, model, devices=devices, buckets=buckets, metrics_directory=directory)
        supervisor = Supervisor(plan, listener)
        _log_listening(settings, listener, model, device=",".join(devices), buckets=buckets, workers=settings.workers)
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
    model: ModelDirectory,
    *,
    device: str,
    buckets: Sequence[int],
    **more: object,
) -> None:
    host, port = listener.getsockname()[:2]
    fields = {
        "url": f"{'https' if settings.tls_certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}",
        "model": model.manifest.name,
        "version": model.manifest.version,
        "device": device,
        "buckets": ",".join(map(str, buckets)),
        **more,
    }
    _log.info("listening", extra={"fields": fields})
