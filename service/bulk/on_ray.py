"""Parts on a Ray cluster: an actor a device, each with the model, and a few parts at a time to each.

A device is a GPU that a node offers to Ray or, where it offers none or the CPU is asked for, the node. The files are on
storage that all nodes see; only parts' descriptions and counts go over the network. An actor that is lost takes the
parts under way there with it: others do them. It may be alive beyond a broken connection, so that every actor
writes under names of its own; should two finish one part, both have written the same.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from service.bulk.journal import Journal
from service.bulk.parts import Part
from service.bulk.run import Question, output_shapes, run_parts
from service.bulk.writing import Counts
from service.errors import SettingsError
from service.predictors.in_process import InProcessPredictor, open_predictor
from service.predictors.types import PredictorFailed, PredictorModel
from service.settings import Settings

# Read when Ray is imported, for the address `local`, which starts a cluster: this service reports to nobody.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_REPORT_URL", "")

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise SettingsError(f"--ray: {error.name} is not installed; requirements/ray.txt has what Ray needs") from error

_PARTS_UNDER_WAY = 2
"""Of an actor: one that is finished, and one that keeps the device busy meanwhile."""


class PartWorker:
    """The model on one device; becomes an actor, whose methods run on one event loop."""

    def __init__(self, settings: Settings, folder: Path, directory: Path, concurrency: int | None) -> None:
        os.chdir(directory)  # the paths of the input may begin there
        self._settings = settings
        self._journal = Journal(folder, mark=uuid4().hex)
        self._concurrency = concurrency
        self._opened = AsyncExitStack()
        self._predictor: InProcessPredictor

    async def start(self) -> PredictorModel:
        """Load and warm the model, before anything else is asked; raises StartupError."""
        opening = open_predictor(self._settings, concurrency=self._concurrency)
        self._predictor = await self._opened.enter_async_context(opening)
        return self._predictor.model

    async def shapes(self, outputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each output for one image."""
        return await output_shapes(self._predictor, outputs)

    async def do(self, part: Part, question: Question, schema: pa.Schema) -> Counts:
        """Do one part, and return what it has when its file is in place."""
        run = run_parts([part], question, self._predictor, journal=self._journal, schema=schema)
        async with aclosing(run) as done:
            _, counts = await anext(done)
        return counts


class Cluster:
    """Actors that do parts; see `open_cluster`, and `run.Workplace`."""

    def __init__(self, actors: Sequence[Any], model: PredictorModel) -> None:
        self._actors = list(actors)
        self._model = model

    @property
    def model(self) -> PredictorModel:
        """The model that answers."""
        return self._model

    async def shapes(self, outputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each output for one image."""
        shapes: dict[str, tuple[int, ...]] = await self._actors[0].shapes.remote(tuple(outputs))
        return shapes

    async def run(
        self, parts: Sequence[Part], question: Question, schema: pa.Schema, *, advance: Callable[[int], None]
    ) -> AsyncGenerator[tuple[Part, Counts], None]:
        """Do the parts, in any order, and yield each when its file is in place; see `Workplace`."""
        left = deque(parts)
        running: dict[asyncio.Task[Counts], tuple[Any, Part]] = {}
        try:
            while left or running:
                busy = Counter(actor for actor, _ in running.values())
                for actor in (each for each in self._actors for _ in range(_PARTS_UNDER_WAY - busy[each])):
                    if left:
                        part = left.popleft()
                        running[asyncio.create_task(_ask(actor, part, question, schema))] = actor, part
                if not running:
                    raise PredictorFailed("every actor on the Ray cluster was lost")
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    actor, part = running.pop(task)
                    try:
                        counts = task.result()
                    except RayActorError:
                        left.appendleft(part)
                        self._actors = [each for each in self._actors if each is not actor]
                        continue
                    advance(counts.images)
                    yield part, counts
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def _ask(actor: Any, part: Part, question: Question, schema: pa.Schema) -> Counts:
    try:
        counts: Counts = await actor.do.remote(part, question, schema)
    except RayTaskError as error:
        raise error.cause from error
    return counts


@asynccontextmanager
async def open_cluster(
    address: str, settings: Settings, journal: Journal, *, concurrency: int | None
) -> AsyncIterator[Cluster]:
    """Connect to a cluster, start an actor on each of its devices, and give them with the model loaded.

    Raises StartupError where the cluster cannot be reached, or the model cannot be loaded on a device.
    """
    settings = settings.model_copy(update={"repository": settings.repository_anywhere})
    try:
        ray.init(address, logging_level="warning", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PredictorFailed(f"--ray: {address} cannot be used: {error}") from error
    try:
        actors = [
            ray.remote(PartWorker)
            .options(num_cpus=0, num_gpus=gpus, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote(settings, journal.folder.absolute(), Path.cwd(), concurrency)
            for node, gpus in _devices(settings)
        ]
        try:
            models = await asyncio.gather(*(actor.start.remote() for actor in actors))
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise PredictorFailed(f"--ray: an actor was lost as it loaded the model: {error}") from error
        if any(model != models[0] for model in models):
            raise PredictorFailed("--ray: the nodes do not all have the same model in their repositories")
        yield Cluster(actors, models[0])
    finally:
        ray.shutdown()


def _devices(settings: Settings) -> list[tuple[str, int]]:
    """Return the node of each device, and the GPUs that it takes there."""
    devices = []
    for node in ray.nodes():
        if node["Alive"]:
            gpus = 0 if settings.device == "cpu" else int(node["Resources"].get("GPU", 0))
            devices += [(node["NodeID"], 1)] * gpus or [(node["NodeID"], 0)]
    return devices
