"""Engines in other processes: a worker's side of its links to them.

The slots lie in memory that the worker shares with the engines, and records pass over one socket for each engine.
Engines come and go: `attach` brings a link to one, and the end of a link's socket says that its process is no more.
Its images fail at once, and their slots are taken back. That is safe: Linux lets go of a dying process's memory
before its descriptors, so that when the socket ends nobody is left who could write into a slot.

Invariants: those of `client`; the images of one call go to one engine; a slot in an engine's hands is in the
`outstanding` of that engine's link, until its reply comes or the link ends.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence

from service.engine.board import Board
from service.engine.client import EngineClient
from service.engine.records import (
    RecordSocket,
    Reply,
    ReplyKind,
    Request,
    RequestKind,
    completion_of,
    request_for,
)
from service.engine.room import Room
from service.engine.shared import SharedSlots
from service.engine.types import Completion, EngineState, Failure, WorkItem


class _Link:
    """The way to one engine process."""

    def __init__(self, engine: int, end: socket.socket) -> None:
        self.engine = engine
        self.socket = RecordSocket(end, Reply)
        self.is_ready = False
        self.outstanding: dict[int, WorkItem] = {}
        """By ticket: what the engine has, or is being sent."""


class RemoteEngine(EngineClient):
    """The engines of a version that this worker has links to; made on the event loop that every method belongs to.

    `slots` are this worker's alone. `worker` is the worker's number on the board. An engine whose step lasts longer
    than `hang_after_s` gets no new images while there is another; to end it is the supervisor's business.
    """

    def __init__(
        self,
        slots: SharedSlots,
        board: Board,
        *,
        worker: int,
        room: Room,
        max_wait_s: float = 0.0,
        hang_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            slots.geometry.graphs,
            slots,
            board,
            worker=worker,
            room=room,
            max_wait_s=max_wait_s,
            hang_after_s=hang_after_s,
            clock=clock,
        )
        self._slots = slots
        self._links: dict[int, _Link] = {}
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._room_changed()

    @property
    def states(self) -> Sequence[EngineState]:
        """The state of each engine."""
        return [row.state for row in self._board.engines]

    @property
    def queue_depth(self) -> int:
        """Images that wait for their batch or run in it, of all workers and engines."""
        return sum(self._board.waiting(engine) for engine in range(len(self._board.engines)))

    async def start(self) -> None:
        """Return: engines are waited for from the beginning."""

    async def wait_loaded(self) -> None:
        """Return when an engine has taken work, even if it has been lost since, or when this was stopped."""
        await self._loaded.wait()

    async def stop(self, timeout_s: float = 5.0) -> None:  # noqa: ARG002
        """Fail whatever still waits, and leave the engines, who drop what they have of it."""
        self._stopped = True
        for link in list(self._links.values()):
            self._lose(link)
        self._state, self._failure = EngineState.DEAD, "The engine was stopped."
        self._fail_calls(list(self._calls))
        self._loaded.set()

    def attach(self, engine: int, end: socket.socket) -> None:
        """Take a link to an engine, in place of one to its predecessor, whose process has ended."""
        if self._stopped:
            end.close()
            return
        if engine in self._links:
            self._lose(self._links[engine])
        link = self._links[engine] = _Link(engine, end)
        asyncio.get_running_loop().add_reader(link.socket.fileno(), self._read, link)

    def _ready_engines(self) -> Sequence[int]:
        return [link.engine for link in self._links.values() if link.is_ready]

    def _submit(self, items: Sequence[WorkItem]) -> None:
        ready = self._ready_engines()  # there is one, or the state would not be READY
        well = [engine for engine in ready if self._is_well(engine)]
        engine = min(well or ready, key=lambda engine: (self._board.waiting(engine), engine))
        link = self._links[engine]
        link.outstanding.update((item.ticket, item) for item in items)
        self._send(link, [request_for(item, self._graphs) for item in items])
        self._row.waiting[engine] = len(link.outstanding)

    def _cancel(self, tickets: Sequence[int]) -> None:
        for link in self._links.values():
            held = [ticket for ticket in tickets if ticket in link.outstanding]
            if held:
                self._send(link, [Request(RequestKind.CANCEL, ticket) for ticket in held])

    def _send(self, link: _Link, requests: Sequence[Request]) -> None:
        link.socket.send(requests)
        if link.socket.has_unsent:
            asyncio.get_running_loop().add_writer(link.socket.fileno(), self._flush, link)

    def _flush(self, link: _Link) -> None:
        link.socket.flush()
        if not link.socket.has_unsent:
            asyncio.get_running_loop().remove_writer(link.socket.fileno())

    # What the engines report; all called on the loop.

    def _read(self, link: _Link) -> None:
        replies, is_open = link.socket.receive()
        ended: list[Completion] = []
        slow: list[tuple[WorkItem, Completion]] = []
        for reply in replies:
            if reply.kind == ReplyKind.READY:
                self._become_ready(link)
                continue
            item = link.outstanding.pop(reply.ticket)
            completion = completion_of(reply, slot=item.slot)
            if isinstance(completion.end, Failure):
                ended.append(completion)
            elif item.ticket not in self._calls:
                self._slots.discard(item.slot, item.shape, item.outputs)
                ended.append(completion)
            elif self._slots.is_slow_to_fetch(item.shape, item.outputs):
                slow.append((item, completion))
            else:
                self._slots.fetch(item.slot, item.shape, item.outputs)
                ended.append(completion)
        self._row.waiting[link.engine] = len(link.outstanding)
        if ended:
            self._deliver(ended)
        if slow:
            self._fetch_in_thread(slow)
        if not is_open:
            self._lose(link)

    def _fetch_in_thread(self, slow: Sequence[tuple[WorkItem, Completion]]) -> None:
        """Copy large outputs without holding up the loop; their slots are nobody else's until that is done."""

        def fetch() -> list[Completion]:
            for item, _ in slow:
                self._slots.fetch(item.slot, item.shape, item.outputs)
            return [completion for _, completion in slow]

        fetching = asyncio.get_running_loop().run_in_executor(None, fetch)
        fetching.add_done_callback(lambda done: self._deliver(done.result()))

    def _become_ready(self, link: _Link) -> None:
        link.is_ready = True
        if self._state in (EngineState.LOADING, EngineState.DEAD):
            self._state, self._failure = EngineState.READY, None
        self._loaded.set()

    def _lose(self, link: _Link) -> None:
        """The engine's process is gone, or this worker leaves: nobody answers what is outstanding."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(link.socket.fileno())
        loop.remove_writer(link.socket.fileno())
        link.socket.close()
        if self._links.get(link.engine) is link:
            del self._links[link.engine]
        if self._state is EngineState.READY and not any(other.is_ready for other in self._links.values()):
            self._state, self._failure = EngineState.DEAD, f"The process of engine {link.engine} has ended."
        items, link.outstanding = list(link.outstanding.values()), {}
        self._row.waiting[link.engine] = 0
        if not self._stopped:  # one that leaves a living engine must not use these slots again, and never does
            for item in items:
                self._slots.discard(item.slot, item.shape, item.outputs)
            self._reclaim(item.slot for item in items)
        self._fail_calls(item.ticket for item in items)
