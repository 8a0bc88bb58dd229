"""What a worker serves, as the supervisor says: it brings versions, says which of them get requests, and takes them.

Invariants: those of `serving.served`; a version that is to get requests gets none before an engine of it takes work
here; of two revisions the later holds, whatever order their preparations end in.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Coroutine

from service.engine.control import Attach, ControlSocket, Load, Unload, Unloaded
from service.engine.remote import RemoteEngine
from service.engine.room import Room
from service.engine.shared import SharedSlots
from service.errors import NotReady
from service.model.loading import preprocessing_of
from service.processes.plan import Change, Changed, Plan, Publish, Published, VersionPlan
from service.serving.answer_cache import AnswerCache, of_version
from service.serving.control import ModelControl
from service.serving.served import Served, ServedModels
from service.telemetry.metrics import Metrics


class WorkerHosting:
    """A worker's side of what is served; see `serving.control.Hosting`. It is its own `ModelControl`."""

    def __init__(
        self, control: ControlSocket, plan: Plan, metrics: Metrics, *, worker: int, published: Publish
    ) -> None:
        settings = plan.settings
        self._supervisor = control
        self._settings = settings
        self._metrics = metrics
        self._worker = worker
        self._room = Room(settings.slots_of_a_worker)
        self._cache = AnswerCache.of(settings, metrics)
        self._models = ServedModels(default=plan.default_model)
        self._models.publish(published.statuses, ())
        self._revision = -1
        """The latest that holds; none does before an engine of what it names takes work here."""
        self._versions: dict[int, Served] = {}
        """By serial: all that the supervisor has brought and not taken again."""
        self._engines: dict[int, RemoteEngine] = {}
        self._started = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._changes: dict[int, asyncio.Future[None]] = {}

    @property
    def models(self) -> ServedModels:
        """What may be asked now."""
        return self._models

    @property
    def control(self) -> ModelControl | None:
        """What loads and unloads models; None where the settings do not allow that."""
        return self if self._settings.model_control else None

    async def start(self) -> None:
        """Return: the supervisor brings what is to be served."""

    async def wait_ready(self) -> None:
        """Return when all that is served from the start takes work; the supervisor ends a service that never will."""
        await self._started.wait()

    async def stop(self, timeout_s: float) -> None:
        """Fail whatever still waits, and leave the engines."""
        for task in self._tasks:
            task.cancel()
        for change in self._changes.values():
            change.cancel()
        for engine in self._engines.values():
            await engine.stop(timeout_s)

    async def load(self, name: str) -> None:
        """Have the supervisor load a model; see `serving.control.ModelControl`."""
        await self._change("load", name)

    async def unload(self, name: str) -> None:
        """Have the supervisor unload a model; see `serving.control.ModelControl`."""
        await self._change("unload", name)

    async def _change(self, action: str, name: str) -> None:
        number = next(self._numbers)
        answer = self._changes[number] = asyncio.get_running_loop().create_future()
        try:
            if not self._supervisor.send(Change(number, action, name)):
                raise NotReady("The supervisor takes no more to do at present.")
            await answer
        finally:
            del self._changes[number]

    def obey(self, message: object, descriptors: list[int]) -> None:
        """Do what the supervisor says of what is served; called on the event loop."""
        match message:
            case Load(serial, plan):
                self._bring(serial, plan, *descriptors)
            case Attach(serial, engine):
                self._engines[serial].attach(engine, socket.socket(fileno=descriptors[0]))
            case Publish():
                self._begin(self._publish(message))
            case Unload(serial):
                self._begin(self._take(serial))
            case Changed(number, error):
                answer = self._changes.get(number)
                if answer is not None and not answer.done():
                    if error is None:
                        answer.set_result(None)
                    else:
                        answer.set_exception(error)

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _bring(self, serial: int, plan: VersionPlan, board: int, memory: int) -> None:
        settings, manifest = plan.settings, plan.model.manifest
        slots = SharedSlots(plan.geometry, memory)
        os.close(memory)
        engine = RemoteEngine(
            slots,
            plan.board(board),
            worker=self._worker,
            room=self._room,
            max_wait_s=settings.max_wait_ms / 1000,
            hang_after_s=settings.hang_timeout_ms / 1000,
        )
        self._engines[serial] = engine
        self._versions[serial] = Served(
            plan.model,
            settings,
            engine,
            preprocessing_of(manifest, settings),
            self._metrics.of_model(
                manifest.name,
                manifest.version,
                class_names=plan.model.class_names,
                most_classes=settings.class_metrics,
                temperature=manifest.temperature,
            ),
            of_version(self._cache),
        )

    async def _publish(self, published: Publish) -> None:
        """Give requests to the versions of a revision when an engine of each takes work here."""
        known = [serial for serial in published.serials if serial in self._versions]
        await asyncio.gather(*(self._engines[serial].wait_loaded() for serial in known))
        if published.revision > self._revision:
            self._revision = published.revision
            self._models.publish(
                published.statuses, [self._versions[serial] for serial in known if serial in self._versions]
            )
            if published.is_started:
                self._started.set()
        self._supervisor.send(Published(published.revision))

    async def _take(self, serial: int) -> None:
        """Let go of a version when nothing of it is in flight here."""
        served, engine = self._versions[serial], self._engines[serial]
        await served.wait_unused()
        await engine.wait_empty()
        await engine.stop()
        served.let_go()
        del self._versions[serial], self._engines[serial], served, engine
        self._supervisor.send(Unloaded(serial))
