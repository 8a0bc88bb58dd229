"""The supervisor: starts engine processes and the HTTP workers, has them serve the models, and keeps them there.

It serves no request itself. It binds the listening socket once, and every worker accepts on it. What the processes
serve `fleet` brings them; when one is started anew, it is brought that again, and nobody else notices.

    dead    the process has ended                                                   started again, after a delay
    hung    a ping was not answered for `heartbeat_timeout_ms`, or, by engines      killed, and then as above
            that run or load a model, for `hang_timeout_ms` in which they computed
            nothing; or one run has lasted for `hang_timeout_ms`

The delay doubles with each end, from 0.1 s up to `max_restart_delay_ms`, and begins anew after a healthy minute. A
process that ends before it was ever ready ends the service: it would not come up the next time either. So does a model
that was to be served from the start and cannot be.

On SIGTERM or SIGINT the workers stop accepting and finish what is in flight, within the drain time; then the engines
end, and the exit status is 0. Whatever has not ended by itself is killed, so that all are gone `_DRAINED_S` after the
drain time. A second signal kills all. When the supervisor itself is killed, the kernel kills them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from service.access.key_limits import KeyLimits
from service.engine.control import End, Ping, Pong, Ready
from service.errors import NotReady, ServiceError, StartupError
from service.processes.fleet import Fleet
from service.processes.plan import Change, Changed, LoadEnded, Plan, Processes, Restarted
from service.processes.roles import Child, EngineRole, Role, WorkerRole, living
from service.processes.spawning import how_it_ended, spawn
from service.serving.registry import Candidate, Registry, Repository
from service.serving.restart_delay import RestartDelay
from service.serving.states import ModelState, VersionStatus
from service.serving.watch import RepositoryWatch
from service.telemetry.metrics import LoadOutcome
from service.telemetry.metrics_directory import VARIABLE

_log = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0
_DRAINED_S = 4.25
"""After the drain time, for workers and engines together."""
_LEAVING_S = 0.5
"""The part of it that is kept for the engines, when nobody is left who waits for them."""
_MOST_LEAVING_S = 3.0
"""What the engines have where the workers took less."""


class Supervisor:
    """Runs a service of several processes on a socket that listens; `plan` says what they are.

    `candidates` are served from the start, and what the settings let change is of `repository`. `resolve` says what a
    device stands for, `prove` tries a candidate.
    """

    def __init__(
        self,
        plan: Plan,
        listener: socket.socket,
        candidates: Sequence[Candidate],
        repository: Repository,
        *,
        resolve: Callable[[str], str],
        prove: Callable[[Candidate], Awaitable[None]],
    ) -> None:
        self._plan = plan
        self._listener = listener
        self._settings = plan.settings
        self._candidates = candidates
        key_limits = KeyLimits.create_shared(self._settings.api_keys, workers=self._settings.workers)
        self._engines: list[EngineRole] = []
        self._numbers = itertools.count()
        self._workers = [
            WorkerRole(plan, number, listener=listener, key_limits=key_limits)
            for number in range(self._settings.workers)
        ]
        loading = [VersionStatus(each.name, each.version, ModelState.LOADING) for each in candidates]
        self._fleet = Fleet(self._workers, self._engines_on, resolve=resolve, statuses=loading)
        self._registry = Registry(
            repository,
            self._fleet,
            prove=prove,
            observer=_ByWorkers(self._workers),
            lists_repository=self._settings.model_control,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None]
        self._ending: asyncio.Event
        self._is_started = self._is_up = False
        self._cut_short_by: int | None = None

    def run(self) -> int:
        """Serve until a signal, and return the exit status; raises StartupError where the service cannot start."""
        asyncio.run(self._run())
        return 0 if self._cut_short_by is None else 128 + self._cut_short_by

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._ending, self._failed = asyncio.Event(), loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        for worker in self._workers:
            self._begin(self._keep(worker))
        self._begin(self._start_serving())
        ending = asyncio.create_task(self._ending.wait())
        first: set[asyncio.Future[Any]] = {ending, self._failed}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            await self._registry.stop()
            for task in (ending, *self._tasks):
                task.cancel()
            await asyncio.gather(ending, *self._tasks, return_exceptions=True)
            if self._failed.done():
                self._failed.result()
            await self._drain()
        finally:
            for child in living(self._roles):
                child.kill()
                await child.process.wait()

    def _begin(self, work: Awaitable[None]) -> None:
        """Do something beside the rest; the service ends where it fails."""

        async def until_it_fails() -> None:
            try:
                await work
            except Exception as error:
                if not self._failed.done():
                    self._failed.set_exception(error)

        task = asyncio.create_task(until_it_fails())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_serving(self) -> None:
        await self._registry.start(self._candidates)
        self._is_started = True
        self._tell_if_up()
        if self._settings.watch_repository:
            await RepositoryWatch(self._settings, self._registry, self._registry.load).run()

    def _engines_on(self, devices: Sequence[str]) -> list[EngineRole]:
        """Return the roles for devices, one for each time that a device is named, and fill those that are new."""
        roles, taken = [], Counter[str]()
        for device in devices:
            present = [role for role in self._engines if role.device == device]
            if taken[device] == len(present):
                present.append(EngineRole(self._plan, next(self._numbers), device))
                self._engines.append(present[-1])
                self._begin(self._keep(present[-1]))
            roles.append(present[taken[device]])
            taken[device] += 1
        return roles

    @property
    def _roles(self) -> Sequence[Role]:
        return [*self._engines, *self._workers]

    def _on_signal(self, number: int) -> None:
        if not self._ending.is_set():
            self._ending.set()
            return
        _log.warning("a second signal: the service ends at once")
        self._cut_short_by = number
        for role in self._roles:
            if role.child is not None:
                role.child.kill()

    async def _keep(self, role: Role) -> None:
        """Have a process in its role for ever; raises StartupError where, at the start, none was ever ready there."""
        loop = asyncio.get_running_loop()
        delay = RestartDelay(self._settings.max_restart_delay_ms / 1000)
        for start in itertools.count():
            child = await self._start(role)
            if start > 0:
                _have_counted(self._workers, Restarted(role.name))
            started_s = loop.time()
            status = await self._watch(role, child)
            self._forget(role, child)
            how = child.failure or how_it_ended(status)
            if not role.was_ready and not self._is_started:
                raise StartupError(f"{role.name} {how} before it was ready")
            if isinstance(role, EngineRole) and not role.was_ready and not self._fleet.uses(role):
                self._engines.remove(role)  # it was for a version that could not be loaded
                return
            delay_s = delay.after(loop.time() - started_s)
            _log.error(
                "a process has ended, and is started again",
                extra={"fields": {"name": role.name, "how": how, "delay_s": delay_s}},
            )
            await asyncio.sleep(delay_s)

    async def _start(self, role: Role) -> Child:
        process, ours = await spawn({VARIABLE: str(self._plan.metrics_directory)})
        child = role.child = Child(process, ours)
        start, descriptors = role.begin()
        ours.send(start, descriptors)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear, role, child)
        self._fleet.introduce(role)
        _log.info("started", extra={"fields": {"name": role.name, "pid": process.pid}})
        self._tell_processes()
        return child

    def _tell_processes(self) -> None:
        """Have the workers know which processes there are, for their metrics."""
        pids = {role.name: role.child.process.pid for role in self._roles if role.child is not None}
        for child in living(self._workers):
            child.control.send(Processes(pids))

    def _hear(self, role: Role, child: Child) -> bool:
        """Take in one message; false where there will be no more."""
        received = child.control.receive()
        if received is None:  # it has ended, or is about to
            asyncio.get_running_loop().remove_reader(child.control.fileno())
            return False
        child.was_heard, child.missed = True, 0
        match received[0]:
            case Pong():
                pass
            case Ready():
                role.was_ready = True
                _log.info("process ready", extra={"fields": {"name": role.name}})
                self._tell_if_up()
            case Change() as change:
                self._begin(self._change(child, change))
            case message:
                self._fleet.hear(role, message)
        return True

    def _tell_if_up(self) -> None:
        if not self._is_up and self._is_started and all(each.was_ready for each in self._roles):
            self._is_up = True
            _log.info("ready")

    async def _change(self, child: Child, change: Change) -> None:
        """Load or unload a model, as a worker was asked, and tell it what became of that."""
        error: Exception | None = None
        try:
            await (self._registry.load if change.action == "load" else self._registry.unload)(change.name)
        except ServiceError as reason:
            error = reason
        except asyncio.CancelledError:
            child.control.send(Changed(change.number, NotReady("The service ends.")))
            raise
        except Exception:
            _log.exception("a change of what is served has failed as nobody expected")
            error = ServiceError("The service failed.")
        child.control.send(Changed(change.number, error))

    async def _watch(self, role: Role, child: Child) -> int:
        """Return the status of a process when it has ended; kills one that hangs."""
        ended = asyncio.create_task(child.process.wait())
        heartbeat_s = min(
            _HEARTBEAT_S, self._settings.heartbeat_timeout_ms / 4000, self._settings.hang_timeout_ms / 4000
        )
        try:
            while not (await asyncio.wait({ended}, timeout=heartbeat_s))[0]:
                if child.missed == 0:
                    child.control.send(Ping())
                child.missed = 1 if role.shows_life() else child.missed + 1
                # Heartbeats are counted, not timed: had the whole machine stood still, nobody would be to blame.
                patience_s = role.patience_s()
                if (child.missed - 1) * heartbeat_s >= patience_s:
                    child.failure = f"did not answer for {patience_s:g} s"
                else:
                    child.failure = role.hangs()
                if child.failure is not None:
                    child.kill()
            return await ended
        finally:
            ended.cancel()

    def _forget(self, role: Role, child: Child) -> None:
        while self._hear(role, child):  # its last words
            pass
        asyncio.get_running_loop().remove_reader(child.control.fileno())
        child.control.close()
        role.child = None
        role.end()
        self._fleet.lost(role, child.failure or how_it_ended(child.process.returncode or 0))
        mark_process_dead(child.process.pid, str(self._plan.metrics_directory))  # type: ignore[no-untyped-call]

    async def _drain(self) -> None:
        """End the workers, when they have nothing left to do or their time is over, and then the engines."""
        _log.info("shutting down")
        self._listener.close()
        loop = asyncio.get_running_loop()
        drained_s = loop.time() + self._settings.drain_timeout_ms / 1000 + _DRAINED_S
        await self._end(self._workers, until_s=drained_s - _LEAVING_S)
        await self._end(self._engines, until_s=min(drained_s, loop.time() + _MOST_LEAVING_S))

    async def _end(self, roles: Sequence[Role], *, until_s: float) -> None:
        children = living(roles)
        for child in children:
            child.control.send(End())
        endings = {asyncio.create_task(child.process.wait()) for child in children}
        if endings:
            await asyncio.wait(endings, timeout=until_s - asyncio.get_running_loop().time())
        for child in children:
            if child.process.returncode is None:
                _log.warning("process %d did not end in time and is killed", child.process.pid)
                child.kill()
        await asyncio.gather(*endings)


class _ByWorkers:
    """Has a worker count: the supervisor's own metrics would be shown by nobody."""

    def __init__(self, workers: Sequence[WorkerRole]) -> None:
        self._workers = workers

    def load_ended(self, *, model: str, outcome: LoadOutcome, duration_s: float = 0.0) -> None:
        _have_counted(self._workers, LoadEnded(model, outcome, duration_s))


def _have_counted(workers: Sequence[WorkerRole], message: object) -> None:
    for child in living(workers)[:1]:
        child.control.send(message)
