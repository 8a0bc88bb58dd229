"""Models served by this process alone: an engine thread for each version, and the engines of a device taking turns.

An engine that dies has a successor, which loads the version anew:

    broke    its thread has ended          another takes its place, after a delay, and nothing else is touched
    hangs    its thread never ends         only the end of the process ends it, which is for whoever started that: it is
                                           told, and has the process begin anew
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import cache

from service.engine.device_turns import DeviceTurns
from service.engine.in_process import InProcessEngine
from service.engine.room import Room
from service.engine.runtime.session import resolve_device
from service.engine.types import EngineState
from service.errors import SettingsError, StartupError
from service.model.loading import SessionLoader, in_process_engine, preprocessing_of
from service.serving.answer_cache import AnswerCache, of_version
from service.serving.control import ModelControl
from service.serving.reading import in_daemon_thread
from service.serving.registry import Candidate, Loaded, Registry, Repository
from service.serving.restart_delay import RestartDelay
from service.serving.served import Served, ServedModels
from service.serving.states import ModelState, VersionStatus
from service.serving.watch import RepositoryWatch
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.model_metrics import ModelMetrics

_log = logging.getLogger(__name__)

ENGINE = "engine"
"""What the engines of this process are called in the metrics."""
_STOP_S = 5.0
"""For an engine that has nothing left to do."""


class InProcessHost:
    """Loads versions into threads of this process; belongs to one event loop.

    `on_hung` is told when an engine hangs, in a sentence.
    """

    def __init__(
        self, models: ServedModels, settings: Settings, metrics: Metrics, *, on_hung: Callable[[str], object]
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._on_hung = on_hung
        self._max_restart_delay_s = settings.max_restart_delay_ms / 1000
        self._room = Room(settings.max_queued_images)
        self._cache = AnswerCache.of(settings, metrics)
        self._devices: defaultdict[str, DeviceTurns] = defaultdict(DeviceTurns)
        self._served: dict[int, Served] = {}
        self._keeping: dict[int, asyncio.Task[None]] = {}
        self._resolve = cache(resolve_device)  # what a device stood for once it stands for always
        metrics.may_restart(ENGINE)

    async def load(self, serial: int, candidate: Candidate, *, on_reloaded: Callable[[Loaded], None]) -> Loaded:
        """Load a version in a thread of its own; see `registry.Host`."""
        model, settings = candidate.model, candidate.settings
        device = await in_daemon_thread(self._resolve, device_of(settings))
        metrics = self._metrics.of_model(
            candidate.name,
            candidate.version,
            class_names=model.class_names,
            most_classes=settings.class_metrics,
            temperature=model.manifest.temperature,
        )
        engine, loader = self._make_engine(candidate, device, metrics)
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
        served = Served(model, settings, engine, preprocessing, metrics, cache)
        self._served[serial] = served
        self._keeping[serial] = asyncio.create_task(self._keep(served, engine, candidate, device, on_reloaded))
        return _loaded(device, loader)

    def _make_engine(
        self, candidate: Candidate, device: str, metrics: ModelMetrics
    ) -> tuple[InProcessEngine, SessionLoader]:
        model, settings = candidate.model, candidate.settings
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
        return engine, loader

    async def _keep(
        self,
        served: Served,
        engine: InProcessEngine,
        candidate: Candidate,
        device: str,
        on_reloaded: Callable[[Loaded], None],
    ) -> None:
        """Put another engine in place of each that breaks, for as long as the version is served, or until one hangs."""
        delay, loop = RestartDelay(self._max_restart_delay_s), asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            await engine.wait_dead()
            if engine.hangs:
                self._on_hung(f"{served.name} version {served.version}: {engine.failure}")
                return
            delay_s = delay.after(loop.time() - began_s)
            fields = {"model": served.name, "version": served.version, "how": engine.failure, "delay_s": delay_s}
            _log.error("an engine has ended, and is loaded again", extra={"fields": fields})
            await engine.stop(_STOP_S)
            await asyncio.sleep(delay_s)
            self._metrics.restarted(ENGINE)
            try:
                fresh, loader = self._make_engine(candidate, device, served.metrics)
                await fresh.start()
                engine = served.engine = fresh
                await engine.wait_ready()
            except StartupError:
                continue  # it is dead, and says why
            except Exception:
                _log.exception("no engine could be made, as nobody expected")
                continue
            _log.info("engine ready", extra={"fields": {"model": served.name, "version": served.version}})
            on_reloaded(_loaded(device, loader))

    async def publish(self, statuses: Sequence[VersionStatus], serials: Sequence[int]) -> None:
        """Give requests to these versions alone; see `registry.Host`."""
        self._models.publish(statuses, [self._served[serial] for serial in serials])

    def is_well(self, serial: int) -> bool:
        """Return whether a version has an engine now; while it has none, another load may help; see `registry.Host`."""
        return self._served[serial].engine.state is not EngineState.DEAD

    async def unload(self, serial: int) -> None:
        """End a version's engine when it has nothing left to do; see `registry.Host`."""
        served = self._served[serial]
        await self._keep_no_more(serial)
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
        await asyncio.gather(*map(self._keep_no_more, list(self._keeping)))
        await asyncio.gather(*(served.engine.stop(timeout_s) for served in self._served.values()))

    async def _keep_no_more(self, serial: int) -> None:
        """Leave a version with the engine that it has."""
        keeping = self._keeping.pop(serial)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def _loaded(device: str, loader: SessionLoader) -> Loaded:
    return Loaded((device,), (loader.facts.form,), loader.facts.parity)


def _nobody(hung: str) -> None:
    """Leave an engine that hangs to whoever watches the health of the process."""


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
    before. `on_hung` is told, in a sentence, of an engine that hangs: its model is served again by another process
    alone.
    """

    def __init__(
        self,
        settings: Settings,
        candidates: Sequence[Candidate],
        repository: Repository,
        *,
        metrics: Metrics,
        prove: Callable[[Candidate], Awaitable[None]],
        on_hung: Callable[[str], object] = _nobody,
    ) -> None:
        self._settings = settings
        self._candidates = candidates
        self._models = ServedModels(default=candidates[0].name)
        self._models.publish([VersionStatus(each.name, each.version, ModelState.LOADING) for each in candidates], ())
        self._host = InProcessHost(self._models, settings, metrics, on_hung=on_hung)
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
