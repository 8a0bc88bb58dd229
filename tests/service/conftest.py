"""A served tiny model inside the test's process: the real application and engine, on a model of a few operations."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from service.engine.graphs import Graph
from service.engine.in_process import InProcessEngine
from service.engine.runtime import session
from service.engine.runtime.options import PROVIDERS, Provider
from service.engine.types import Session
from service.errors import StartupError
from service.http.app import create_app
from service.model.directory import ModelDirectory, open_model
from service.model.loading import load_session
from service.serving.answer_cache import AnswerCache
from service.settings import Settings, load_settings
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer
from tests.service import tiny_explain, tiny_model
from tests.service.fixed_hosting import FakeControl, FixedHosting, engine_of, served_by

INPUT_SHAPE = (tiny_model.SIZE, tiny_model.SIZE, 3)
OUTPUT_NAMES = tuple(tiny_model.shapes())
PATIENCE_S = 30
"""How long a test waits for what must come; only a broken service makes it wait so long."""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    tiny_model.write(root)
    return root


@pytest.fixture(scope="session")
def model(repository: Path) -> ModelDirectory:
    return open_model(repository / tiny_model.NAME / str(tiny_model.VERSION))


@pytest.fixture
def cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `cuda` be the CPU under another name, so that all that is done for a device is done."""
    monkeypatch.setattr(session, "require_device", lambda device: None)
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("CPUExecutionProvider", "cpu", {}))


class GatedSession:
    """The tiny model in NumPy, whose runs wait while the gate is closed; it opens for the warm-up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self._began = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.failure: Exception | None = None

    def close(self) -> None:
        """Make the next runs wait."""
        self.sizes.clear()
        self._began = threading.Semaphore(0)
        self.gate.clear()

    async def run_began(self) -> None:
        """Return when a run has begun since the gate was closed."""
        await asyncio.to_thread(self.wait_for_run)

    def wait_for_run(self) -> None:
        """Return, in any thread, when a run has begun since the gate was closed."""
        assert self._began.acquire(timeout=PATIENCE_S)

    def staging(self, size_bytes: int) -> NDArray[np.uint8]:
        return np.zeros(size_bytes, np.uint8)

    def run(self, images: NDArray[np.uint8], outputs: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
        self.sizes.append(len(images))
        self._began.release()
        assert self.gate.wait(timeout=PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        answers = (tiny_model if outputs[0] in OUTPUT_NAMES else tiny_explain).reference(images)
        return {name: answers[name] for name in outputs}


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop go on until something holds that nobody tells of."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_s, "it never came to hold"
        await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Served:
    """A running application and a client of it."""

    app: FastAPI
    hosting: FixedHosting
    engines: Sequence[InProcessEngine]
    metrics: Metrics
    http: httpx.AsyncClient
    failed_starts: list[StartupError]

    @property
    def engine(self) -> InProcessEngine:
        """The default model's engine."""
        return self.engines[0]

    def sample(self, name: str, **labels: str) -> float:
        """The present value of a metric, of all with these labels together; 0 where it was never set."""
        samples = [each for family in self.metrics.registry.collect() for each in family.samples if each.name == name]
        return sum(each.value for each in samples if labels.items() <= each.labels.items())

    async def ready(self) -> None:
        """Return when the models of the start take work."""
        await self.app.state.service.started.wait()


@dataclass(frozen=True)
class Parts:
    """An application that is not running, and what it is made of."""

    app: FastAPI
    hosting: FixedHosting
    engines: Sequence[InProcessEngine]
    metrics: Metrics
    failed_starts: list[StartupError]

    @property
    def engine(self) -> InProcessEngine:
        """The default model's engine."""
        return self.engines[0]


def make_parts(
    model: ModelDirectory,
    load: Callable[[Graph], Session],
    tracer: Tracer | None = None,
    *,
    others: Sequence[ModelDirectory] = (),
    control: FakeControl | None = None,
    **settings: object,
) -> Parts:
    """Make an application of some settings, with the model of `load` and others that are loaded as the service does."""
    given = {name: value if isinstance(value, tuple) else str(value) for name, value in settings.items()}
    chosen = load_settings(given, environment={})
    metrics = Metrics()
    models = (model, *others)
    loads = (load, *(partial(load_on_cpu, other) for other in others))
    engines = [engine_of(each, load, chosen, metrics) for each, load in zip(models, loads, strict=True)]
    cache = AnswerCache.of(chosen, metrics)
    hosting = FixedHosting(
        [served_by(engine, each, chosen, metrics, cache) for engine, each in zip(engines, models, strict=True)],
        control=control,
    )
    failed_starts: list[StartupError] = []
    app = create_app(chosen, hosting, metrics=metrics, on_failed_start=failed_starts.append, tracer=tracer)
    return Parts(app, hosting, engines, metrics, failed_starts)


def load_on_cpu(model: ModelDirectory, graph: Graph) -> Session:
    """Load a graph as the service does."""
    return load_session(model, graph, device="cpu", settings=Settings(threads=1))


@contextlib.asynccontextmanager
async def serving(
    model: ModelDirectory,
    session: GatedSession | None = None,
    *,
    wait_ready: bool = True,
    tracer: Tracer | None = None,
    others: Sequence[ModelDirectory] = (),
    control: FakeControl | None = None,
    **settings: object,
) -> AsyncIterator[Served]:
    """Serve the tiny model (or a gated session), and others beside it, with some settings."""
    parts = make_parts(
        model,
        lambda graph: session or load_on_cpu(model, graph),
        tracer,
        others=others,
        control=control,
        **settings,
    )
    async with parts.app.router.lifespan_context(parts.app):
        if wait_ready:
            await parts.app.state.service.started.wait()
        transport = httpx.ASGITransport(parts.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            yield Served(parts.app, parts.hosting, parts.engines, parts.metrics, http, parts.failed_starts)
        if session is not None:
            session.gate.set()


@pytest.fixture
async def served(model: ModelDirectory) -> AsyncIterator[Served]:
    async with serving(model) as running:
        yield running
