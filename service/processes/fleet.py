"""What the processes of a service serve: the supervisor's side of loading, publishing and unloading versions.

A version that is loaded has a board of its own, an engine in each process of its devices, and in each worker memory of
its own, which the two share. Each pair of a worker and an engine of it has a socket. A process that is started anew is
brought all that is served, and its links; nobody else notices.

    load       board ──► engine processes, workers; links between them; Loaded from every engine
    publish    revision ──► workers; Published from every worker that lives
    unload     Unload ──► workers; Unloaded from every one that lives; then the same with the engine processes

Invariants: those of `serving.registry`; what waits for an answer of a process goes on when that process ends; a version
that brings a process down twice while it loads is not brought again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from service.engine.board import Board
from service.engine.control import Attach, Load, Loaded, NotLoaded, Unload, Unloaded
from service.engine.shared import SharedSlots
from service.engine.types import EngineState
from service.errors import StartupError
from service.model.loading import LoadFacts, worst
from service.processes.plan import Publish, Published, VersionPlan
from service.processes.roles import EngineRole, Role, WorkerRole, living
from service.serving import registry
from service.serving.reading import in_daemon_thread
from service.serving.registry import Candidate
from service.serving.states import ModelState, VersionStatus

_RELOAD_S = 1.0
"""Before a version is brought again to an engine process that could not load it although another had."""


class _Version:
    """A version that is brought to processes."""

    def __init__(
        self, plan: VersionPlan, board: Board, descriptor: int, *, on_reloaded: Callable[[registry.Loaded], None]
    ) -> None:
        self.plan = plan
        self.on_reloaded = on_reloaded
        self.board = board
        self.descriptor = descriptor
        self.memories: dict[int, int] = {}
        """Each worker's, by its number."""
        self.facts: dict[int, LoadFacts] = {}
        """What each engine's load has shown, by the number of its process."""
        self.attempts_left = 2
        """Times that it may bring a process down before it has ever been loaded."""
        self.failure: str | None = None
        self.is_leaving = False
        """Whether it gets no requests any more, so that nobody needs it who does not have it."""
        self.held_by: set[Role] = set()
        """Processes that were brought it and have not said that they let it go."""

    @property
    def was_loaded(self) -> bool:
        """Whether every engine has taken work at some time."""
        return len(self.facts) == len(self.plan.engines)

    @property
    def loaded(self) -> registry.Loaded:
        """What the latest loads have shown, one of each engine."""
        facts = [self.facts[number] for number in self.plan.engines]
        return registry.Loaded(
            self.plan.devices, tuple(each.form for each in facts), worst(each.parity for each in facts)
        )

    def close(self) -> None:
        """Let go of the descriptors."""
        for descriptor in (self.descriptor, *self.memories.values()):
            os.close(descriptor)


