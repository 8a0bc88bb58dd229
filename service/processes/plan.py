"""What all processes of a service are made from, and what an engine process is.

Nothing of HTTP is imported here: an engine that was lost is back the sooner.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.engine.batcher import explain_buckets
from service.engine.control import ControlSocket
from service.engine.explaining import ModelWithExplain
from service.engine.process import EngineProcess
from service.engine.runtime.session import DeviceOptions, OnnxSession
from service.engine.shared import Board, Geometry, engine_name
from service.engine.types import StagingSession
from service.errors import RepositoryError
from service.model.directory import InputRecord, ModelDirectory, OutputRecord
from service.model.suitability import drawbacks
from service.settings import Settings
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import Metrics

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
        """The shape of each worker's memory; raises RepositoryError for a model that has none."""
        manifest = self.model.manifest
        try:
            return Geometry(
                slots=self.settings.slots_of_a_worker,
                input_shape=(manifest.input.height, manifest.input.width, 3),
                outputs=tuple((record.name, _shape(record, manifest.input)) for record in manifest.outputs),
                explain=explain_outputs(self.model, self.settings),
            )
        except ValueError as error:
            raise RepositoryError(f"{self.model.path} cannot be served by several processes: {error}") from error

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


def explain_outputs(model: ModelDirectory, settings: Settings) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the outputs that say where the model looked, with their shapes; none where that is not served."""
    explain = model.manifest.explain if settings.explain else None
    return explain.outputs if explain else ()


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


def load_session(
    model: ModelDirectory, device: str, settings: Settings, *, threads: int | None = None
) -> StagingSession:
    """Load the model on a device as the settings say, but with `threads` where given; raises StartupError.

    Where the model can say where it looked, and the settings do not forbid it, the graph for that is loaded beside it.
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
    input_shape = (manifest.input.height, manifest.input.width, 3)
    output_names = tuple(record.name for record in manifest.outputs)
    session = OnnxSession.load(model.model_path, options, input_shape=input_shape, output_names=output_names)
    explain_names = tuple(name for name, _ in explain_outputs(model, settings))
    if not explain_names:
        return session
    explain = OnnxSession.load(
        model.explain_path, explain_options(options), input_shape=input_shape, output_names=explain_names
    )
    return ModelWithExplain(session, explain)


def explain_options(options: DeviceOptions) -> DeviceOptions:
    """Return how the graph that says where the model looked is run, beside a model that is run with `options`.

    It is float32 whatever the model is, and asked for rarely: it gets no CUDA graphs, which would keep memory for
    every batch size, and hands back what a run took. TensorRT would build an engine of it for minutes: CUDA runs it.
    """
    to_cuda = options.device.startswith("tensorrt")
    return dataclasses.replace(
        options,
        device=options.device.replace("tensorrt", "cuda"),
        provider_options={} if to_cuda else options.provider_options,
        cuda_graphs=False,
        shrink_arena_above=0,
        precision="fp32",
        buckets=explain_buckets(options.buckets),
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
