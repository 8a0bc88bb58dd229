"""What all processes of a service are made from, and what an engine process is.

Nothing of HTTP is imported here: an engine that was lost is back the sooner.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.engine.control import ControlSocket
from service.engine.process import EngineProcess
from service.engine.session import DeviceOptions, OnnxSession
from service.engine.shared import Board, Geometry, engine_name
from service.errors import RepositoryError
from service.logs import configure_logging
from service.metrics import Metrics
from service.repository import InputRecord, ModelDirectory, OutputRecord
from service.settings import Settings
from service.suitability import drawbacks

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
    """Load the model on a device as the settings say, but with `threads` where given; raises StartupError.

    Warns of what makes the model slow on that device.
    """
    manifest = model.manifest
    for drawback in drawbacks(manifest, device):
        _log.warning(drawback)
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
