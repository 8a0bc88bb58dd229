"""The engine in a process of its own: one thread that reads records, drives the core, and replies.

It waits for its links, the supervisor and the next due step at once, and never for a single one of them: a worker
that does not read its replies costs the memory of so many records, and nobody else's time.

Invariants: between steps, when links come and go, no run touches any worker's memory; whatever a link that has ended
left in the queue is never run, and its worker's memory is let go of at once.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from service.engine.board import EngineRow
from service.engine.control import Attach, ControlSocket, End, Failed, Ping, Pong, Ready
from service.engine.core import EngineCore, EngineObserver
from service.engine.graphs import Graph
from service.engine.records import RecordSocket, Reply, ReplyKind, Request, RequestKind, reply_for, work_item
from service.engine.shared import Geometry, SharedSlots
from service.engine.types import Completion, EngineState, Outputs, Pixels, Session, Shape, WorkItem
from service.errors import StartupError

_log = logging.getLogger(__name__)

_LINK_SHIFT = 48
"""A ticket or slot in the core is a link's number and, in the lower bits, what the link's worker calls it."""
_OWN = (1 << _LINK_SHIFT) - 1


class _Link:
    """The way to one worker process, and its slots."""

    def __init__(self, number: int, worker: int, end: socket.socket, slots: SharedSlots) -> None:
        self.number = number
        self.worker = worker
        self.socket = RecordSocket(end, Request)
        self.slots = slots
        self.waiting: set[int] = set()
        """Tickets, as the core has them, that wait for their end."""

    def name(self, own: int) -> int:
        """Return what the core calls a ticket or slot of this link."""
        return self.number << _LINK_SHIFT | own


class _LinkedSlots:
    """The slots of all workers, as the core sees them."""

    def __init__(self, links: dict[int, _Link]) -> None:
        self._links = links

    def pixels(self, slot: int, shape: Shape) -> Pixels:
        return self._links[slot >> _LINK_SHIFT].slots.pixels(slot & _OWN, shape)

    def start(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._links[slot >> _LINK_SHIFT].slots.start((slot & _OWN,))

    def deliver(self, slot: int, shape: Shape, outputs: Outputs) -> None:
        self._links[slot >> _LINK_SHIFT].slots.deliver(slot & _OWN, shape, outputs)

    def finish(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._links[slot >> _LINK_SHIFT].slots.finish((slot & _OWN,))


class EngineProcess:
    """One engine, to be run in one thread, usually a process's only one.

    `load` gives the session of each graph that `geometry` lists, which is also the shape of the workers' memory.
    `control` leads to the supervisor, `row` is the engine's on the board.
    """

    def __init__(
        self,
        load: Callable[[Graph], Session],
        *,
        control: ControlSocket,
        row: EngineRow,
        geometry: Geometry,
        max_delay_s: float = 0.0,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._control = control
        self._row = row
        self._geometry = geometry
        self._max_delay_s = max_delay_s
        self._observer = observer
        self._clock = clock
        self._core: EngineCore
        self._links: dict[int, _Link] = {}
        self._newest = 0
        self._selector = selectors.DefaultSelector()
        self._ending = False

    def run(self) -> int:
        """Load the graphs and serve the links until `End` comes; returns the process's exit status.

        That a model cannot be loaded is reported to the supervisor. Any other exception means that the engine is
        broken, and leaves this method; the links end with it.
        """
        self._row.pid, self._row.state = os.getpid(), EngineState.LOADING
        try:
            self._core = self._make_core()
            self._core.warm_up()
        except StartupError as error:
            self._control.send(Failed(str(error)))
            return 1
        try:
            self._serve()
        finally:
            for link in self._links.values():
                link.socket.close()
            self._selector.close()
        return 0

    def _make_core(self) -> EngineCore:
        graphs = self._geometry.graphs
        return EngineCore(
            graphs,
            {graph.key: self._load(graph) for graph in graphs},
            _LinkedSlots(self._links),
            self._row,
            input_shape=self._geometry.input_shape,
            clock=self._clock,
            max_delay_s=self._max_delay_s,
            observer=self._observer,
        )

    def _serve(self) -> None:
        self._selector.register(self._control, selectors.EVENT_READ, self._read_control)
        self._row.state = EngineState.READY
        self._control.send(Ready())
        while not self._ending:
            for key, _ in self._selector.select(self._wait_s()):
                key.data()
            self._reply(self._core.step())

    def _wait_s(self) -> float | None:
        due_s = self._core.ready_at_s
        return None if due_s is None else max(due_s - self._clock(), 0.0)

    def _read_control(self) -> None:
        received = self._control.receive()
        if received is None:
            _log.error("the supervisor is gone: the engine ends")
            self._ending = True
            return
        message, descriptors = received
        match message:
            case Ping():
                self._control.send(Pong())
            case Attach(worker):
                self._attach(worker, *descriptors)
            case End():
                self._ending = True

    def _attach(self, worker: int, end: int, memory: int) -> None:
        for link in [link for link in self._links.values() if link.worker == worker]:
            self._lose(link)  # its process has ended, though that may not have been read yet
        slots = SharedSlots(self._geometry, memory)
        os.close(memory)
        self._newest += 1
        link = _Link(self._newest, worker, socket.socket(fileno=end), slots)
        self._links[link.number] = link
        self._selector.register(link.socket, selectors.EVENT_READ, partial(self._on_link, link))
        self._send(link, [Reply(ReplyKind.READY)])

    def _on_link(self, link: _Link) -> None:
        if link.number not in self._links:  # it was replaced a moment ago
            return
        if link.socket.has_unsent:
            self._send(link, [])
        requests, is_open = link.socket.receive()
        submitted: list[WorkItem] = []
        cancelled: list[int] = []
        for request in requests:
            ticket = link.name(request.ticket)
            if request.kind == RequestKind.CANCEL:
                cancelled.append(ticket)
            else:
                link.waiting.add(ticket)
                slot = link.name(request.slot)
                submitted.append(work_item(request, self._geometry.graphs, ticket=ticket, slot=slot))
        self._core.submit(submitted)
        self._core.cancel(cancelled)
        if not is_open:
            self._lose(link)

    def _lose(self, link: _Link) -> None:
        self._core.cancel(link.waiting)
        self._selector.unregister(link.socket)
        link.socket.close()
        del self._links[link.number]

    def _reply(self, completions: Sequence[Completion]) -> None:
        replies: dict[int, list[Reply]] = {}
        for completion in completions:
            link = self._links.get(completion.ticket >> _LINK_SHIFT)
            if link is not None:  # else its worker is gone
                link.waiting.discard(completion.ticket)
                reply = reply_for(completion, ticket=completion.ticket & _OWN)
                replies.setdefault(link.number, []).append(reply)
        for number, records in replies.items():
            self._send(self._links[number], records)

    def _send(self, link: _Link, replies: Sequence[Reply]) -> None:
        link.socket.send(replies)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.socket.has_unsent else 0)
        key = self._selector.get_key(link.socket)
        if key.events != events:
            self._selector.modify(link.socket, events, key.data)
