"""The supervisor: starts an engine process a device and the HTTP workers, links them, and keeps them there.

It serves no request itself. It binds the listening socket once, and every worker accepts on it. Each pair of a worker
and an engine gets a socket of its own; when one of the two is started anew, so are its links, and nobody else notices.

    dead    the process has ended                                                   started again, after a delay
    hung    a ping was not answered for `heartbeat_timeout_ms`, or, by an engine    killed, and then as above
            that runs the model, for `hang_timeout_ms`; one that loads may take its time,
            but not compute nothing at all for `hang_timeout_ms`

The delay doubles with each end, from 0.1 s up to `max_restart_delay_ms`, and begins anew after a healthy minute. A
process that ends before it was ever ready ends the service: it would not come up the next time either.

On SIGTERM or SIGINT the workers stop accepting and finish what is in flight, within the drain time; then the engines
end, and the exit status is 0. Whatever has not ended by itself is killed, so that all are gone `_DRAINED_S` after the
drain time. A second signal kills all. When the supervisor itself is killed, the kernel kills them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from prometheus_client.multiprocess import mark_process_dead

from service.access.key_limits import KeyLimits
from service.engine.board import Board
from service.engine.control import Attach, ControlSocket, End, Failed, Ping, Pong, Ready
from service.errors import StartupError
from service.processes.plan import Plan
from service.processes.roles import Child, EngineRole, Role, WorkerRole
from service.telemetry.metrics_directory import VARIABLE

_log = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0
_FIRST_DELAY_S = 0.1
_HEALTHY_S = 60.0
_DRAINED_S = 4.25
"""After the drain time, for workers and engines together."""
_LEAVING_S = 0.5
"""The part of it that is kept for the engines, when nobody is left who waits for them."""
_MOST_LEAVING_S = 3.0
"""What the engines have where the workers took less."""


class Supervisor:
    """Runs a service of several processes on a socket that listens; `plan` says what they are."""

    def __init__(self, plan: Plan, listener: socket.socket) -> None:
        self._plan = plan
        self._listener = listener
        self._settings = plan.settings
        board, descriptor = Board.create(workers=self._settings.workers, engines=len(plan.devices))
        key_limits = KeyLimits.create_shared(self._settings.api_keys, workers=self._settings.workers)
        self._engines = [EngineRole(plan, number, board, descriptor) for number in range(len(plan.devices))]
        self._workers = [
            WorkerRole(plan, number, board, descriptor, listener=listener, key_limits=key_limits)
            for number in range(self._settings.workers)
        ]
        self._ending: asyncio.Event
        self._is_up = False
        self._cut_short_by: int | None = None

    def run(self) -> int:
        """Serve until a signal, and return the exit status; raises StartupError where the service cannot start."""
        asyncio.run(self._run())
        return 0 if self._cut_short_by is None else 128 + self._cut_short_by

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        keeping = [asyncio.create_task(self._keep(role)) for role in self._roles]
        ending = asyncio.create_task(self._ending.wait())
        try:
            done, _ = await asyncio.wait([*keeping, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in (*keeping, ending):
                task.cancel()
            await asyncio.gather(*keeping, ending, return_exceptions=True)
            for task in done - {ending}:
                task.result()  # a keeper ends by its failure only
            await self._drain()
        finally:
            for role in self._roles:
                if role.child is not None:
                    role.child.kill()
                    await role.child.process.wait()

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
        """Have a process in its role for ever; raises StartupError where none was ever ready there."""
        loop = asyncio.get_running_loop()
        delay_s = _FIRST_DELAY_S
        while True:
            child = await self._start(role)
            started_s = loop.time()
            status = await self._watch(role, child)
            self._forget(role, child)
            how = child.failure or _how_it_ended(status)
            if not role.was_ready:
                raise StartupError(child.sentence or f"{role.name} {how} before it was ready")
            if loop.time() - started_s >= _HEALTHY_S:
                delay_s = _FIRST_DELAY_S
            _log.error(
                "a process has ended, and is started again",
                extra={"fields": {"name": role.name, "how": child.sentence or how, "delay_s": delay_s}},
            )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, max(self._settings.max_restart_delay_ms / 1000, _FIRST_DELAY_S))

    async def _start(self, role: Role) -> Child:
        ours, theirs = ControlSocket.pair()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service.processes.child", str(theirs.fileno()), str(os.getpid()),
            stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            env=os.environ | {VARIABLE: str(self._plan.metrics_directory)},
        )  # fmt: skip
        theirs.close()
        child = role.child = Child(process, ours)
        start, descriptors = role.begin()
        ours.send(start, descriptors)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear, role, child)
        self._link(role)
        _log.info("started", extra={"fields": {"name": role.name, "pid": process.pid}})
        return child

    def _link(self, role: Role) -> None:
        """Give a new process its links to all of the other kind that are there."""
        for engine in self._engines:
            for worker in self._workers:
                if role in (engine, worker) and engine.child and worker.child and worker.memory is not None:
                    for_engine, for_worker = socket.socketpair()
                    with for_engine, for_worker:  # only the two must hold them, so that each sees the other end
                        engine.child.control.send(Attach(worker.number), [for_engine.fileno(), worker.memory])
                        worker.child.control.send(Attach(engine.number), [for_worker.fileno()])

    def _hear(self, role: Role, child: Child) -> bool:
        """Take in one message; false where there will be no more."""
        received = child.control.receive()
        if received is None:  # it has ended, or is about to
            asyncio.get_running_loop().remove_reader(child.control.fileno())
            return False
        child.was_heard = True
        match received[0]:
            case Pong():
                child.missed = 0
            case Failed(sentence):
                child.sentence = sentence
            case Ready():
                role.was_ready = True
                _log.info("process ready", extra={"fields": {"name": role.name}})
                if not self._is_up and all(each.was_ready for each in self._roles):
                    self._is_up = True
                    _log.info("ready")
        return True

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
        children = [role.child for role in roles if role.child is not None]
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


def _how_it_ended(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