class Fleet:
    """Brings versions to processes; see `serving.registry.Host`. Belongs to the supervisor's event loop.

    `engines_on` returns the roles of the engine processes for devices, one a device, which it makes where there are
    none; `resolve` says, in a thread, what device `auto` stands for.
    """

    def __init__(
        self,
        workers: Sequence[WorkerRole],
        engines_on: Callable[[Sequence[str]], Sequence[EngineRole]],
        *,
        resolve: Callable[[str], str],
        statuses: Sequence[VersionStatus],
    ) -> None:
        self._workers = workers
        self._engines_on = engines_on
        self._resolve = resolve
        self._versions: dict[int, _Version] = {}
        self._engines: dict[int, EngineRole] = {}
        self._published = Publish(0, tuple(statuses), (), is_started=False)
        for worker in workers:
            worker.published = self._published
        self._revisions: dict[Role, int] = {}
        """The latest that each worker has confirmed."""
        self._news = asyncio.Event()

    # What the registry asks.

    async def load(
        self, serial: int, candidate: Candidate, *, on_reloaded: Callable[[registry.Loaded], None]
    ) -> registry.Loaded:
        """Bring a version to its devices and to all workers; see `serving.registry.Host`."""
        settings = candidate.settings
        devices = settings.devices or (await in_daemon_thread(self._resolve, settings.device),)
        devices = tuple(device for device in devices for _ in range(settings.instances))
        roles = self._engines_on(devices)
        plan = VersionPlan(candidate.model, settings, devices, tuple(role.number for role in roles))
        _ = plan.geometry  # raises where it has none
        version = self._versions[serial] = _Version(plan, *plan.create_board(), on_reloaded=on_reloaded)
        self._engines |= {role.number: role for role in roles}
        try:
            for role in roles:
                self._bring_to_engine(serial, role)
            for worker in self._workers:
                self._bring_to_worker(serial, worker)
            await self._until(lambda: version.was_loaded or version.failure is not None)
        except Exception:  # not where the load is cancelled: then the service ends, and waits for no engine
            version.failure = "The load was given up."
            raise
        finally:
            if version.failure is not None:
                await self.unload(serial)
        if version.failure is not None:
            raise StartupError(version.failure)
        return version.loaded

    async def publish(self, statuses: Sequence[VersionStatus], serials: Sequence[int]) -> None:
        """Give requests to these versions alone, in every worker; see `serving.registry.Host`."""
        is_started = self._published.is_started or not any(each.state is ModelState.LOADING for each in statuses)
        self._published = Publish(self._published.revision + 1, tuple(statuses), tuple(serials), is_started)
        published = self._published
        for worker in self._workers:
            worker.published = published
            if worker.child is not None:
                worker.child.control.send(published)
        await self._until(
            lambda: all(
                self._revisions.get(worker, 0) >= published.revision
                for worker in self._workers
                if worker.child is not None and worker.was_ready
            )
        )

    async def unload(self, serial: int) -> None:
        """Have workers let go of a version when nothing of it is in flight, and then engines; see `registry.Host`."""
        version = self._versions[serial]
        version.is_leaving = True
        for roles in (self._workers, list(self._engines.values())):
            holders = version.held_by.intersection(roles)
            for child in living(list(holders)):
                child.control.send(Unload(serial))
            await self._until(lambda holders=holders: not version.held_by & holders)  # type: ignore[misc]
        del self._versions[serial]
        for number in version.plan.engines:
            self._engines[number].rows.pop(serial, None)
        version.close()

    def is_well(self, serial: int) -> bool:  # noqa: ARG002
        """Return that a version goes on being served: a process of it that is lost is started anew."""
        return True

    def uses(self, role: EngineRole) -> bool:
        """Return whether a version is to be served by the process in a role."""
        return any(role.number in version.plan.engines for version in self._versions.values())

    # What the supervisor reports; none of it waits.

    def introduce(self, role: Role) -> None:
        """Bring a process that was just started all that is served, and its links."""
        for serial, version in self._versions.items():
            if isinstance(role, WorkerRole):
                if not version.is_leaving:
                    self._bring_to_worker(serial, role)
            # What workers still have in flight may need an engine, although the version is leaving.
            elif isinstance(role, EngineRole) and role.number in version.plan.engines and self._is_needed(version):
                self._bring_to_engine(serial, role)
        if isinstance(role, WorkerRole) and role.child is not None:
            role.child.control.send(self._published)

    def hear(self, role: Role, message: object) -> None:
        """Take in what a process says of versions."""
        match message:
            case Loaded(serial, facts) if serial in self._versions:
                version = self._versions[serial]
                is_reloaded = version.was_loaded
                version.facts[role.number] = facts
                if is_reloaded:
                    version.on_reloaded(version.loaded)
            case NotLoaded(serial, sentence) if serial in self._versions:
                version = self._versions[serial]
                if version.was_loaded:
                    asyncio.get_running_loop().call_later(_RELOAD_S, self._bring_again, serial, role)
                else:
                    version.failure = sentence
            case Unloaded(serial) if serial in self._versions:
                self._versions[serial].held_by.discard(role)
            case Published(revision):
                self._revisions[role] = max(revision, self._revisions.get(role, 0))
        self._tell()

    def lost(self, role: Role, how: str) -> None:
        """Know that a process has ended; `how` is half a sentence."""
        self._revisions.pop(role, None)
        for version in self._versions.values():
            if role in version.held_by:
                version.held_by.discard(role)
                self._forget(version, role, how)
        self._tell()

    def _is_needed(self, version: _Version) -> bool:
        """Return whether a version gets requests, or has some in flight."""
        return not version.is_leaving or not version.held_by.isdisjoint(self._workers)

    def _forget(self, version: _Version, role: Role, how: str) -> None:
        if isinstance(role, WorkerRole):
            version.board.workers[role.number].clear()
            os.close(version.memories.pop(role.number))
        elif not version.was_loaded:
            version.attempts_left -= 1
            if version.attempts_left == 0:
                version.failure = f"{role.name} {how} while it loaded {version.plan.model.path}"

    def _bring_again(self, serial: int, role: Role) -> None:
        if serial in self._versions and isinstance(role, EngineRole):
            self._bring_to_engine(serial, role)

    def _bring_to_engine(self, serial: int, role: EngineRole) -> None:
        version = self._versions[serial]
        if role.child is None or version.failure is not None:
            return
        row = role.rows[serial] = version.board.engines[version.plan.engines.index(role.number)]
        row.state = EngineState.LOADING  # before the process says so itself: it may take long to begin
        version.held_by.add(role)
        role.child.control.send(Load(serial, version.plan), [version.descriptor])
        for worker in self._workers:
            self._link(serial, worker, role)

    def _bring_to_worker(self, serial: int, worker: WorkerRole) -> None:
        version = self._versions[serial]
        if worker.child is None:
            return
        memory = version.memories[worker.number] = SharedSlots.create(version.plan.geometry)
        version.held_by.add(worker)
        worker.child.control.send(Load(serial, version.plan), [version.descriptor, memory])
        for number in version.plan.engines:
            self._link(serial, worker, self._engines[number])

    def _link(self, serial: int, worker: WorkerRole, engine: EngineRole) -> None:
        """Give a worker and an engine their link, where both have the version."""
        version = self._versions[serial]
        if not {worker, engine} <= version.held_by or worker.child is None or engine.child is None:
            return
        for_engine, for_worker = socket.socketpair()
        with for_engine, for_worker:  # only the two must hold them, so that each sees the other end
            engine.child.control.send(
                Attach(serial, worker.number), [for_engine.fileno(), version.memories[worker.number]]
            )
            worker.child.control.send(Attach(serial, version.plan.engines.index(engine.number)), [for_worker.fileno()])

    def _tell(self) -> None:
        """Have those look again who wait for something to come true."""
        self._news.set()
        self._news = asyncio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._news.wait()
