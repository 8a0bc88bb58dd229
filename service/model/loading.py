"""From a model directory and the settings to the graphs that an engine runs, and to their sessions on a device.

A model has its own graph, and where it can say where it looked, and the settings want that, one that does. Its own has
perhaps a second form, the fused one, which is what a device runs that can.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from service.engine.board import Board
from service.engine.core import EngineCore, EngineObserver
from service.engine.device_turns import DeviceTurns
from service.engine.graphs import Graph
from service.engine.in_process import InProcessEngine
from service.engine.room import Room
from service.engine.runtime.operators import kernel_library
from service.engine.runtime.options import Device, DeviceOptions
from service.engine.runtime.selfcheck import Parity
from service.engine.runtime.session import OnnxSession
from service.engine.slots import SlotPool
from service.engine.types import Session
from service.errors import DeviceUnavailable, RepositoryError
from service.images.preprocessing import Preprocessing
from service.model.directory import ModelDirectory
from service.model.manifest import FusedRecord, GraphForm, Manifest
from service.model.sizes import explain_sizes_of, sizes_of
from service.model.suitability import drawbacks
from service.settings import Settings

_log = logging.getLogger(__name__)

ENGINE_CACHE = "tensorrt"
"""Folder of a model directory in which TensorRT keeps the engines that it has built."""
MODEL = "model"
"""Key of the model's own graph."""
EXPLAIN = "explain"
"""Key of the graph that says where the model looked."""
_EXPLAIN_LARGEST_BATCH = 8
"""Where the model looked is asked for one image at a time, and larger batches would hold up the rest for long."""


def preprocessing_of(manifest: Manifest, settings: Settings) -> Preprocessing:
    """Return what a model's manifest asks to be done to every image, within the limits that the settings give."""
    return Preprocessing(
        resize=(manifest.preprocess.resize_height, manifest.preprocess.resize_width),
        crop=(manifest.input.height, manifest.input.width),
        limits=settings.decode_limits,
        exif_orientation=settings.exif_orientation,
        fast=settings.resize == "fast",
    )


def graphs_of(model: ModelDirectory, settings: Settings, *, buckets: tuple[int, ...]) -> tuple[Graph, ...]:
    """Return the graphs of a model that are served as the settings say, its own first, in batches of these sizes.

    Raises RepositoryError where two graphs have an output of the same name.
    """
    manifest = model.manifest
    outputs, free = manifest.shapes, sizes_of(manifest, settings).free_size(manifest.shapes_at)
    # Most requests compute the classes only, but ask for everything of where the model looked.
    graphs = [Graph(MODEL, outputs, buckets, timed=(manifest.class_output,), free=free)]
    if settings.explain and manifest.explain is not None:
        explain = dict(manifest.explain.outputs)
        if common := outputs.keys() & explain:
            raise RepositoryError(f"{model.path}: two graphs have an output {', '.join(sorted(common))}")
        small = tuple(bucket for bucket in buckets if bucket <= _EXPLAIN_LARGEST_BATCH) or (min(buckets),)
        free = explain_sizes_of(manifest, settings).free_size(manifest.explain_shapes_at)
        graphs.append(Graph(EXPLAIN, explain, small, timed=tuple(explain), free=free))
    return tuple(graphs)


def input_shape(manifest: Manifest) -> tuple[int, int, int]:
    """Return height, width and 3 of the images that all graphs of the model take; some take others as well."""
    return (manifest.input.height, manifest.input.width, 3)


def load_session(
    model: ModelDirectory, graph: Graph, *, device: str, settings: Settings, threads: int | None = None
) -> OnnxSession:
    """Load a model's graph on a device as the settings say, but with `threads` where given; raises StartupError.

    Warns of what makes the model slow on that device: that its fused graph cannot be run there is refused instead, if
    the settings are strict.
    """
    manifest = model.manifest
    options = DeviceOptions(
        device=device,
        threads=settings.threads if threads is None else threads,
        provider_options=settings.provider_options,
        cuda_graphs=settings.cuda_graphs,
        cuda_graph_outputs=manifest.vectors,  # they cost nearly nothing beside the rest of the graph
        strict_device=settings.strict_device,
        shrink_arena_above=settings.shrink_arena_above,
        self_check=settings.self_check,
        precision=manifest.precision,
        buckets=graph.buckets,
        engine_cache=model.path / ENGINE_CACHE,
    )
    load = partial(
        OnnxSession.load,
        input_shape=input_shape(manifest),
        output_names=tuple(graph.outputs),
        free_size=graph.free is not None,
    )
    if graph.key == EXPLAIN:
        return load(model.explain_path, explain_options(options))
    for drawback in drawbacks(manifest, device):
        _log.warning(drawback)
    if manifest.fused is not None and settings.fused and Device.parse(device).kind == "cuda":
        try:
            return _load_fused(model, manifest.fused, options, load)
        except (DeviceUnavailable, RepositoryError) as error:  # where the standard one is at fault, it says so next
            found = f"{model.path} has a fused graph, which cannot be run on {device}: {str(error).rstrip('.')}."
            if settings.strict_device:
                raise DeviceUnavailable(f"{found} Without strict_device its standard graph would run.") from error
            _log.warning("%s Its standard graph is run.", found)
    return load(model.model_path, options)


