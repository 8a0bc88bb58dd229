"""The roles that the supervisor keeps filled: what a process in each is started with, and how long it may show no life.

An engine that loads is inside the runtime for minutes and can answer nobody, not even from a thread of its own where
the runtime keeps the interpreter's lock. What shows from outside is that its processor time grows. A load that goes
round in circles is therefore not noticed; one that is stopped, or waits for what never comes, is.
"""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from pathlib import Path

from service.access.key_limits import KeyLimits
from service.engine.board import Board, EngineRow, WorkerRow, engine_name, worker_name
from service.engine.control import ControlSocket, Start
from service.engine.shared import SharedSlots
from service.engine.types import EngineState
from service.processes.engine import run_engine
from service.processes.plan import Plan
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
        self.sentence: str | None = None
        """Why it cannot start, in its own words."""
        self.failure: str | None = None
        """Why it was killed."""
        self.processor_ticks = 0

    def kill(self) -> None:
        """End the process at once, unless it has ended."""
        if self.process.returncode is None:
            self.process.kill()

    def has_computed(self) -> bool:
        """Return whether any thread of the process was on a processor since this was last asked."""
        before, self.processor_ticks = self.processor_ticks, _processor_ticks(self.process.pid)
        return self.processor_ticks > before


class Role(ABC):
    """What a process of the service is for; whichever fills it now is `child`."""

    name: str
    row: EngineRow | WorkerRow

    def __init__(self) -> None:
        self.child: Child | None = None
        self.was_ready = False

    @abstractmethod
    def begin(self) -> tuple[Start, list[int]]:
        """Return the first message to a new process, and the descriptors that go with it."""

    def end(self) -> None:
        """Forget the process that has ended."""
        self.row.clear()

    @abstractmethod
    def patience_s(self) -> float:
        """Return how long the process may show no life at present."""

    def shows_life(self) -> bool:
        """Return whether the process, though it may not answer a ping yet, has done something since last asked."""
        return False


class EngineRole(Role):
    """The role of one engine."""

    row: EngineRow

    def __init__(self, plan: Plan, number: int, board: Board, board_descriptor: int) -> None:
        super().__init__()
        self.name, self.number, self.row = engine_name(number), number, board.engines[number]
        self._plan, self._board = plan, board_descriptor

    def begin(self) -> tuple[Start, list[int]]:
        """Return an engine's start, with the board."""
        return Start(run_engine, (self._plan, self.number)), [self._board]

    def patience_s(self) -> float:
        """Return the time of a hung run while it loads or runs the model, and of a missing heartbeat otherwise."""
        settings = self._plan.settings
        is_busy = self._is_loading or self.row.busy_since_s > 0
        return (settings.hang_timeout_ms if is_busy else settings.heartbeat_timeout_ms) / 1000

    def shows_life(self) -> bool:
        """Return whether it loads, and has computed since last asked."""
        return self._is_loading and self.child is not None and self.child.has_computed()

    @property
    def _is_loading(self) -> bool:
        return self.row.state is not EngineState.READY


class WorkerRole(Role):
    """The role of one worker, and the memory of the process that fills it."""

    row: WorkerRow

    def __init__(
        self, plan: Plan, number: int, board: Board, board_descriptor: int, *, listener: socket.socket, key_limits: int
    ) -> None:
        super().__init__()
        self.name, self.number, self.row = worker_name(number), number, board.workers[number]
        self._key_limits = key_limits
        self._plan, self._board, self._listener = plan, board_descriptor, listener
        self.memory: int | None = None

    def begin(self) -> tuple[Start, list[int]]:
        """Return a worker's start, with the board, new memory of its own, the keys' account, and the socket."""
        self.memory = SharedSlots.create(self._plan.geometry)
        descriptors = [self._board, self.memory, self._key_limits, self._listener.fileno()]
        return Start(run_worker, (self._plan, self.number)), descriptors

    def end(self) -> None:
        """Forget the process that has ended, its memory, and what it had in flight."""
        super().end()
        settings = self._plan.settings
        KeyLimits(settings.api_keys, workers=settings.workers, descriptor=self._key_limits).clear_worker(self.number)
        if self.memory is not None:
            os.close(self.memory)
            self.memory = None

    def patience_s(self) -> float:
        """Return the time of a missing heartbeat, but longer before the first."""
        heartbeat_timeout_s = self._plan.settings.heartbeat_timeout_ms / 1000
        is_starting = self.child is not None and not self.child.was_heard
        return max(heartbeat_timeout_s, _STARTING_S) if is_starting else heartbeat_timeout_s


def _processor_ticks(pid: int) -> int:
    """Return the processor time that a process has used, in clock ticks; 0 where it has just ended."""
    try:
        # After the command's name, which may hold anything, comes the third field of proc(5); 14 and 15 are wanted.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])
