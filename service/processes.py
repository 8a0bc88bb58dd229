"""What an engine process and a worker process are made of: each builds its parts from the plan, and runs.

These are the targets that the supervisor gives to new processes; their arguments travel pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from service.app import create_app
from service.engine.control import Attach, ControlSocket, End, Ping, Pong, Ready
from service.engine.process import EngineProcess
from service.engine.remote import RemoteEngine
from service.engine.session import DeviceOptions, OnnxSession
from service.engine.shared import Board, Geometry, SlotMemory, engine_name, worker_name
from service.errors import RepositoryError
from service.logs import configure_logging
from service.metrics import Metrics
from service.repository import InputRecord, ModelDirectory, OutputRecord
from service.server import Server
from service.settings import Settings

_log = logging.getLogger(__name__)

ENGINE_CACHE = "tensorrt"
"""Folder of a model directory in which TensorRT keeps the engines that it has built."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all processes of a service are made from."""

    settings: Settings
    model: ModelDirectory
    devices: tuple[str, ...]
    """One for each engine."""
    buckets: tuple[int, ...]
    metrics_directory: Path

    @property
    def geometry(self) -> Geometry:
        """The shape of each worker's memory."""
        manifest = self.model.manifest
        return Geometry(
            slots=self.settings.slots_of_a_worker,
            input_shape=(manifest.input.height, manifest.input.width, 3),
            outputs=tuple((record.name, _shape(record, manifest.input)) for record in manifest.outputs),
        )

    def metrics(self) -> Metrics:
        """Return a process's part of the metrics."""
        return Metrics(buckets=self.buckets, directory=self.metrics_directory)

    def board(self, descriptor: int) -> Board:
        """Return the board that all processes share."""
        board = Board(descriptor, workers=self.settings.workers, engines=len(self.devices))
        os.close(descriptor)
        return board

    def configure_logging(self, process: str) -> None:
        """Send this process's log lines where all go, under its name."""
        configure_logging(level=self.settings.log_level, form=self.settings.log_format, process=process)


def _shape(record: OutputRecord, image: InputRecord) -> tuple[int, ...]:
    """Return an output's shape for the one size of image that the service sends.

    Only stages follow the image's size, and those of every variant have maps of a 4th, 8th, 16th and 32nd of its sides.
    """
    if None not in record.shape:
        return tuple(side for side in record.shape if side is not None)
    name, stage, (channels, *_) = record.name, record.name.removeprefix("stage"), record.shape
    if not stage.isdigit() or len(record.shape) != 3 or channels is None:
        raise RepositoryError(f"output {name}: its shape {record.shape} leaves open what no input size determines")
    divisor = 2 << int(stage)
    return (channels, image.height // divisor, image.width // divisor)


def load_session(model: ModelDirectory, device: str, settings: Settings, *, threads: int | None = None) -> OnnxSession:
    """Load the model on a device as the settings say, but with `threads` where given; raises StartupError."""
    manifest = model.manifest
    options = DeviceOptions(
        device=device,
        threads=settings.threads if threads is None else threads,
        provider_options=settings.provider_options,
        cuda_graphs=settings.cuda_graphs,
        strict_device=settings.strict_device,
        shrink_arena_above=settings.shrink_arena_above,
        self_check=settings.self_check,
        precision=manifest.precision,
        buckets=settings.buckets_for(device),
        engine_cache=model.path / ENGINE_CACHE,
    )
    return OnnxSession.load(
        model.model_path,
        options,
        input_shape=(manifest.input.height, manifest.input.width, 3),
        output_names=tuple(record.name for record in manifest.outputs),
    )


def run_engine(control: ControlSocket, descriptors: Sequence[int], plan: Plan, number: int) -> int:
    """Be engine `number`; `descriptors` holds the board."""
    plan.configure_logging(engine_name(number))
    (board,) = descriptors
    settings, engines = plan.settings, len(plan.devices)
    # Engines on the CPU share the cores out among them, unless a number was asked for.
    threads = settings.threads or (max((os.cpu_count() or 1) // engines, 1) if engines > 1 else 0)
    engine = EngineProcess(
        lambda: load_session(plan.model, plan.devices[number], settings, threads=threads),
        control=control,
        row=plan.board(board).engines[number],
        geometry=plan.geometry,
        buckets=plan.buckets,
        max_delay_s=settings.max_delay_ms / 1000,
        observer=plan.metrics(),
    )
    return engine.run()


def run_worker(control: ControlSocket, descriptors: Sequence[int], plan: Plan, number: int) -> int:
    """Be worker `number`; `descriptors` holds the board, the worker's memory and the listening socket."""
    plan.configure_logging(worker_name(number))
    board_descriptor, memory_descriptor, listener = descriptors
    board = plan.board(board_descriptor)
    memory = SlotMemory(plan.geometry, memory_descriptor)
    os.close(memory_descriptor)
    settings = plan.settings
    engine = RemoteEngine(
        memory,
        board,
        worker=number,
        largest_batch=max(plan.buckets),
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
    )
    server = _WorkerServer(
        app,
        drain_timeout_s=settings.drain_timeout_ms / 1000,
        give_up=engine.stop,
        control=control,
        attach=engine.attach,
    )
    server.serve_until_told(socket.socket(fileno=listener))
    return 0


class _WorkerServer(Server):
    """A server that takes its links and its end from the supervisor, and leaves signals to it."""

    def __init__(
        self, app: FastAPI, *, control: ControlSocket, attach: Callable[[int, socket.socket], None], **options: Any
    ) -> None:
        super().__init__(app, **options)
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