def _load_fused(
    model: ModelDirectory, record: FusedRecord, options: DeviceOptions, load: Callable[..., OnnxSession]
) -> OnnxSession:
    """Load the fused graph of a model.

    Raises DeviceUnavailable where the library or the device cannot run all of it, and RepositoryError where the library
    has not its operators, or the file is not the graph that the manifest says it is.

    Compared is with the standard graph: the library's own code for the CPU is there to be read, and is slow.
    """
    library = kernel_library(Device.parse(options.device), version=record.operators_version)
    options = dataclasses.replace(options, operators=library, strict_device=True)
    return load(model.fused_path, options, reference=model.model_path)


@dataclass(frozen=True, slots=True)
class LoadFacts:
    """What it has shown to load a model's graphs on one device."""

    form: GraphForm
    """Which form of its own graph the model runs there."""
    parity: Parity | None
    """Of the graph that came nearest to its tolerance; None where none was compared with the CPU."""


def worst(parities: Iterable[Parity | None]) -> Parity | None:
    """Return the comparison that came nearest to its tolerance; None where nothing was compared."""
    compared = (parity for parity in parities if parity is not None)
    return max(compared, key=lambda parity: parity.error / parity.tolerance, default=None)


class SessionLoader:
    """Loads a model's graphs on one device as `load_session` does, and remembers what that has shown."""

    def __init__(self, model: ModelDirectory, *, device: str, settings: Settings, threads: int | None = None) -> None:
        self._load = partial(load_session, model, device=device, settings=settings, threads=threads)
        self._form = GraphForm.STANDARD
        self._parity: Parity | None = None

    def __call__(self, graph: Graph) -> OnnxSession:
        """Load a graph; raises StartupError."""
        session = self._load(graph)
        if graph.key == MODEL:
            self._form = GraphForm.STANDARD if session.operators is None else GraphForm.FUSED
        self._parity = worst((self._parity, session.parity))
        return session

    @property
    def facts(self) -> LoadFacts:
        """What the graphs that are loaded have shown."""
        return LoadFacts(self._form, self._parity)


def warmed_up(model: ModelDirectory, graphs: Sequence[Graph], load: Callable[[Graph], Session]) -> EngineCore:
    """Load a model's graphs and run every bucket of each, as an engine does that is to serve it; raises StartupError.

    The core that is returned knows what each run takes; it has a slot for one image, and is of no use to anybody else.
    """
    shape = input_shape(model.manifest)
    core = EngineCore(
        graphs,
        {graph.key: load(graph) for graph in graphs},
        SlotPool(1, shape),
        Board(workers=1, engines=1).engines[0],
        input_shape=shape,
        clock=time.monotonic,
    )
    core.warm_up()
    return core


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
        cuda_graph_outputs=(),
        shrink_arena_above=0,
        precision="fp32",
    )


def in_process_engine(
    settings: Settings,
    model: ModelDirectory,
    *,
    device: str,
    load: Callable[[Graph], Session],
    room: Room,
    turns: DeviceTurns | None = None,
    observer: EngineObserver | None = None,
) -> InProcessEngine:
    """Return an engine, not started, that will run `model` on `device`, a resolved one, in a thread.

    `load` is asked there for the session of each graph.
    """
    return InProcessEngine(
        graphs_of(model, settings, buckets=settings.buckets_for(device)),
        load,
        input_shape=input_shape(model.manifest),
        room=room,
        turns=turns,
        max_wait_s=settings.max_wait_ms / 1000,
        max_delay_s=settings.max_delay_ms / 1000,
        hang_after_s=settings.hang_timeout_ms / 1000,
        observer=observer,
    )
