"""The command line: `python -m service [serve|check|settings] [options]`.

Exit status: 0 after an orderly end, 1 where the service cannot start or serve as asked, 2 for a bad setting; where a
service of several processes is ended by a second signal, 128 and the signal's number.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from service.app import create_app
from service.engine.client import InProcessEngine
from service.engine.session import resolve_device
from service.errors import SettingsError, StartupError
from service.logs import configure_logging
from service.metrics import Metrics
from service.metrics_directory import metrics_directory
from service.plan import Plan, explain_outputs, load_session
from service.repository import ModelDirectory, select_model
from service.server import Server, listen
from service.settings import Settings, add_options, load_settings, markdown_table
from service.supervisor import Supervisor

_log = logging.getLogger("service")

_COMMANDS = {
    "serve": "serve the model (the default command)",
    "check": "load and warm the model, and say what would be served",
    "settings": "print every setting with its value",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    command = options.pop("command")
    if options.pop("markdown", False):
        print(markdown_table(), end="")
        return 0
    try:
        settings = load_settings(options)
        configure_logging(
            level=settings.log_level,
            form=settings.log_format,
            process="supervisor" if command == "serve" and settings.has_processes else None,
        )
        if command == "settings":
            _print_settings(settings)
        elif command == "check":
            _check(settings)
        else:
            return _serve(settings)
    except SettingsError as error:
        print(f"dat-serve: {error}", file=sys.stderr)
        return 2
    except StartupError as error:
        print(f"dat-serve: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return `command` and the options that were given, by their fields' names; `serve` is the command by default."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve a model directory over HTTP. Every option is also a variable: --max-images, DAT_MAX_IMAGES.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add_options(command)
        if name == "settings":
            command.add_argument("--markdown", action="store_true", help="print the table of all settings instead")
    asks_for_help = arguments[:1] in (["-h"], ["--help"])
    is_named = bool(arguments) and not arguments[0].startswith("-")
    return vars(parser.parse_args(arguments if is_named or asks_for_help else ["serve", *arguments]))


def _print_settings(settings: Settings) -> None:
    for name, value in settings.model_dump(mode="json").items():
        print(f"{name} = {value}")


def _serve(settings: Settings) -> int:
    model = select_model(settings.repository, name=settings.model, version=settings.model_version)
    return _serve_with_processes(settings, model) if settings.has_processes else _serve_alone(settings, model)


def _serve_alone(settings: Settings, model: ModelDirectory) -> int:
    """Serve from this process, with the engine as a thread of it."""
    device = resolve_device(settings.device)
    listener = listen(settings.host, settings.port)
    buckets = settings.buckets_for(device)
    metrics = Metrics(buckets=buckets)
    engine = InProcessEngine(
        lambda: load_session(model, device, settings),
        buckets=buckets,
        explain_outputs=[name for name, _ in explain_outputs(model, settings)],
        max_queued_images=settings.max_queued_images,
        max_wait_s=settings.max_wait_ms / 1000,
        max_delay_s=settings.max_delay_ms / 1000,
        hang_after_s=settings.hang_timeout_ms / 1000,
        observer=metrics,
    )
    app = create_app(settings, model, engine, metrics=metrics, on_failed_start=lambda error: server.fail(error))
    server = Server(
        app,
        receive_timeout_s=settings.receive_timeout_ms / 1000,
        drain_timeout_s=settings.drain_timeout_ms / 1000,
        give_up=engine.stop,
    )
    _log_listening(listener, model, device=device, buckets=buckets)
    server.serve_on(listener)
    return 0


def _serve_with_processes(settings: Settings, model: ModelDirectory) -> int:
    """Serve from several workers, with an engine process a device, and watch over them."""
    devices = settings.devices or (_resolved_elsewhere(settings.device),)
    buckets = settings.buckets_for(devices[0])
    listener = listen(settings.host, settings.port)
    with metrics_directory() as directory:
        plan = Plan(settings, model, devices=devices, buckets=buckets, metrics_directory=directory)
        supervisor = Supervisor(plan, listener)
        _log_listening(listener, model, device=",".join(devices), buckets=buckets, workers=settings.workers)
        return supervisor.run()


def _resolved_elsewhere(device: str) -> str:
    """Return what `auto` stands for, found out by another process: trying a GPU keeps memory of it in use."""
    if device != "auto":
        return device
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(resolve_device, device).result()


def _log_listening(
    listener: socket.socket, model: ModelDirectory, *, device: str, buckets: Sequence[int], **more: object
) -> None:
    host, port = listener.getsockname()[:2]
    fields = {
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        "model": model.manifest.name,
        "version": model.manifest.version,
        "device": device,
        "buckets": ",".join(map(str, buckets)),
        **more,
    }
    _log.info("listening", extra={"fields": fields})


def _check(settings: Settings) -> None:
    """Load the model, run every bucket, and print what would be served and how long each bucket takes."""
    model = select_model(settings.repository, name=settings.model, version=settings.model_version)
    manifest = model.manifest
    print(f"model     {manifest.name} version {manifest.version} ({manifest.variant}, {manifest.precision})")
    for device in settings.devices or (settings.device,):
        _check_device(settings, model, resolve_device(device))


def _check_device(settings: Settings, model: ModelDirectory, device: str) -> None:
    manifest = model.manifest
    session = load_session(model, device, settings)
    print(f"device    {device}")
    print(f"input     {manifest.input.height} x {manifest.input.width}")
    print(f"outputs   {', '.join(session.output_names)}")
    for bucket in settings.buckets_for(device):
        images = np.zeros((bucket, *session.input_shape), np.uint8)
        session.run(images, session.output_names)
        began_s = time.perf_counter()
        session.run(images, ("logits",))
        print(f"bucket    {bucket:<4} {(time.perf_counter() - began_s) * 1000:.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
