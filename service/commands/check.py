"""`check`: load the models, run every batch size, and say what would be served, to people or as JSON."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from service.commands.options import settings_from
from service.engine.runtime.session import resolve_device
from service.model.directory import ModelDirectory
from service.model.loading import graphs_of, load_session, warmed_up
from service.serving.repository import ModelRepository
from service.settings import Settings, add_options
from service.telemetry.logs import configure_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every setting."""
    add_options(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="form of the report (default: text)")


def run(options: argparse.Namespace) -> int:
    """Print what would be served and how long each bucket takes; raises StartupError where something could not be."""
    settings = settings_from(options)
    configure_logging(level=settings.log_level, form=settings.log_format)
    is_text = options.format == "text"
    models: list[dict[str, Any]] = []
    for candidate in ModelRepository(settings).at_start():
        manifest, of_model = candidate.model.manifest, candidate.settings
        if is_text:
            print(f"model     {manifest.name} version {manifest.version} ({manifest.variant}, {manifest.precision})")
        found = [
            _check_device(of_model, candidate.model, resolve_device(device), is_text=is_text)
            for device in of_model.devices or (of_model.device,)
        ]
        facts = {name: getattr(manifest, name) for name in ("name", "version", "variant", "precision")}
        models.append({**facts, "devices": found})
    if not is_text:
        print(json.dumps({"models": models}, indent=2))
    return 0


def _check_device(settings: Settings, model: ModelDirectory, device: str, *, is_text: bool) -> dict[str, Any]:
    """Load and warm up what would be served on a device, as an engine does, and say it; raises StartupError."""
    manifest = model.manifest
    graphs = graphs_of(model, settings, buckets=settings.buckets_for(device))
    core = warmed_up(model, graphs, partial(load_session, model, device=device, settings=settings))
    costs = core.batcher.costs[graphs[0].key].own
    run_ms = {bucket: costs.run_s(bucket) * 1000 for bucket in costs.buckets}
    height, width, outputs = manifest.input.height, manifest.input.width, tuple(graphs[0].outputs)
    if is_text:
        print(f"device    {device}")
        print(f"input     {height} x {width}")
        print(f"outputs   {', '.join(outputs)}")
        for bucket, each_ms in run_ms.items():
            print(f"bucket    {bucket:<4} {each_ms:.2f} ms")
    buckets = [{"images": bucket, "run_ms": round(each_ms, 3)} for bucket, each_ms in run_ms.items()]
    return {"device": device, "input": [height, width], "outputs": outputs, "buckets": buckets}
