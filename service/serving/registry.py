"""Which versions of which models are served, and every step by which that changes.

    load       wanted versions are read and checked, tried apart, loaded and warmed up beside what runs; then requests
               are given to them, and those not wanted any more drain and go
    unload     requests are given to no version of the model any more; what it has in flight ends, and it goes

The registry decides, a `Host` does: with threads of this process, or with processes.

Invariants: what is served changes in one step, from a whole to a whole; a step that fails leaves all that was served as
it was, and its reason in the version's status; of one model one change is made at a time; a version that left is let go
of only when nothing of it is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol
from weakref import WeakValueDictionary

from service.engine.runtime.selfcheck import Parity
from service.errors import LoadFailed, RepositoryError, ServiceError, StartupError, UnknownModel
from service.model.directory import ModelDirectory
from service.model.manifest import GraphForm
from service.serving.reading import in_daemon_thread
from service.serving.states import ModelState, VersionStatus
from service.settings import Settings
from service.telemetry.metrics import LoadOutcome

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that was read and checked, with the settings that are its own."""

    model: ModelDirectory
    settings: Settings

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.manifest.name

    @property
    def version(self) -> int:
        """Its version."""
        return self.model.manifest.version


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load has shown."""

    devices: tuple[str, ...]
    graphs: tuple[GraphForm, ...]
    """The form of the graph that each of the devices runs."""
    parity: Parity | None


class Host(Protocol):
    """What loads versions, gives requests to them, and lets go of them; a serial names one load of a version."""

    async def load(self, serial: int, candidate: Candidate, *, on_reloaded: Callable[[Loaded], None]) -> Loaded:
        """Load a version and warm it up, beside all others; raises StartupError, having let go of it, if it cannot.

        `on_reloaded` is told of each later load of it, in the place of an engine that has died, and what that has
        shown.
        """
        ...

    async def publish(self, statuses: Sequence[VersionStatus], serials: Sequence[int]) -> None:
        """Give requests to these versions and no others from now on; returns when that holds everywhere."""
        ...

    async def unload(self, serial: int) -> None:
        """Let go of a version that gets no requests any more, when what it has in flight has ended."""
        ...

    def is_well(self, serial: int) -> bool:
        """Return whether a version that is served will go on being served; false where only another load can help."""
        ...


class LoadObserver(Protocol):
    """Told how loads end; `telemetry.metrics.Metrics` is one."""

    def load_ended(self, *, model: str, outcome: LoadOutcome, duration_s: float = 0.0) -> None:
        """A version of a model takes work, could not be loaded, or was let go of."""
        ...


class Repository(Protocol):
    """Where versions come from; called in a thread, since it reads whole files."""

    def listed(self) -> dict[str, tuple[int, ...]]:
        """Return the versions of every model that is there, ascending."""
        ...

    def wanted(self, name: str) -> Sequence[int]:
        """Return the versions of a model that are to be served, ascending; raises UnknownModel where it has none."""
        ...

    def open(self, name: str, version: int) -> Candidate:
        """Read and check a version; raises RepositoryError."""
        ...


@dataclass(slots=True, eq=False)
class _Version:
    """A version that is served, or was asked for."""

    status: VersionStatus
    serial: int | None = None
    """Of the load that serves; None while none does."""
    content: str = ""
    """What tells its files from others: the manifest, which has their digests."""


class Registry:
    """The versions of one service; its methods belong to one event loop.

    `prove` tries a candidate where its failure hurts nobody; it raises StartupError, and is asked only once the service
    runs. With `lists_repository` the versions that lie there unloaded are shown too.
    """

    def __init__(
        self,
        repository: Repository,
        host: Host,
        *,
        prove: Callable[[Candidate], Awaitable[None]],
        observer: LoadObserver,
        lists_repository: bool,
    ) -> None:
        self._repository = repository
        self._host = host
        self._prove = prove
        self._observer = observer
        self._lists_repository = lists_repository
        self._versions: dict[tuple[str, int], _Version] = {}
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._changes: set[asyncio.Task[None]] = set()
        self._publishing = asyncio.Lock()
        self._serials = 0

    @property
    def statuses(self) -> Sequence[VersionStatus]:
        """How every version is, that is served, was asked for or, where it is listed, lies in the repository."""
        return [each.status for each in self._versions.values()]

    async def start(self, candidates: Sequence[Candidate]) -> None:
        """Serve these from the start, one after the other; raises StartupError where one of them cannot be."""
        for candidate in candidates:
            self._note(candidate.name, candidate.version, ModelState.LOADING)
        await self._list()
        await self._publish()
        for candidate in candidates:
            async with self._lock(candidate.name):
                known = self._versions[candidate.name, candidate.version]
                if known.status.state is ModelState.LOADING:  # else it was loaded or unloaded meanwhile, as asked
                    self._put(await self._loaded(candidate))
                    self._choose_default(candidate.name)
                    await self._publish()

    async def load(self, name: str) -> None:
        """Serve the versions of a model that are wanted; see `control.ModelControl`. Goes on if whoever asked goes."""
        await self._change(self._load(name))

    async def unload(self, name: str) -> None:
        """Serve a model no more; see `control.ModelControl`. Goes on if whoever asked goes."""
        await self._change(self._unload(name))

    async def stop(self) -> None:
        """Give up the changes that are under way."""
        for change in self._changes:
            change.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def _change(self, change: Coroutine[object, object, None]) -> None:
        await asyncio.shield(self._begin(change))

    def _begin(self, change: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task

    def _lock(self, name: str) -> asyncio.Lock:
        return self._changing.setdefault(name, asyncio.Lock())

    async def _load(self, name: str) -> None:
        async with self._lock(name):
            wanted = await self._wanted(name)
            tried = [await self._try_to_load(name, version) for version in wanted]
            fresh = [each for each in tried if isinstance(each, _Version)]
            failures = [each for each in tried if isinstance(each, str)]
            if failures:
                await self._give_up(fresh)
                raise LoadFailed(" ".join(failures))
            replaced = [self._put(each) for each in fresh]
            leaving = [each for each in self._served(name) if each.status.version not in wanted]
            await self._leave(name, leaving, [serial for serial in replaced if serial is not None])

    async def _unload(self, name: str) -> None:
        async with self._lock(name):
            if not any(key[0] == name for key in self._versions):
                raise UnknownModel(f"There is no model {name!r} here.")
            for key, each in list(self._versions.items()):
                if key[0] == name and each.serial is None:
                    each.status = replace(each.status, state=ModelState.UNLOADED, reason="")
            await self._leave(name, self._served(name))

    async def _wanted(self, name: str) -> Sequence[int]:
        """Return the versions that are to be served; raises UnknownModel, or LoadFailed where that cannot be said."""
        try:
            return await in_daemon_thread(self._repository.wanted, name)
        except StartupError as error:
            reason = _sentence(str(error))
            for each in self._served(name):
                self._note_failure(name, each.status.version, reason)
            await self._publish()
            raise LoadFailed(reason) from error

    async def _try_to_load(self, name: str, version: int) -> _Version | str | None:
        """Load a version beside what is served, or return why it cannot be; None where it is served as it is."""
        began_s = time.monotonic()
        before = self._versions.get((name, version))
        try:
            candidate = await in_daemon_thread(self._repository.open, name, version)
            if before is not None and before.serial is not None and before.content == _content(candidate):
                if self._host.is_well(before.serial):
                    self._note(name, version, ModelState.READY)
                    return None
            elif before is None or before.serial is None:
                self._note(name, version, ModelState.LOADING)
                await self._publish()
            await self._prove(candidate)
            return await self._loaded(candidate)
        except Exception as error:  # whatever it is, it must not keep others from being served, or from knowing
            if not isinstance(error, ServiceError):
                _log.exception("a load failed as nobody expected")
            reason = _sentence(str(error))
            self._note_failure(name, version, reason)
            self._observer.load_ended(model=name, outcome="failed", duration_s=time.monotonic() - began_s)
            return f"Version {version} of {name!r} cannot be served: {reason}"

    async def _loaded(self, candidate: Candidate) -> _Version:
        """Load a candidate, which is not served yet; raises StartupError."""
        began_s = time.monotonic()
        self._serials += 1
        serial = self._serials
        name, version = candidate.name, candidate.version
        fresh = _Version(VersionStatus(name, version, ModelState.READY), serial, _content(candidate))
        loaded = await self._host.load(serial, candidate, on_reloaded=partial(self._reloaded, fresh))
        _show(fresh, loaded)
        self._observer.load_ended(model=name, outcome="loaded", duration_s=time.monotonic() - began_s)
        fields = {"model": name, "version": version, "devices": ",".join(loaded.devices)}
        fields["graphs"] = ",".join(loaded.graphs)
        if loaded.parity is not None:
            fields["parity_error"] = f"{loaded.parity.error:.2g}"
        _log.info("model loaded", extra={"fields": fields})
        return fresh

    def _reloaded(self, version: _Version, loaded: Loaded) -> None:
        """Show what a load in the place of an engine that had died has come to, which may be another form of graph."""
        before = version.status
        _show(version, loaded)
        if version.status != before and version in self._versions.values():
            self._begin(self._publish())

    def _put(self, fresh: _Version) -> int | None:
        """Have a loaded version be served from the next publishing on; return the serial of the load it replaces."""
        key = (fresh.status.name, fresh.status.version)
        replaced = self._versions[key].serial if key in self._versions else None
        self._versions[key] = fresh
        return replaced

    async def _give_up(self, fresh: Sequence[_Version]) -> None:
        """Let go of versions that were loaded for nothing, since others that should come with them cannot be served."""
        for each in fresh:
            known = self._versions[each.status.name, each.status.version]
            if known.serial is None:
                known.status = replace(known.status, state=ModelState.UNLOADED)
            assert each.serial is not None
            await self._host.unload(each.serial)
        await self._publish()

    async def _leave(self, name: str, leaving: Sequence[_Version], replaced: Sequence[int] = ()) -> None:
        """Give no more requests to versions, and to loads that others have replaced, and let go of them when idle."""
        for each in leaving:
            each.status = replace(each.status, state=ModelState.DRAINING, is_default=False)
        self._choose_default(name)
        await self._publish()
        for serial in replaced:
            await self._host.unload(serial)
        for each in leaving:
            assert each.serial is not None
            await self._host.unload(each.serial)
            each.serial, each.content = None, ""
            each.status = VersionStatus(name, each.status.version, ModelState.UNLOADED)
            self._observer.load_ended(model=name, outcome="unloaded")
            _log.info("model unloaded", extra={"fields": {"model": name, "version": each.status.version}})
        await self._list()
        await self._publish()

    def _served(self, name: str) -> list[_Version]:
        return [each for key, each in self._versions.items() if key[0] == name and each.serial is not None]

    def _choose_default(self, name: str) -> None:
        """Have the highest version that takes work answer where none is named."""
        ready = [each.status.version for each in self._served(name) if each.status.state is ModelState.READY]
        for each in self._served(name):
            each.status = replace(each.status, is_default=bool(ready) and each.status.version == max(ready))

    def _note(self, name: str, version: int, state: ModelState) -> None:
        """Note the state of a version, and that nothing is wrong with it any more."""
        known = self._versions.setdefault((name, version), _Version(VersionStatus(name, version, state)))
        known.status = replace(known.status, state=state, reason="")

    def _note_failure(self, name: str, version: int, reason: str) -> None:
        """Note why a version cannot be served; one of the same number that is served goes on, with the reason shown."""
        _log.error("model not loaded", extra={"fields": {"model": name, "version": version, "reason": reason}})
        known = self._versions.setdefault((name, version), _Version(VersionStatus(name, version, ModelState.FAILED)))
        state = ModelState.FAILED if known.serial is None else known.status.state
        known.status = replace(known.status, state=state, reason=reason)

    async def _list(self) -> None:
        """Have what is in the repository and not served among the versions, and what is neither not."""
        listed: dict[str, tuple[int, ...]] = {}
        if self._lists_repository:
            try:
                listed = await in_daemon_thread(self._repository.listed)
            except RepositoryError as error:
                _log.warning("the repository cannot be listed: %s", error)
                return
        for key, each in list(self._versions.items()):
            is_idle = each.status.state in (ModelState.UNLOADED, ModelState.FAILED) and each.serial is None
            if is_idle and key[1] not in listed.get(key[0], ()):
                del self._versions[key]
        for name, versions in listed.items():
            for version in versions:
                status = VersionStatus(name, version, ModelState.UNLOADED)
                self._versions.setdefault((name, version), _Version(status))

    async def _publish(self) -> None:
        async with self._publishing:  # what comes last is what holds
            taking = [each for each in self._versions.values() if each.status.state is ModelState.READY]
            statuses = [each.status for each in self._versions.values()]
            await self._host.publish(statuses, [each.serial for each in taking if each.serial is not None])


def _show(version: _Version, loaded: Loaded) -> None:
    """Have a version's status say what its load has shown."""
    version.status = replace(version.status, devices=loaded.devices, graphs=loaded.graphs, parity=loaded.parity)


def _sentence(reason: str) -> str:
    """Return a reason with the full stop that others may follow upon."""
    return reason if reason.endswith((".", "!", "?")) else f"{reason}."


def _content(candidate: Candidate) -> str:
    return candidate.model.manifest.model_dump_json()
