"""From a model directory and the settings to a session on a device, and to an engine in a thread of this process."""

from __future__ import annotations

import dataclasses
import logging

from service.engine.batcher import explain_buckets
from service.engine.core import EngineObserver
from service.engine.explaining import ModelWithExplain
from service.engine.in_process import InProcessEngine
from service.engine.runtime.options import Device, DeviceOptions
from service.engine.runtime.session import OnnxSession
from service.engine.types import StagingSession
from service.images.limits import DecodeLimits
from service.images.preprocessing import Preprocessing
from service.model.directory import ModelDirectory
from service.model.manifest import Manifest
from service.model.suitability import drawbacks
from service.settings import Settings

_log = logging.getLogger(__name__)

ENGINE_CACHE = "tensorrt"
"""Folder of a model directory in which TensorRT keeps the engines that it has built."""


def preprocessing_of(manifest: Manifest, *, limits: DecodeLimits, exif_orientation: bool) -> Preprocessing:
    """Return what a model's manifest asks to be done to every image, within the service's own limits."""
    return Preprocessing(
        resize=(manifest.preprocess.resize_height, manifest.preprocess.resize_width),
        crop=(manifest.input.height, manifest.input.width),
        limits=limits,
        exif_orientation=exif_orientation,
    )


def explain_outputs(model: ModelDirectory, settings: Settings) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the outputs that say where the model looked, with their shapes; none where that is not served."""
    explain = model.manifest.explain if settings.explain else None
    return explain.outputs if explain else ()


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
        graph_profiles=(manifest.vectors,),
        strict_device=settings.strict_device,
        shrink_arena_above=settings.shrink_arena_above,
        self_check=settings.self_check,
        precision=manifest.precision,
        buckets=settings.buckets_for(device),
        engine_cache=model.path / ENGINE_CACHE,
    )
    input_shape = (manifest.input.height, manifest.input.width, 3)
    session = OnnxSession.load(model.model_path, options, input_shape=input_shape, output_names=manifest.output_names)
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
    device = Device.parse(options.device)
    to_cuda = device.kind == "tensorrt"
    return dataclasses.replace(
        options,
        device=str(Device("cuda", device.index) if to_cuda else device),
        provider_options={} if to_cuda else options.provider_options,
        cuda_graphs=False,
        shrink_arena_above=0,
        precision="fp32",
        buckets=explain_buckets(options.buckets),
    )


def in_process_engine(
    settings: Settings, model: ModelDirectory, *, device: str, observer: EngineObserver | None = None
) -> InProcessEngine:
    """Return an engine, not started, that will load `model` on `device`, a resolved one."""
    return InProcessEngine(
        lambda: load_session(model, device, settings),
        buckets=settings.buckets_for(device),
        explain_outputs=[name for name, _ in explain_outputs(model, settings)],
        max_queued_images=settings.max_queued_images,
        max_wait_s=settings.max_wait_ms / 1000,
        max_delay_s=settings.max_delay_ms / 1000,
        hang_after_s=settings.hang_timeout_ms / 1000,
        observer=observer,
    )
