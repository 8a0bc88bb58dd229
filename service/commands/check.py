"""`check`: load the models, run every batch size, and say what would be served."""

from __future__ import annotations

import argparse
import time

from service.commands.options import settings_from
from service.engine.board import Board
from service.engine.core import EngineCore
from service.engine.runtime.session import resolve_device
from service.engine.slots import SlotPool
from service.model.directory import ModelDirectory
from service.model.loading import graphs_of, input_shape, load_session
from service.serving.repository import ModelRepository
from service.settings import Settings, add_options
from service.telemetry.logs import configure_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every setting."""
    add_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print what would be served and how long each bucket takes; raises StartupError where something could not be."""
    settings = settings_from(options)
    configure_logging(level=settings.log_level, form=settings.log_format)
    for candidate in ModelRepository(settings).at_start():
        manifest, of_model = candidate.model.manifest, candidate.settings
        print(f"model     {manifest.name} version {manifest.version} ({manifest.variant}, {manifest.precision})")
        for device in of_model.devices or (of_model.device,):
            _check_device(of_model, candidate.model, resolve_device(device))
    return 0


def _check_device(settings: Settings, model: ModelDirectory, device: str) -> None:
    """Load and warm up what would be served on a device, as an engine does, and print it; raises StartupError."""
    manifest = model.manifest
    graphs = graphs_of(model, settings, buckets=settings.buckets_for(device))
    core = EngineCore(
        graphs,
        {graph.key: load_session(model, graph, device=device, settings=settings) for graph in graphs},
        SlotPool(1, input_shape(manifest)),
        Board(workers=1, engines=1).engines[0],
        input_shape=input_shape(manifest),
        clock=time.monotonic,
    )
    core.warm_up()
    print(f"device    {device}")
    print(f"input     {manifest.input.height} x {manifest.input.width}")
    print(f"outputs   {', '.join(graphs[0].outputs)}")
    costs = core.batcher.costs[graphs[0].key].own
    for bucket in costs.buckets:
        print(f"bucket    {bucket:<4} {costs.run_s(bucket) * 1000:.2f} ms")
