"""The roles that the supervisor keeps filled: what a process in each is started with, and how long it may show no life.

An engine process answers pings from a thread that does nothing else. While it loads, or runs a model, the runtime may
keep the interpreter's lock from that thread for minutes; what shows from outside then is that its processor time grows.
A load that goes round in circles is therefore not noticed; one that is stopped, or waits for what never comes, is.
"""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from service.access.key_limits import KeyLimits
from service.engine.board import EngineRow, engine_name, worker_name
from service.engine.control import ControlSocket, Start
from service.engine.types import EngineState
from service.processes.engine import run_engine
from service.processes.plan import Plan, Publish
from service.processes.processor_time import processor_ticks
from service.processes.worker import run_worker

_STARTING_S = 60.0
"""For a worker to begin to answer pings."""


class Child:
    """A process and what it has reported. `missed` counts the heartbeats since it last showed life."""

    def __init__(self, process: asyncio.subprocess.Process, control: ControlSocket) -> None:
        self.process = process
        self.control = control
        self.missed = 0
        self.was_heard = False
        self.failure: str | None = None
        """Why it was killed."""
        self.processor_ticks = 0

    def kill(self) -> None:
        """End the process at once, unless it has ended."""
        if self.process.returncode is None:
            self.process.kill()

    def has_computed(self) -> bool:
        """Return whether any thread of the process was on a processor since this was last asked."""
        before, self.processor_ticks = self.processor_ticks, processor_ticks(self.process.pid)
        return self.processor_ticks > before


class Role(ABC):
    """What a process of the service is for; whichever fills it now is `child`."""

    name: str

    def __init__(self, plan: Plan, name: str, number: int) -> None:
        self.name, self.number = name, number
        self._settings = plan.settings
        self.child: Child | None = None
        self.was_ready = False

    @abstractmethod
    def begin(self) -> tuple[Start, list[int]]:
        """Return the first message to a new process, and the descriptors that go with it."""

    @abstractmethod
    def end(self) -> None:
        """Forget the process that has ended."""

    @abstractmethod
    def patience_s(self) -> float:
        """Return how long the process may show no life at present."""

    def shows_life(self) -> bool:
        """Return whether the process, though it may not answer a ping yet, has done something since last asked."""
        return False

    def hangs(self) -> str | None:
        """Return what of the process hangs, though it answers pings; None where nothing does."""
        return None


class EngineRole(Role):
    """The role of the engines of one device, or of one instance of them.

    `rows` are those of the engines that it has at present, one for each version.
    """

    def __init__(self, plan: Plan, number: int, device: str) -> None:
        super().__init__(plan, engine_name(number), number)
        self.device = device
        self.rows: dict[int, EngineRow] = {}
        """By the serials of the versions."""
        self._plan = plan

    def begin(self) -> tuple[Start, list[int]]:
        """Return an engine process's start."""
        return Start(run_engine, (self._plan, self.number)), []

    def end(self) -> None:
        """Forget the process that has ended, and how its engines were."""
        for row in self.rows.values():
            row.clear()

    def patience_s(self) -> float:
        """Return the time of a hung run while it starts, loads or runs, and of a missing heartbeat otherwise."""
        settings = self._settings
        is_busy = self._is_loading or any(row.busy_since_s > 0 for row in self.rows.values())
        return (settings.hang_timeout_ms if is_busy else settings.heartbeat_timeout_ms) / 1000

    def shows_life(self) -> bool:
        """Return whether it starts or loads, and has computed since last asked."""
        return self._is_loading and self.child is not None and self.child.has_computed()

    def hangs(self) -> str | None:
        """Return that a run has lasted too long, where one has."""
        hang_after_s = self._settings.hang_timeout_ms / 1000
        now_s = time.monotonic()
        since_s = [row.busy_since_s for row in self.rows.values()]
        if any(each and now_s - each >= hang_after_s for each in since_s):
            return f"has been in one run for more than {hang_after_s:g} s"
        return None

    @property
    def _is_loading(self) -> bool:
        is_starting = self.child is not None and not self.child.was_heard
        return is_starting or any(row.state is EngineState.LOADING for row in self.rows.values())


class WorkerRole(Role):
    """The role of one worker, which begins with what is `published`."""

    def __init__(self, plan: Plan, number: int, *, listener: socket.socket, key_limits: int) -> None:
        super().__init__(plan, worker_name(number), number)
        self._plan, self._listener, self._key_limits = plan, listener, key_limits
        self.published: Publish | None = None

    def begin(self) -> tuple[Start, list[int]]:
        """Return a worker's start, with the keys' account and the socket."""
        assert self.published is not None
        descriptors = [self._key_limits, self._listener.fileno()]
        return Start(run_worker, (self._plan, self.number, self.published)), descriptors

    def patience_s(self) -> float:
        """Return the time of a missing heartbeat, but longer before the first."""
        heartbeat_timeout_s = self._settings.heartbeat_timeout_ms / 1000
        is_starting = self.child is not None and not self.child.was_heard
        return max(heartbeat_timeout_s, _STARTING_S) if is_starting else heartbeat_timeout_s

    def end(self) -> None:
        """Forget the process that has ended, and what it had in flight of the keys'."""
        settings = self._settings
        KeyLimits(settings.api_keys, workers=settings.workers, descriptor=self._key_limits).clear_worker(self.number)


def living(roles: Sequence[Role]) -> list[Child]:
    """Return the processes that fill roles at present."""
    return [role.child for role in roles if role.child is not None]
