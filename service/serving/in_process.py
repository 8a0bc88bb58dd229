"""Models served by this process alone: an engine thread for each version, and the engines of a device taking turns."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import cache

from service.engine.device_turns import DeviceTurns
from service.engine.room import Room
from service.engine.runtime.session import resolve_device
from service.engine.types import EngineState
from service.errors import SettingsError, StartupError
from service.model.loading import SessionLoader, in_process_engine, preprocessing_of
from service.serving.answer_cache import AnswerCache, of_version
from service.serving.control import ModelControl
from service.serving.reading import in_daemon_thread
from service.serving.registry import Candidate, Loaded, Registry, Repository
from service.serving.served import Served, ServedModels
from service.serving.states import ModelState, VersionStatus
from service.serving.watch import RepositoryWatch
from service.settings import Settings
from service.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_STOP_S = 5.0
"""For an engine that has nothing left to do."""


class InProcessHost:
    """Loads versions into threads of this process; belongs to one event loop."""

    def __init__(self, models: ServedModels, settings: Settings, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._room = Room(settings.max_queued_images)
        self._cache = AnswerCache.of(settings, metrics)
        self._devices: defaultdict[str, DeviceTurns] = defaultdict(DeviceTurns)
        self._served: dict[int, Served] = {}
        self._resolve = cache(resolve_device)  # what a device stood for once it stands for always

    async def load(self, serial: int, candidate: Candidate) -> Loaded:
        """Load a version in a thread of its own; see `registry.Host`."""
        model, settings = candidate.model, candidate.settings
        device = await in_daemon_thread(self._resolve, device_of(settings))
        metrics = self._metrics.of_model(candidate.name, candidate.version)
        loader = SessionLoader(model, device=device, settings=settings)
        engine = in_process_engine(
            settings,
            model,
            device=device,
            load=loader,
            room=self._room,
            turns=self._devices[device],
            observer=metrics,
        )
        await engine.start()
        try:
            await engine.wait_ready()
        except asyncio.CancelledError:  # the service ends, and waits for no load
            await engine.stop(0.0)
            raise
        except Exception:
            await engine.stop(_STOP_S)
            self._forget(candidate.name, candidate.version)
            raise
        preprocessing, cache = preprocessing_of(model.manifest, settings), of_version(self._cache)
        self._served[serial] = Served(model, settings, engine, preprocessing, metrics, cache)
        return Loaded((device,), (loader.facts.form,), loader.facts.parity)

    async def publish(self, statuses: Sequence[VersionStatus], serials: Sequence[int]) -> None:
        """Give requests to these versions alone; see `registry.Host`."""
        self._models.publish(statuses, [self._served[serial] for serial in serials])

    def is_well(self, serial: int) -> bool:
        """Return whether a version's engine is not dead, which it would stay; see `registry.Host`."""
        return self._served[serial].engine.state is not EngineState.DEAD

    async def unload(self, serial: int) -> None:
        """End a version's engine when it has nothing left to do; see `registry.Host`."""
        served = self._served[serial]
        await served.wait_unused()
        await served.engine.wait_empty()
        await served.engine.stop(_STOP_S)
        served.let_go()
        del self._served[serial]
        self._forget(served.name, served.version)

    def _forget(self, name: str, version: int) -> None:
        """Show no more of a version, unless another load of it is served."""
        if not any((each.name, each.version) == (name, version) for each in self._served.values()):
            self._metrics.forget(name, version)

    async def stop(self, timeout_s: float) -> None:
        """End every engine, whatever it has left to do."""
        await asyncio.gather(*(served.engine.stop(timeout_s) for served in self._served.values()))


def device_of(settings: Settings) -> str:
    """Return the one device of a model that this process runs; raises SettingsError where it is to have several."""
    if settings.devices or settings.instances > 1:
        raise SettingsError(
            "several devices or instances of a model want processes of their own: set workers or devices"
        )
    return settings.device


class InProcessHosting:
    """Keeps the models of this process's application served; see `control.Hosting`.

    `candidates` are served from the start, and what the settings let change is of `repository`; `prove` tries it
    before.
    """

    def __init__(
        self,
        settings: Settings,
        candidates: Sequence[Candidate],
        repository: Repository,
        *,
        metrics: Metrics,
        prove: Callable[[Candidate], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._candidates = candidates
        self._models = ServedModels(default=candidates[0].name)
        self._models.publish([VersionStatus(each.name, each.version, ModelState.LOADING) for each in candidates], ())
        self._host = InProcessHost(self._models, settings, metrics)
        self._registry = Registry(
            repository, self._host, prove=prove, observer=metrics, lists_repository=settings.model_control
        )
        self._starting: asyncio.Task[None]
        self._watching: asyncio.Task[None] | None = None

    @property
    def models(self) -> ServedModels:
        """What may be asked now."""
        return self._models

    @property
    def control(self) -> ModelControl | None:
        """What loads and unloads models; None where the settings do not allow that."""
        return self._registry if self._settings.model_control else None

    async def start(self) -> None:
        """Begin to load, and return at once."""
        self._starting = asyncio.create_task(self._registry.start(self._candidates))

    async def wait_ready(self) -> None:
        """Return when all that is served from the start takes work; raises StartupError."""
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if not self._starting.cancelled():
                raise
            raise StartupError("The service was stopped before its models were loaded.") from None
        if self._settings.watch_repository:
            watch = RepositoryWatch(self._settings, self._registry, self._registry.load)
            self._watching = asyncio.create_task(watch.run())

    async def stop(self, timeout_s: float) -> None:
        """Fail whatever still waits, and let go of every engine."""
        if self._watching is not None:
            self._watching.cancel()
        self._starting.cancel()
        await self._registry.stop()
        await self._host.stop(timeout_s)
        await asyncio.gather(self._starting, *filter(None, [self._watching]), return_exceptions=True)
